"""The training of one run: from the recipe to the last step."""
