"""Requests of many callers share batches: the queue, its order, and the thread that runs it."""
