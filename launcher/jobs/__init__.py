"""Runs on a cluster: submit, watch, cancel and resume them, and what each rank of a job does."""
