"""A model opened on several processes: one that leads, and the others."""
