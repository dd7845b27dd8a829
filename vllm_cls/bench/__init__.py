"""Benchmarks of a model, alone and against other libraries.

Every contender, ours included, lives in a process of its own with the same environment; they take turns on
the same texts, and their outputs are compared before any time counts.
"""
