"""A few loops in C, compiled where a model runs; without a compiler, torch does the same."""
