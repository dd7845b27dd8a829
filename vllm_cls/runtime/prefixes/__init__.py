"""Tokens that several sequences begin with run once."""
