"""From a source of images to shards on a disk."""
