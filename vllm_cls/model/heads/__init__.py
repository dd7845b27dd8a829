"""The heads of a loaded model, with their calibration and activation, and those of its LoRA adapters."""
