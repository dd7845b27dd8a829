"""A model becomes a classifier on disk."""
