"""Models: construction by name, initialisation, pretrained weights, parameter groups and keyed random layers."""
