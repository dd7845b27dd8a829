"""A request on its way from its route to `AsyncLLM` and back: JSON, prompts, size limits, chat templates of clients."""
