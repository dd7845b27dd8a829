"""What is decided when a model is loaded, by running it."""
