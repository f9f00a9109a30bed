"""A job in plain terms: a program, what it asks of the cluster, and where its records are kept. All of it survives as JSON."""

import math
import re
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from recipes.errors import UserError

# What the exit code of a job's program means, on every rank.
FINISHED = 0
USER_ERROR = 2  # the same start would fail the same way again: the user must change something
BAD_NODE = 76  # a node cannot be used: the ranks on it say why, the others say nothing
STOPPED = 130  # was asked to stop, has saved, and can go on


class _Plain(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Resources(_Plain):
    """What a job asks of the cluster. One task per GPU; one per node where there are none."""

    min_nodes: int = Field(1, ge=1)
    max_nodes: int = Field(1, ge=1)
    gpus_per_node: int = Field(1, ge=0)
    cpus_per_task: int = Field(1, ge=1)
    partition: str | None = None
    minutes: int | None = Field(None, ge=1)

    @property
    def tasks_per_node(self) -> int:
        return max(1, self.gpus_per_node)

    @property
    def nodes(self) -> str:
        return str(self.min_nodes) if self.min_nodes == self.max_nodes else f"{self.min_nodes}-{self.max_nodes}"


class Job(_Plain):
    """A program to run on every rank, and where it leaves word of itself.

    Attributes:
        name: what people call it.
        folder: of its records (`slurm.ledger`), on a file system that all nodes share.
        module, arguments: the program is ``python -m module arguments``; arguments are data, no shell sees them. It exits with
            `FINISHED`, `STOPPED`, `USER_ERROR`, `BAD_NODE` or, if it failed, anything else; SIGTERM asks it to save and stop.
        progress: a folder in which the program makes a new entry, later in the alphabet, whenever it can resume later than before.
    """

    name: str
    folder: Path
    module: str
    arguments: list[str]
    progress: Path


class Submission(_Plain):
    """Where a job was submitted, as written beside its records."""

    job_id: str  # of an array's task: `array_index`
    cluster: str
    submitted: float  # seconds since 1970
    resources: Resources
    folder: Path  # of the logs, the script and the code
    host: str | None = None  # the machine, where there is no SLURM
    after: str | None = None  # id of the job that must succeed first


def parse_nodes(text: str) -> tuple[int, int]:
    """Return the least and most nodes of ``4`` or ``2-8``.

    Raises:
        UserError: it is neither.
    """
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    least, most = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= least <= most:
        raise UserError(f"--nodes {text} is not a number of nodes: give one (4), or the least and the most (2-8)")
    return least, most


def parse_minutes(text: str) -> int:
    """Return a time limit in whole minutes, rounded up, from SLURM's notation: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S.

    Raises:
        UserError: it is none of these, or zero.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if match:
        days, first, second, third = match[1], *(int(part or 0) for part in match.group(2, 3, 4))
        if days is not None:
            seconds = int(days) * 86400 + first * 3600 + second * 60 + third
        elif match[4] is not None:
            seconds = first * 3600 + second * 60 + third
        else:
            seconds = first * 60 + second
        if seconds:
            return math.ceil(seconds / 60)
    raise UserError(f"--time {text} is not a time limit: give minutes (90), hours (12:00:00) or days (2-00:00:00)")


def show_minutes(minutes: int) -> str:
    """A time limit as SLURM writes it."""
    days, rest = divmod(minutes, 1440)
    return (f"{days}-" if days else "") + f"{rest // 60:02}:{rest % 60:02}:00"
