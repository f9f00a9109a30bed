"""How a recipe runs: the cut of the batch, training, checkpoints, evaluation, export, report, and the command line."""
