"""Checkpoints: the format, writing, reading, and which ones are kept."""
