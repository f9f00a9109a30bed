"""Run directories: their files, their history, and the report."""
