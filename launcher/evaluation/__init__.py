"""What trained weights are worth: accuracy, predictions, mistakes, and export."""
