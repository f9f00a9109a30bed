"""Typed recipes and the catalogue: what is trained, on which data, and how. Imports no torch."""
