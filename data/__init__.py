"""What a model sees: sources, shards, order, decode, augmentation, mixing, batches."""
