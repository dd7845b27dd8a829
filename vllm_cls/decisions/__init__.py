"""Typed questions about a state (System One): requests become prompts with marks, and logits become answers."""
