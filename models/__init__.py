"""What learns: models by name, their initialisation, parameter groups and keyed random layers."""
