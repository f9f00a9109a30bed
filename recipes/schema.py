"""The recipe: everything that decides what a run computes, typed and validated.

A recipe fixes the trajectory of a run. The two sections that do not, ``engine`` and ``run``, say how it is computed and
how it is looked after; they and the paths of the data are left out of the recipe's identity.

Defaults are those of ConvNeXt's ImageNet-1K training (paper, table 5; upstream code where the paper is silent).
"""

import hashlib
import json
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A part of a recipe. Unknown keys are errors; values cannot change once validated."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)


class ModelSettings(Section):
    name: str = Field("convnext_tiny", description="a timm model name")
    init_std: Positive | None = Field(
        0.02,
        description="std of the truncated normal of all convolution and linear weights, biases 0; null: the model's own init",
    )
    drop_path: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.1, description="stochastic depth of the last block; rises linearly from 0"
    )
    layer_scale: Positive | None = Field(
        1e-6, description="initial layer scale of a ConvNeXt; null: the model's own, if it has any"
    )
    head_init_scale: Positive | None = Field(
        None, description="factor on the head's weight and bias, applied after weights are loaded"
    )
    weights: str | None = Field(
        None,
        description="where training starts: a run directory, a weights file, 'timm' for timm's pretrained ones; null: scratch",
    )


class DataSettings(Section):
    name: str = Field("imagenet-1k", description="what the data set is called in tables")
    classes: Count | None = Field(1000, description="number of classes; null: as many as the shards have")
    train_images: Count | None = Field(
        None, description="training images of the published set; the shards decide when they are there"
    )
    shuffle: Literal["full", "blocks"] = Field(
        "full", description="order of an epoch; blocks: of neighbours in the shards, for remote or spinning storage"
    )
    path: str | None = Field(
        None, description="folder or URL, e.g. s3://bucket/folder, of shards of `bigbatch shard`; also `--data`"
    )
    cache: str | None = Field(
        None, description="local folder for blocks of remote shards, shared by a node's processes; null: none"
    )
    cache_gib: Positive = Field(50.0, description="largest size of the blocks in it, in GiB")


class BatchSettings(Section):
    global_: Count = Field(4096, alias="global", description="images per optimizer step")
    slices: Count = Field(
        32, description="parts of the global batch inside which images are mixed; one was one GPU's share upstream"
    )
    statistics: Count | None = Field(
        None, description="images whose mean and variance a BatchNorm layer takes together; null: one slice"
    )

    @property
    def slice_size(self) -> int:
        return self.global_ // self.slices

    @property
    def statistics_size(self) -> int:
        return self.statistics or self.slice_size

    @model_validator(mode="after")
    def _whole_slices(self):
        if self.global_ % self.slices:
            raise ValueError(f"batch.global {self.global_} is not a whole number of batch.slices {self.slices}")
        if self.statistics and self.global_ % self.statistics:
            raise ValueError(f"batch.global {self.global_} is not a whole number of batch.statistics {self.statistics}")
        return self


class OptimizerSettings(Section):
    name: Literal["adamw", "sgd"] = Field("adamw", description="AdamW, or SGD with Nesterov momentum")
    lr: Positive = Field(4e-3, description="peak learning rate; absolute, never scaled with the batch")
    betas: tuple[Share, Share] = Field((0.9, 0.999), description="AdamW's betas")
    eps: Positive = Field(1e-8, description="AdamW's epsilon")
    momentum: Share = Field(0.9, description="SGD's momentum")
    weight_decay: NotNegative = Field(0.05, description="decoupled for AdamW; none on biases and other 1-d parameters")
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="factor on the learning rate per layer group, from head to stem"
    )
    clip_grad: Positive | None = Field(None, description="largest norm of the gradient of the whole batch")


class ScheduleSettings(Section):
    epochs: Count = Field(300, description="an epoch is floor(images / global batch) optimizer steps")
    warmup_epochs: Annotated[int, Field(ge=0)] = Field(20, description="linear warm-up from 0")
    shape: Literal["cosine", "step"] = Field("cosine", description="cosine to min_lr, or a tenth every `step_epochs`")
    min_lr: NotNegative = Field(1e-6, description="where the cosine ends")
    step_epochs: Count = Field(30, description="epochs between two drops of the step schedule")

    @model_validator(mode="after")
    def _warmup_within_run(self):
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"schedule.warmup_epochs {self.warmup_epochs} must be smaller than schedule.epochs {self.epochs}"
            )
        return self


class InputSettings(Section):
    size: Annotated[int, Field(ge=16, le=2048)] = Field(
        224, description="side of the training and evaluation images in pixels"
    )
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    eval_crop: Share = Field(
        0.875,
        description="evaluation resizes the shorter side to size / eval_crop, then crops; at 384 and above it warps",
    )
    mean: tuple[float, float, float] = Field((0.485, 0.456, 0.406), description="subtracted from pixels in 0..1")
    std: tuple[Positive, Positive, Positive] = (0.229, 0.224, 0.225)


class AugmentSettings(Section):
    crop_scale: tuple[Share, Share] = Field((0.08, 1.0), description="share of the area that RandomResizedCrop keeps")
    crop_ratio: tuple[Positive, Positive] = Field((3 / 4, 4 / 3), description="aspect ratio of RandomResizedCrop")
    flip: Share = Field(0.5, description="probability of a horizontal flip")
    randaugment: str | None = Field("rand-m9-mstd0.5-inc1", description="a timm policy; null: none")
    color_jitter: NotNegative | None = Field(0.4, description="unused while randaugment is on, as upstream")
    erasing: Share = Field(
        0.25, description="probability of erasing one rectangle with per-pixel noise, after normalisation"
    )


class MixSettings(Section):
    mixup: NotNegative = Field(0.8, description="alpha of mixup's Beta distribution; 0: off")
    cutmix: NotNegative = Field(1.0, description="alpha of cutmix's Beta distribution; 0: off")
    probability: Share = Field(1.0, description="of mixing a slice at all")
    switch: Share = Field(0.5, description="probability of cutmix where both are on")
    mode: Literal["batch"] = Field("batch", description="one lambda for all pairs of a slice")


class LossSettings(Section):
    smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(0.1, description="label smoothing")


class EmaSettings(Section):
    decay: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        0.9999, description="per optimizer step, no warm-up; evaluated beside the raw weights; null: no average"
    )


class EngineSettings(Section):
    precision: Literal["auto", "float32", "bf16", "fp16"] = Field(
        "auto",
        description="of the forward and backward pass; auto: what `accelerate launch` says, else bf16 where the GPU has it",
    )
    compile: bool = Field(
        False, description="compile each block of the model with torch.compile: some minutes at the start, faster steps"
    )
    deterministic: bool = Field(
        False, description="only deterministic kernels: the same cut gives the same bits on a GPU too"
    )
    zero: Literal["auto", 0, 1, 2, 3] = Field(
        "auto",
        description="DeepSpeed ZeRO: share out the optimizer's state (1), gradients too (2), parameters too (3); 0: plain DDP; "
        "auto: what `accelerate launch` says, else what the plan for the GPUs at hand recommends",
    )
    offload: Literal["auto", "none", "cpu", "nvme"] = Field(
        "auto",
        description="where ZeRO keeps the optimizer's state, and with it at stage 3 the parameters on the CPU; "
        "auto: what `accelerate launch` says, else as the plan recommends",
    )
    nvme_path: str | None = Field(None, description="folder on a local disk for engine.offload=nvme")
    checkpoint_activations: Literal["auto", True, False] = Field(
        "auto",
        description="compute activations again in the backward pass instead of keeping them; auto: as the plan recommends",
    )


class RunSettings(Section):
    evaluate_every: Count = Field(1, description="epochs between evaluations; the last epoch is always evaluated")
    save_every: Count = Field(
        500, description="optimizer steps between checkpoints; also saved at the end and on Ctrl-C"
    )
    keep: Count = Field(3, description="checkpoints kept: the last ones, and the one of the best evaluation besides")
    keep_every: Count | None = Field(None, description="epochs between checkpoints that are kept for good; null: none")
    unreadable: Share = Field(
        0.01, description="share of photographs that cannot be read above which the run stops and names them"
    )


class Recipe(Section):
    """A complete recipe. ``recipes.load.load`` makes one from the catalogue, a file and overrides."""

    name: str
    summary: str = Field("", description="one line for the table of recipes")
    source: str = Field("", description="where the numbers come from and what accuracy they gave there")
    seed: Annotated[int, Field(ge=0)] = 0
    model: ModelSettings = ModelSettings()
    data: DataSettings = DataSettings()
    batch: BatchSettings = BatchSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    input: InputSettings = InputSettings()
    augment: AugmentSettings = AugmentSettings()
    mix: MixSettings = MixSettings()
    loss: LossSettings = LossSettings()
    ema: EmaSettings = EmaSettings()
    engine: EngineSettings = EngineSettings()
    run: RunSettings = RunSettings()

    def variant(self, **sections: dict) -> "Recipe":
        """Return the recipe with other values in some sections, e.g. ``variant(engine={"zero": 1})``; they are not validated."""
        changed = {name: getattr(self, name).model_copy(update=values) for name, values in sections.items()}
        return self.model_copy(update=changed)

    def to_dict(self) -> dict:
        """The recipe as plain YAML-able values, every default spelled out."""
        return self.model_dump(mode="json", by_alias=True)

    def trajectory(self) -> dict:
        """Only what decides the trajectory: two recipes with equal trajectories are the same run."""
        values = self.to_dict()
        for not_computed in ("name", "summary", "source", "engine", "run"):
            del values[not_computed]
        for not_computed in ("path", "cache", "cache_gib", "name", "train_images"):
            del values["data"][not_computed]
        return values

    def identity(self) -> str:
        """SHA-256 of the trajectory, in hexadecimal: what a checkpoint is compared with before it is continued."""
        canonical = json.dumps(self.trajectory(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()
