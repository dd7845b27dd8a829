"""Prompts become token ids: what a prompt may be, templates, tokenization, truncation."""
