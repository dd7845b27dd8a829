"""Attention over a packed row, and the positions of its tokens."""
