"""Hidden states → pooled states → logits → probabilities."""
