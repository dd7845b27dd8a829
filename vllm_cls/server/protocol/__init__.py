"""Requests and responses, a file a family of routes: requests are pydantic models, responses plain dicts with types."""
