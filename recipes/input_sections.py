"""The sections of a recipe that fix what the model sees: the size of images, their augmentation, and mixing.

Defaults are those of ConvNeXt's ImageNet-1K training (paper, table 5; upstream code where the paper is silent).
"""

import re
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from recipes.sections import Count, NotNegative, Positive, Section, UnitFraction, added_in

# timm's parser skips much of what it does not understand.
_RANDAUGMENT = re.compile(
    r"rand(-(m\d{1,2}|n[1-9]\d?|p(0(\.\d+)?|1(\.0+)?)|mstd\d+(\.\d+)?|mmax[1-9]\d?|inc[01]|t(weights|3aw?)?))*"
)


class InputSettings(Section):
    size: Annotated[int, Field(ge=16, le=2048)] = Field(224, description="width and height of images in pixels")
    interpolation: Literal["bicubic", "bilinear"] = Field("bicubic", description="filter for resizing images")
    eval_crop: UnitFraction = Field(
        0.875,
        description="evaluation resizes the shorter side to its size / eval_crop and crops the centre; "
        "from 384 pixels on it resizes the whole image to a square",
    )
    eval_size: Annotated[int, Field(ge=16, le=2048)] | None = added_in(
        "0.2",
        None,
        description="width and height of evaluation images in pixels, for models that take several sizes; null: size",
    )
    eval_interpolation: Literal["bicubic", "bilinear"] | None = added_in(
        "0.2", None, description="filter for resizing evaluation images; null: interpolation"
    )
    eval_flip: bool = added_in(
        "0.2", False, "evaluation averages the logits of each image and of its mirror image, which takes twice as long"
    )
    upright: bool = added_in(
        "0.2",
        False,
        "turn images as their EXIF orientation says, in training, evaluation and predict; false: read them as they are "
        "stored, as torchvision and timm do",
    )
    mean: tuple[float, float, float] = Field(
        (0.485, 0.456, 0.406), description="mean of each channel, subtracted from pixels scaled to 0..1"
    )
    std: tuple[Positive, Positive, Positive] = Field(
        (0.229, 0.224, 0.225), description="standard deviation of each channel, by which it is then divided"
    )

    @property
    def evaluated_size(self) -> int:
        """Width and height of evaluation images in pixels."""
        return self.eval_size or self.size

    @property
    def evaluated_interpolation(self) -> str:
        """The filter for resizing evaluation images."""
        return self.eval_interpolation or self.interpolation


class AugmentSettings(Section):
    crop: Literal["random_resized", "pad", "center"] = added_in(
        "0.2",
        "random_resized",
        description="random_resized: a random rectangle, resized to input.size (RandomResizedCrop); pad: the image, "
        "shorter side resized to input.size and padded, and a random square of it (RandomCrop), as for CIFAR; "
        "center: what an evaluation sees",
    )
    pad: Annotated[int, Field(ge=0, le=512)] = added_in(
        "0.2", 4, description="pixels of padding on each side, for augment.crop=pad"
    )
    pad_mode: Literal["constant", "reflect"] = added_in(
        "0.2", "constant", description="padding of augment.crop=pad: constant (black) or reflect (mirrored)"
    )
    crop_scale: tuple[UnitFraction, UnitFraction] = Field(
        (0.08, 1.0), description="smallest and largest share of the area that RandomResizedCrop keeps"
    )
    crop_ratio: tuple[Positive, Positive] = Field(
        (3 / 4, 4 / 3), description="smallest and largest aspect ratio of RandomResizedCrop"
    )
    repeats: Count = added_in(
        "0.2",
        1,
        description="how often an epoch shows an image, each time augmented anew and in another slice; an epoch keeps "
        "its number of steps, so it shows the share 1 / repeats of the images",
    )
    flip: UnitFraction = Field(0.5, description="probability of a horizontal flip")
    flip_mode: Literal["random", "alternate"] = added_in(
        "0.2",
        "random",
        description="random: drawn anew in each epoch; alternate: drawn for the first epoch, and then in every other "
        "epoch the other way (airbench)",
    )
    randaugment: str | None = Field(
        "rand-m9-mstd0.5-inc1", description="a RandAugment policy in timm's notation; null: no RandAugment"
    )
    policy: Literal["trivial", "three"] | None = added_in(
        "0.2",
        None,
        description="trivial: one random operation of random strength (TrivialAugmentWide of torchvision); three: "
        "greyscale, solarising or blur (3-Augment of DeiT III); null: randaugment",
    )
    color_jitter: NotNegative | None = Field(
        0.4,
        description="strength of colour jitter; not used together with randaugment or TrivialAugment, as upstream; "
        "null: none",
    )
    erasing: UnitFraction = Field(
        0.25, description="probability that random erasing fills one rectangle with noise, after normalisation"
    )

    @field_validator("randaugment")
    @classmethod
    def _timms_notation(cls, policy: str | None) -> str | None:
        if policy is not None and not _RANDAUGMENT.fullmatch(policy):
            raise ValueError(
                f"augment.randaugment={policy!r} is not a RandAugment policy: write one such as rand-m9-mstd0.5-inc1, "
                "or null for none"
            )
        return policy

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        for key, (least, most) in (("crop_scale", self.crop_scale), ("crop_ratio", self.crop_ratio)):
            if least > most or most == 0:
                raise ValueError(
                    f"augment.{key}=[{least:g},{most:g}] is not a range: give the smallest value and then the largest, "
                    "which is above 0"
                )
        return self

    @model_validator(mode="after")
    def _one_policy(self) -> Self:
        if self.policy and self.randaugment:
            raise ValueError(
                f"augment.policy={self.policy} takes the place of RandAugment: add augment.randaugment=null"
            )
        return self


class MixSettings(Section):
    mixup: NotNegative = Field(0.8, description="alpha of mixup's Beta distribution; 0: off")
    cutmix: NotNegative = Field(1.0, description="alpha of cutmix's Beta distribution; 0: off")
    probability: UnitFraction = Field(
        1.0, description="probability that a slice (or, by mode, a pair or an image) is mixed"
    )
    switch: UnitFraction = Field(0.5, description="probability of cutmix instead of mixup where both are on")
    mode: Literal["batch", "pair", "elem"] = Field(
        "batch",
        description="what shares one lambda and one box. batch: all images of a slice; pair: two images that are mixed "
        "with each other; elem: every image has its own",
    )
