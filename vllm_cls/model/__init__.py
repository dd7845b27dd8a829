"""A model: found by its name, loaded with its head and adapters, ready to run."""
