"""What every request passes before its route: instrumentation, hosts, keys, limits."""
