"""A model on several processes, its ranks: how they start, hear of each call, and end together."""
