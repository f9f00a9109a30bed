"""Cluster profiles: what is the same for every job on a cluster, one section of ``clusters.toml`` per cluster.

The user's file is ``~/.config/bigbatch/clusters.toml``, the project's ``clusters.toml`` in the working directory; where both
describe a cluster, the project's keys win. ``local`` is always there: this machine, without SLURM.
"""

import tomllib
from pathlib import Path
from typing import Annotated, Literal

from platformdirs import user_config_path
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from recipes.errors import UserError

LOCAL = "local"

# SLURM reads its options line by line, so one that holds a line break would start a line of its own.
OneLine = Annotated[str, Field(pattern=r"^[^\x00-\x1f]+$")]
VariableName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class Cluster(BaseModel):
    """One section of a profile file; every key is optional."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    partition: OneLine | None = Field(None, description="where jobs go; --partition wins")
    account: OneLine | None = None
    qos: OneLine | None = None
    constraint: OneLine | None = Field(None, description="features that nodes must have")
    exclude: OneLine | None = Field(None, description="nodes never to be used")
    gpus_per_node: int = Field(1, ge=0, description="--gpus-per-node wins; 0: no GPUs, one task per node")
    cpus_per_task: int | None = Field(None, ge=1, description="a GPU's share of its node's CPUs if not given")
    memory_gb: int | None = Field(None, ge=1, description="per node")
    gpu: OneLine | None = Field(
        None, description="its kind, as `bigbatch plan --gpu` names it: memory and speed are then known"
    )
    gpu_memory_gib: float | None = Field(
        None, gt=0, description="of one GPU, if not what its kind has; what would not fit is refused"
    )
    time: OneLine | None = Field(None, description="time limit in SLURM's notation; --time wins")
    setup: tuple[OneLine, ...] = Field((), description="shell lines at the start of a job, e.g. module load")
    environment: dict[VariableName, OneLine] = Field({}, description="variables of a job")
    python: OneLine | None = Field(
        None, description="the command that is Python in a job; the one that submits otherwise"
    )
    stage: str | None = Field(
        None,
        description="folder on each node's own disk to copy the shards to; may name variables of the job, as $TMPDIR",
    )
    save_seconds: int = Field(120, ge=1, description="how long before the time limit a job is told to save")
    retries: int = Field(3, ge=0, description="starts in a row that may fail or stop without a new checkpoint")
    sbatch: dict[Annotated[str, Field(pattern=r"^[a-z][a-z-]*$")], OneLine | Literal[True]] = Field(
        {}, description="more options of sbatch; true for those without a value"
    )


def user_settings() -> Path:
    """The folder of what a user, or a measurement, has settled for all projects on this machine."""
    return user_config_path("bigbatch", appauthor=False)


def profile_files() -> list[Path]:
    """Where profiles are read from, the file that wins last."""
    return [user_settings() / "clusters.toml", Path("clusters.toml")]


def load_cluster(name: str | None) -> tuple[str, Cluster]:
    """Return a cluster's name and profile; without a name, the only one there is, or SLURM's defaults if there is none.

    Raises:
        UserError: no such cluster, several to choose from, or a file with a mistake in it.
    """
    sections = _sections()
    if name is None:
        clusters = [section for section in sections if section != LOCAL]
        if len(clusters) > 1:
            raise UserError(
                f"there are profiles of {', '.join(clusters)}: choose one with --cluster, or --cluster {LOCAL}"
            )
        name = clusters[0] if clusters else "slurm"
    if name == "slurm" and name not in sections:
        return name, Cluster()
    if name == LOCAL:
        return LOCAL, _validated(LOCAL, sections.get(LOCAL, {}))
    if name not in sections:
        known = ", ".join([*sections, LOCAL])
        raise UserError(
            f"there is no profile of a cluster {name!r}, only {known}: add a section [{name}] to {profile_files()[0]}"
        )
    return name, _validated(name, sections[name])


def _sections() -> dict[str, dict]:
    sections: dict[str, dict] = {}
    for file in profile_files():
        try:
            found = tomllib.loads(file.read_text()) if file.is_file() else {}
        except (tomllib.TOMLDecodeError, OSError, UnicodeDecodeError) as error:
            raise UserError(f"{file} cannot be read: {error}") from None
        for name, keys in found.items():
            if not isinstance(keys, dict):
                raise UserError(
                    f"{file}: the key {name!r} stands outside of any cluster; put it under a line like [mycluster]"
                )
            sections[name] = sections.get(name, {}) | keys
    return sections


def _validated(name: str, keys: dict) -> Cluster:
    try:
        return Cluster.model_validate(keys)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise UserError(
                f"the profile of {name} has an unknown key {key!r}; there are: {', '.join(Cluster.model_fields)}"
            ) from None
        raise UserError(
            f"the profile of {name}: {key} = {first['input']!r} is not possible: {first['msg'].lower()}"
        ) from None
