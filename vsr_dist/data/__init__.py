"""Training data: shards -> order of the windows -> augmented crops -> batches on the device."""
