"""Token ids → batches → hidden states: packing, attention, the self-check, the engine."""
