"""Cluster profiles: the settings that all jobs on a cluster share, one section of ``clusters.toml`` per cluster.

The user's file is ``~/.config/bigbatch/clusters.toml``, the project's is ``clusters.toml`` in the working directory.
Where both describe a cluster, the project's keys win. The profile ``local`` always exists: this machine, without
SLURM.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from platformdirs import user_config_path
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from recipes.errors import UserError
from recipes.local_paths import LocalPathText
from recipes.parsing import parse_toml

LOCAL = "local"

# SLURM reads its options line by line, so a value with a line break would add an option of its own.
OneLine = Annotated[str, Field(pattern=r"^[^\x00-\x1f]+$")]
VariableName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
OptionName = Annotated[str, Field(pattern=r"^[a-z][a-z-]*$")]

# Options that bigbatch writes itself: a second value for one of them would contradict what was checked and planned.
_OWN_SBATCH_OPTIONS = {
    "partition": "the key partition",
    "account": "the key account",
    "qos": "the key qos",
    "constraint": "the key constraint",
    "exclude": "the key exclude",
    "time": "the key time",
    "mem": "the key memory_gb",
    "cpus-per-task": "the key cpus_per_task",
    "gpus-per-node": "the keys gpus_per_node and gpu_type",
    "nodes": "--nodes",
    "dependency": "--after",
    "array": "--array",
    "job-name": "name=NAME in the recipe's overrides",
    **dict.fromkeys(["gpus", "gpus-per-task", "gpus-per-socket"], "the keys gpus_per_node and gpu_type"),
    **dict.fromkeys(["mem-per-cpu", "mem-per-gpu"], "the key memory_gb"),
    **dict.fromkeys(["ntasks", "ntasks-per-node", "ntasks-per-gpu"], "gpus_per_node: one task runs per GPU"),
    **dict.fromkeys(["cpus-per-gpu", "mincpus"], "the key cpus_per_task"),
}
# bigbatch needs its own values of these to requeue the job, find its logs, and read sbatch's answer.
_FIXED_SBATCH_OPTIONS = [
    *("requeue", "no-requeue", "signal", "output", "error", "open-mode", "chdir", "kill-on-invalid-dep"),
    *("wrap", "parsable", "test-only", "wait"),
]
_OWN_SRUN_OPTIONS = {
    "cpus-per-task": "the key cpus_per_task",
    **dict.fromkeys(["nodes", "ntasks", "ntasks-per-node"], "--nodes and the key gpus_per_node"),
}
_FIXED_SRUN_OPTIONS = ["output", "error", "unbuffered", "kill-on-bad-exit", "export"]

# Variables by which users of SLURM set defaults, and the profile key that each of them sets here.
_VARIABLES = {
    "SBATCH_PARTITION": "partition",
    "SBATCH_ACCOUNT": "account",
    "SBATCH_QOS": "qos",
    "SBATCH_CONSTRAINT": "constraint",
    "SBATCH_TIMELIMIT": "time",
}
_SBATCH_VARIABLES = {"SBATCH_RESERVATION": "reservation", "SBATCH_WCKEY": "wckey", "SBATCH_EXPORT": "export"}


class Cluster(BaseModel):
    """One section of a profile file; every key is optional."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    partition: OneLine | None = Field(
        None, description="partition of the jobs; several separated by commas: the one that is free first"
    )
    account: OneLine | None = None
    qos: OneLine | None = None
    constraint: OneLine | None = Field(None, description="features that nodes must have")
    exclude: OneLine | None = Field(None, description="nodes that jobs never use")
    gpus_per_node: int = Field(1, ge=0, description="--gpus-per-node overrides it; 0: no GPUs, one task per node")
    gpu_type: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")] | None = Field(
        None, description="SLURM's name of a type of GPU, as `sinfo -o %G` prints it; --gpu-type overrides it"
    )
    cpus_per_task: int | None = Field(None, ge=1, description="default: a GPU's share of its node's CPUs")
    memory_gb: int | None = Field(None, ge=1, description="memory per node")
    gpu: OneLine | None = Field(
        None, description="the GPU as `bigbatch plan --gpu` names it, so that its memory and speed are known"
    )
    gpu_memory_gib: float | None = Field(
        None,
        gt=0,
        description="memory of one GPU, if it differs from the known one; recipes that do not fit are refused",
    )
    time: OneLine | None = Field(None, description="time limit in SLURM's notation; --time overrides it")
    setup: tuple[OneLine, ...] = Field((), description="shell lines at the start of a job, e.g. module load")
    environment: dict[VariableName, OneLine] = Field({}, description="environment variables of a job")
    python: OneLine | None = Field(None, description="the Python command of a job; default: the Python that submits")
    stage: LocalPathText | None = Field(
        None,
        description="folder on each node's own disk to copy the shards to; may contain a job's variables, e.g. $TMPDIR",
    )
    save_seconds: int = Field(120, ge=1, description="seconds before the time limit at which a job is told to save")
    retries: int = Field(3, ge=0, description="consecutive starts that may fail or stop without a new checkpoint")
    sbatch: dict[OptionName, OneLine | Literal[True]] = Field(
        {}, description="more options of sbatch; true for those without a value"
    )
    srun: dict[OptionName, OneLine | Literal[True]] = Field(
        {}, description="more options of srun, e.g. mpi, gpu-bind, container-image; true for those without a value"
    )

    @field_validator("sbatch")
    @classmethod
    def _no_own_sbatch_options(cls, options: dict[str, str | bool]) -> dict[str, str | bool]:
        return _refuse_own(options, "sbatch", _OWN_SBATCH_OPTIONS, _FIXED_SBATCH_OPTIONS)

    @field_validator("srun")
    @classmethod
    def _no_own_srun_options(cls, options: dict[str, str | bool]) -> dict[str, str | bool]:
        return _refuse_own(options, "srun", _OWN_SRUN_OPTIONS, _FIXED_SRUN_OPTIONS)


def _refuse_own(
    options: dict[str, str | bool], program: str, own: Mapping[str, str], fixed: list[str]
) -> dict[str, str | bool]:
    for name, value in options.items():
        if name in own:
            raise ValueError(f"bigbatch writes {program}'s option --{name} itself: use {own[name]} instead")
        if name in fixed:
            raise ValueError(f"bigbatch sets {program}'s option --{name}, and jobs would break without it: remove it")
        if name == "gres" and str(value).startswith("gpu"):
            raise ValueError("bigbatch asks for GPUs itself: use the keys gpus_per_node and gpu_type instead")
    return options


def user_settings() -> Path:
    """Return the folder of the user's settings and measurements for all projects on this machine."""
    return user_config_path("bigbatch", appauthor=False)


def profile_files() -> list[Path]:
    """Return the files that profiles are read from; keys of a later file override those of an earlier one."""
    return [user_settings() / "clusters.toml", Path("clusters.toml")]


def load_cluster(name: str | None) -> tuple[str, Cluster]:
    """Return a cluster's name and profile.

    Without a name, this is the only profile, or SLURM's defaults if there is none. SBATCH_PARTITION, SBATCH_ACCOUNT and
    similar variables set keys that the profile leaves out.

    Raises:
        UserError: there is no such profile, there are several to choose from, or a file has a mistake in it.
    """
    sections = _sections()
    if name is None:
        clusters = [section for section in sections if section != LOCAL]
        if len(clusters) > 1:
            raise UserError(
                f"there are profiles of {', '.join(clusters)}: choose one with --cluster, or --cluster {LOCAL}"
            )
        name = clusters[0] if clusters else "slurm"
    if name == LOCAL:
        return LOCAL, _validated(LOCAL, sections.get(LOCAL, {}))
    if name not in sections and name != "slurm":
        known = ", ".join([*sections, LOCAL])
        raise UserError(
            f"there is no profile of a cluster {name!r}, only {known}: add a section [{name}] to {profile_files()[0]}"
        )
    return name, _validated(name, _with_variables(sections.get(name, {}), os.environ))


def _with_variables(keys: dict[str, Any], environment: Mapping[str, str]) -> dict[str, Any]:
    """Add what SBATCH_* variables say to the keys that a profile leaves out.

    sbatch itself would let these variables override the options in a batch script.
    """
    given: dict[str, Any] = {
        key: environment[variable] for variable, key in _VARIABLES.items() if environment.get(variable)
    }
    more = {key: environment[variable] for variable, key in _SBATCH_VARIABLES.items() if environment.get(variable)}
    sbatch = keys.get("sbatch", {})
    if more and isinstance(sbatch, dict):
        given["sbatch"] = {**more, **sbatch}
        keys = {key: value for key, value in keys.items() if key != "sbatch"}
    return {**given, **keys}


def _sections() -> dict[str, dict[str, Any]]:
    sections: dict[str, dict[str, Any]] = {}
    for file in profile_files():
        try:
            found = parse_toml(file.read_text()) if file.is_file() else {}
        except (ValueError, OSError) as error:
            raise UserError(f"{file} cannot be read: {error}") from None
        for name, keys in found.items():
            if not isinstance(keys, dict):
                raise UserError(
                    f"{file}: the key {name!r} is not in the section of a cluster: put it below a line like [mycluster]"
                )
            sections[name] = sections.get(name, {}) | keys
    return sections


def _validated(name: str, keys: dict[str, Any]) -> Cluster:
    try:
        return Cluster.model_validate(keys)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise UserError(
                f"the profile of {name} has an unknown key {key!r}; its keys are: {', '.join(Cluster.model_fields)}"
            ) from None
        if first["type"] == "value_error":
            raise UserError(f"the profile of {name}: {first['ctx']['error']}") from None
        raise UserError(
            f"the profile of {name}: {key} = {first['input']!r} is not valid: {first['msg'].lower()}"
        ) from None
