"""The writer of checkpoints: tensors from file to file, in a folder that appears whole, with a model card."""
