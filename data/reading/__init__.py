"""Reads the bytes of any image from shards, local or remote."""
