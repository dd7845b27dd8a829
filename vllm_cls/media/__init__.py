"""Images, videos and precomputed embeddings of a prompt: fetched, decoded, counted and hashed.

Nothing here is imported while prompts are texts alone. Needs the extra `vision` (Pillow, PyAV).
"""
