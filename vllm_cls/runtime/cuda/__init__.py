"""What runs on a CUDA device only: kernels over a whole row, look-ahead, recorded forwards, planned memory, FP8.

Nothing here is imported for a CPU, and nothing here touches CUDA when it is imported.
"""
