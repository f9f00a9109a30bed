"""The sections of a recipe that fix what it computes: every key, with its type, default and description.

Defaults are those of ConvNeXt's ImageNet-1K training (paper, table 5; upstream code where the paper is silent).
"""

import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from recipes.local_paths import LocalPathText, local_path

TIMM = "timm"  # the value of `model.weights` that names timm's own
_OPTIMIZERS = ("adamw", "sgd", "lamb", "lars", "lion")
UnitFraction = Annotated[float, Field(ge=0, le=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A part of a recipe. Unknown keys are errors; values cannot change once validated."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)


def added_in(version: str, default: Any, description: str) -> Any:
    """Return a field that version 0.1.0 did not have. A recipe's identity leaves it out while it has its default.

    Args:
        version: the first version of bigbatch that has the key.
        default: what runs did before; a run that does not name the key does the same.
        description: as in pydantic's `Field`.
    """
    return Field(default, description=description, json_schema_extra={"since": version})


class ModelSettings(Section):
    name: str = Field("convnext_tiny", description="a timm model name")
    init_std: Positive | None = Field(
        0.02,
        description="std of the truncated normal for all convolution and linear weights, with zero biases; "
        "null: the model's own initialisation",
    )
    drop_path: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.1, description="stochastic depth rate of the last block; rises linearly from 0 at the first block"
    )
    layer_scale: Positive | None = Field(
        1e-6, description="initial layer scale of a ConvNeXt or DeiT III; null: the model's own value, if it has any"
    )
    head_init_scale: Positive | None = Field(
        None, description="factor on the head's weight and bias, applied after weights are loaded"
    )
    weights: LocalPathText | None = Field(
        None,
        description="initial weights: a run directory, a weights file, or 'timm' for timm's pretrained weights; "
        "null: train from scratch",
    )
    weights_key: str | None = added_in(
        "0.2",
        None,
        description="which weights to take from a file that holds several, e.g. state_dict or state_dict_ema; "
        "null: the EMA weights if the file has them",
    )
    train: str = added_in(
        "0.2",
        "all",
        description="what trains: all; head: the classifier alone; last:N: also the last N blocks. The rest is frozen "
        "and computes as in evaluation",
    )
    norm_eval: bool = added_in(
        "0.2",
        False,
        description="keep BatchNorm layers in evaluation mode, with the running statistics of the initial weights; "
        "their scale and shift train like other parameters",
    )

    @property
    def weights_path(self) -> Path | None:
        """The run or the file that `weights` names; None for timm's weights and from scratch."""
        return None if self.weights in (None, TIMM) else local_path(self.weights)

    @field_validator("train")
    @classmethod
    def _part_of_a_model(cls, part: str) -> str:
        if not re.fullmatch(r"all|head|last:[1-9][0-9]*", part):
            raise ValueError(f"model.train={part!r} is not valid: use all, head or last:N, e.g. last:2")
        return part

    @model_validator(mode="after")
    def _has_running_statistics(self) -> Self:
        if self.norm_eval and self.weights is None:
            raise ValueError(
                "model.norm_eval=true keeps the BatchNorm statistics of the initial weights, and a run from scratch "
                "has none: set model.weights or model.norm_eval=false"
            )
        return self


class DataSettings(Section):
    name: str = Field("imagenet-1k", description="name of the data set in tables")
    classes: Count | None = Field(1000, description="number of classes; null: the number of classes in the shards")
    train_images: Count | None = Field(
        None, description="number of training images in the published set; used for planning until shards are given"
    )
    shuffle: Literal["full", "blocks"] = Field(
        "full",
        description="full: shuffle all images; blocks: shuffle blocks of adjacent images, for remote storage and hard "
        "disks",
    )
    path: str | None = Field(
        None,
        description="folder or URL (e.g. s3://bucket/folder) with shards written by `bigbatch shard`; also `--data`",
    )
    cache: LocalPathText | None = Field(
        None, description="local folder that caches blocks of remote shards for all processes of a node; null: no cache"
    )
    cache_gib: Annotated[float, Field(gt=0, le=2**20)] = Field(50.0, description="largest size of the cache in GiB")


class BatchSettings(Section):
    global_: Count = Field(4096, alias="global", description="images per optimizer step")
    slices: Count = Field(
        32,
        description="parts into which the global batch is divided; mixup and cutmix mix images within a slice "
        "(upstream: one GPU's share)",
    )
    statistics: Count | None = Field(
        None, description="images over which a BatchNorm layer computes mean and variance, at least 2; null: one slice"
    )

    @property
    def slice_size(self) -> int:
        """Images per slice."""
        return self.global_ // self.slices

    @property
    def statistics_size(self) -> int:
        """Images over which a BatchNorm layer computes mean and variance."""
        return self.statistics or self.slice_size

    @model_validator(mode="after")
    def _whole_slices(self) -> Self:
        for key, size in (("batch.slices", self.slices), ("batch.statistics", self.statistics or 1)):
            if self.global_ % size:
                unit = math.lcm(self.slices, self.statistics or 1)
                nearby = max(1, self.global_ // unit) * unit
                raise ValueError(
                    f"batch.global {self.global_} is not a multiple of {key} {size}: try batch.global={nearby}"
                )
        return self


class OptimizerSettings(Section):
    name: str = Field(
        "adamw",
        description="adamw; sgd: with Nesterov momentum; lamb, lars, lion: timm's; "
        "timm:NAME: any other optimizer of timm",
    )
    lr: Positive = Field(4e-3, description="peak learning rate, of the batch size that lr_at_batch names")
    lr_at_batch: Count | None = added_in(
        "0.2",
        None,
        description="the batch size that lr is meant for; for another one it is scaled by the square-root rule, for "
        "SGD and LARS by the linear rule; null: lr is used as it is at any batch size",
    )
    betas: tuple[Beta, Beta] = Field(
        (0.9, 0.999), description="betas of AdamW, and of timm's optimizers with two betas"
    )
    eps: Positive = Field(1e-8, description="epsilon of AdamW, and of timm's optimizers that have one")
    momentum: UnitFraction = Field(0.9, description="momentum of SGD and LARS")
    weight_decay: NotNegative = Field(
        0.05, description="weight decay, decoupled for AdamW; biases and other 1-d parameters have none"
    )
    weight_decay_end: NotNegative | None = added_in(
        "0.2",
        None,
        description="weight decay at the end of the run, reached along half a cosine as in ConvNeXt's code; "
        "null: it stays",
    )
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="factor on the learning rate from each layer group to the one below it; null: none"
    )
    norm_bias_lr_scale: Positive = added_in(
        "0.2", 1.0, "factor on the learning rate of the biases of BatchNorm layers; 64 in airbench's CIFAR-10 recipe"
    )
    clip_grad: Positive | None = Field(
        None, description="largest norm of the gradient of the global batch; null: no clipping"
    )

    @model_validator(mode="after")
    def _has_decay_to_change(self) -> Self:
        if self.weight_decay_end is not None and self.weight_decay == 0:
            raise ValueError(
                "optimizer.weight_decay_end changes a weight decay that is not 0: set optimizer.weight_decay too"
            )
        return self

    @field_validator("name")
    @classmethod
    def _known_name(cls, name: str) -> str:
        if name not in _OPTIMIZERS and not re.fullmatch(r"timm:\w+", name):
            raise ValueError(
                f"optimizer.name={name!r} is not valid: use {', '.join(map(repr, _OPTIMIZERS))}, or timm:NAME for "
                "another optimizer of timm"
            )
        return name


class ScheduleSettings(Section):
    epochs: Count = Field(300, description="number of epochs; an epoch is floor(images / batch.global) optimizer steps")
    warmup_epochs: Annotated[int, Field(ge=0)] = Field(
        20, description="epochs of linear warm-up from a learning rate of 0"
    )
    shape: Literal["cosine", "step", "polynomial", "constant", "wsd"] = Field(
        "cosine",
        description="after the warm-up. cosine, polynomial: decay to min_lr; step: divide by ten every step_epochs "
        "epochs; constant: stay; wsd: stay, then decay linearly to min_lr over the last decay_epochs",
    )
    min_lr: NotNegative = Field(1e-6, description="final learning rate of the cosine, polynomial and wsd schedules")
    step_epochs: Count = Field(30, description="epochs between two drops of the step schedule")
    power: Positive = added_in("0.2", 2.0, "exponent of the polynomial schedule; 1: linear decay")
    decay_epochs: Count | None = added_in(
        "0.2", None, "epochs of the final decay of the wsd schedule; null: a fifth of all epochs, at least one"
    )

    @property
    def last_epochs(self) -> int:
        """Epochs of the final decay of the wsd schedule."""
        return self.decay_epochs or max(1, self.epochs // 5)

    @model_validator(mode="after")
    def _decay_within_run(self) -> Self:
        if self.shape == "wsd" and self.warmup_epochs + self.last_epochs > self.epochs:
            raise ValueError(
                f"schedule.warmup_epochs {self.warmup_epochs} and schedule.decay_epochs {self.last_epochs} do not fit "
                f"schedule.epochs {self.epochs}: add schedule.epochs={self.warmup_epochs + self.last_epochs} or more"
            )
        return self

    @model_validator(mode="after")
    def _warmup_within_run(self) -> Self:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"schedule.warmup_epochs {self.warmup_epochs} must be smaller than schedule.epochs {self.epochs}: "
                f"add schedule.warmup_epochs={self.epochs // 10}"
            )
        return self


class LossSettings(Section):
    kind: Literal["cross_entropy", "bce"] = added_in(
        "0.2", "cross_entropy", "cross_entropy; bce: binary cross-entropy of each class (arXiv 2110.00476)"
    )
    smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(0.1, description="label smoothing")
    target_threshold: Annotated[float, Field(ge=0, lt=1)] | None = added_in(
        "0.2",
        None,
        description="bce: mixed and smoothed targets above this become 1, and all others 0; null: they stay",
    )
    sum_classes: bool = added_in("0.2", False, "bce: sum over the classes instead of their mean")

    @model_validator(mode="after")
    def _keys_of_bce(self) -> Self:
        for key, value, default in (
            ("target_threshold", self.target_threshold, "null"),
            ("sum_classes", self.sum_classes, "false"),
        ):
            if self.kind != "bce" and value not in (None, False):
                raise ValueError(f"loss.{key} is for loss.kind=bce: set loss.kind=bce or loss.{key}={default}")
        return self


class EmaSettings(Section):
    decay: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        0.9999,
        description="decay of the EMA of the weights per optimizer step; EMA and raw weights are both evaluated; "
        "null: no EMA",
    )
    warmup: bool = added_in(
        "0.2",
        False,
        description="let the decay rise from 0 to ema.decay, as timm's ModelEmaV3 does, so that the initial weights "
        "are soon forgotten",
    )

    def decay_of_update(self, number: int) -> float:
        """Return the decay of update `number` of the weights, counted from 1.

        With warm-up it is ``1 - number ** (-2 / 3)``, at most `decay`. The exponent is timm's default.

        Raises:
            AssertionError: there is no EMA.
        """
        assert self.decay is not None
        return min(self.decay, 1 - number ** (-2 / 3)) if self.warmup else self.decay
