"""The program of every rank of a submitted job: ``python -m launcher.job RUN``."""

from launcher.cli.entry import run_command
from launcher.jobs.rank_program import run_rank

if __name__ == "__main__":
    # An error of the file system may pass, e.g. of a network mount, so that a job may start again after it.
    run_command(run_rank, file_error=1)
