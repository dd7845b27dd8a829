"""The machine: cores, threads, device, memory."""
