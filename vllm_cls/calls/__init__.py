"""One call of `LLM`: its arguments, which task runs, and the outputs made of the results."""
