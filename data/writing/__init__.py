"""Writes and verifies shards: from a source of images to a data set on a disk."""
