"""What is trained, on what, and how: typed recipes and the catalogue. Imports no torch."""
