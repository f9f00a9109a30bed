"""A job: a program, the resources that it requests, and the folder of its records. All of these are saved as JSON."""

import math
import re
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from recipes.errors import UserError

# Exit codes of a job's program, on every rank.
FINISHED = 0
USER_ERROR = 2  # the same start would fail in the same way: the user must change something first
BAD_NODE = 76  # a node cannot be used; only the ranks on that node say why
STOPPED = 130  # the program was told to stop, has saved, and can resume


class _Saved(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Resources(_Saved):
    """The resources that a job requests. One task runs per GPU, or one per node if the job uses no GPUs."""

    min_nodes: int = Field(1, ge=1)
    max_nodes: int = Field(1, ge=1)
    gpus_per_node: int = Field(1, ge=0)
    gpu_type: str | None = None
    cpus_per_task: int = Field(1, ge=1)
    partition: str | None = None
    minutes: int | None = Field(None, ge=1)

    @property
    def tasks_per_node(self) -> int:
        return max(1, self.gpus_per_node)

    @property
    def nodes(self) -> str:
        """The nodes in the notation of ``sbatch --nodes``."""
        return str(self.min_nodes) if self.min_nodes == self.max_nodes else f"{self.min_nodes}-{self.max_nodes}"


class Job(_Saved):
    """A program that runs on every rank, and where it keeps its records.

    Attributes:
        name: the name that people see.
        folder: the folder of the job's records (`slurm.ledger`), on a file system that all nodes share.
        module, arguments: the program is ``python -m module arguments``; no shell sees the arguments. It exits with
            `FINISHED`, `STOPPED`, `USER_ERROR`, `BAD_NODE`, or anything else if it failed. SIGTERM tells it to save
            and stop.
        progress: a folder to which the program adds an entry, the last in alphabetical order, whenever it has saved
            something to resume from.
    """

    name: str
    folder: Path
    module: str
    arguments: list[str]
    progress: Path


class Submission(_Saved):
    """Where a job was submitted; saved beside its records."""

    job_id: str  # of an array's task: ARRAY_TASK
    cluster: str
    submitted: float  # seconds since 1970
    resources: Resources
    folder: Path  # of the logs, the script and the code
    host: str | None = None  # the machine of a local job
    after: str | None = None  # id of the job that must succeed first


def parse_nodes(text: str) -> tuple[int, int]:
    """Return the smallest and the largest number of nodes in ``4`` or ``2-8``.

    Raises:
        UserError: the text is neither a number nor a range.
    """
    match = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", text)
    least, most = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= least <= most:
        raise UserError(f"--nodes {text} is not a number of nodes: give one (4), or the least and the most (2-8)")
    return least, most


def parse_minutes(text: str) -> int:
    """Return a time limit in whole minutes, rounded up, from SLURM's notation: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S.

    Raises:
        UserError: the text is in none of these forms, or means zero.
    """
    match = re.fullmatch(r"(?:(\d{1,8})-)?(\d{1,8})(?::(\d{1,8}))?(?::(\d{1,8}))?", text)
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
    """Return a time limit in SLURM's notation, e.g. ``1-12:00:00``."""
    days, rest = divmod(minutes, 1440)
    return (f"{days}-" if days else "") + f"{rest // 60:02}:{rest % 60:02}:00"
