"""Loss terms on tensors and their weighted sum. A loss never sees a network."""
