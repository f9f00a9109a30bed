"""Evaluates and exports trained weights: accuracy, predictions, mistakes, and files for other programs."""
