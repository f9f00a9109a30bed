"""The program of every rank of a submitted job: ``python -m launcher.job RUN``."""

from launcher.cli.entry import run_command
from launcher.jobs.rank_program import run_rank

if __name__ == "__main__":
    run_command(run_rank)
