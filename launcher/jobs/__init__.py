"""Runs on a cluster, a module per command: submit, logs, cancel and resume, doctor; and what every rank does."""
