"""The sections of a recipe about the run: how it is computed, what it saves, and which run it is a branch of."""

from typing import Literal

from pydantic import Field

from recipes.local_paths import LocalPathText
from recipes.sections import Count, Section, UnitFraction, added_in


class EngineSettings(Section):
    precision: Literal["auto", "float32", "bf16", "fp16"] = Field(
        "auto",
        description="precision of the forward and backward pass; "
        "auto: what `accelerate launch` is configured with, else bf16 on GPUs that support it",
    )
    compile: bool = Field(
        False,
        description="compile each block with torch.compile: the start takes minutes longer, and steps are faster",
    )
    deterministic: bool = Field(
        False, description="use deterministic kernels only: the same cut gives the same bits on a GPU too"
    )
    zero: Literal["auto", 0, 1, 2, 3] = Field(
        "auto",
        description="stage of DeepSpeed ZeRO: shards the optimizer state (1), also gradients (2), also parameters (3); "
        "0: plain DDP; auto: what `accelerate launch` is configured with, else what the plan recommends",
    )
    offload: Literal["auto", "none", "cpu", "nvme"] = Field(
        "auto",
        description="where ZeRO keeps the optimizer state; at stage 3, `cpu` and `nvme` both keep the parameters in "
        "the CPU's memory; auto: what `accelerate launch` is configured with, else what the plan recommends",
    )
    nvme_path: LocalPathText | None = Field(None, description="folder on a local disk, for engine.offload=nvme")
    checkpoint_activations: Literal["auto", True, False] = Field(
        "auto",
        description="recompute activations in the backward pass instead of storing them; auto: as the plan recommends",
    )


class RunSettings(Section):
    evaluate_every: Count = Field(1, description="epochs between evaluations; the last epoch is always followed by one")
    save_every: Count = Field(
        500, description="optimizer steps between checkpoints; one is also saved at the end and on Ctrl-C"
    )
    keep: Count = Field(
        3, description="how many of the last checkpoints are kept, in addition to that of the best evaluation"
    )
    keep_every: Count | None = Field(None, description="epochs between checkpoints that are never deleted; null: none")
    unreadable: UnitFraction = Field(
        0.01, description="largest share of unreadable images; above it the run stops and names them"
    )
    trackers: tuple[str, ...] = added_in(
        "0.2",
        ("tensorboard",),
        description="list of trackers that show the curves: tensorboard, wandb, mlflow, or another one of Accelerate; "
        "[]: none",
    )


class BranchSettings(Section):
    """Where a run that `bigbatch branch` made left its parent. The command writes this; no user does."""

    run: str = Field(description="run directory of the parent when the branch was made; not part of the identity")
    identity: str = Field(description="identity of the parent's recipe")
    step: Count = Field(description="optimizer steps that the branch shares with its parent")
