"""Experiments on the trajectories of runs: branch, replay and diff."""
