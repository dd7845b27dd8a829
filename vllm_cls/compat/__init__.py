"""How torch and transformers are imported, called, and kept quiet."""
