"""Shards -> ordered windows -> batches: a pure plan, memory-mapped crops, augmentation, a prefetching loader."""
