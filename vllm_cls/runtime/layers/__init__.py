"""What is changed in a model's own layers: joined, packed, quantized, pruned, LoRA."""
