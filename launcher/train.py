"""The program of every training process.

bigbatch train RECIPE                      starts it once per GPU
accelerate launch -m launcher.train RECIPE
torchrun -m launcher.train RECIPE
deepspeed --module launcher.train RECIPE
srun bigbatch train RECIPE                 in an allocation of SLURM, with one task per GPU
"""

from launcher.cli.entry import run_command
from launcher.cli.training import train
from launcher.processes import stop_with_parent


def main() -> None:
    """Run `bigbatch train` without the word `train`."""
    stop_with_parent()
    run_command(train)


if __name__ == "__main__":
    main()
