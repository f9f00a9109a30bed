"""The input pipeline: sources, shards, sample order, decoding, augmentation, mixing and batches."""
