"""Classes of classifiers: a head on any model's states, and our own model type; `Decoder` and `Encoder`, which plugins extend."""
