"""What runs on a CUDA device only: kernels over a whole row, look-ahead, recorded forwards, planned memory, FP8.

Nothing here touches CUDA when it is imported, and `flash_attn` and `torchao` are looked for only where they can run.
"""
