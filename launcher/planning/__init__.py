"""Predictions before a run: memory, time, and the engine and micro-batch to use."""
