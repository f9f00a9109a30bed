"""From shards, local or remote, to the bytes of one image."""
