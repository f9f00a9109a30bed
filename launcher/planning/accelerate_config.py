"""The engine settings of an `accelerate launch` configuration, merged into a recipe.

`accelerate launch` passes its configuration on in environment variables named ``ACCELERATE_*``.
"""

import os

from recipes.errors import UserError
from recipes.schema import Recipe


def with_accelerate_config(recipe: Recipe) -> Recipe:
    """Return the recipe with the engine settings of the accelerate configuration where the recipe says "auto".

    A configuration that enables DeepSpeed chooses the ZeRO stage and the offload device. Everything else of DeepSpeed's
    configuration follows from the recipe.

    Raises:
        UserError: the recipe and the configuration contradict each other, or the configuration cannot be followed.
    """
    chosen = recipe.engine.model_dump()
    for key, value in _engine_settings(recipe).items():
        if chosen[key] == "auto":
            chosen[key] = value
        elif chosen[key] != value:
            raise UserError(
                f"engine.{key}={chosen[key]} but the accelerate config says {value}: leave engine.{key} out, or "
                f"start with `bigbatch train` or `torchrun`, which have no config"
            )
    return recipe.variant(engine=chosen)


def _engine_settings(recipe: Recipe) -> dict[str, str | int]:
    """Return the engine settings that the configuration names, by their keys in the recipe."""
    found: dict[str, str | int] = {}
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision != "no":  # "no" is also what `accelerate launch` passes on where the user chose nothing
        if precision not in ("bf16", "fp16"):
            raise UserError(
                f"the accelerate config asks for {precision}, which is not offered: choose no, bf16 or fp16 there"
            )
        found["precision"] = precision
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        if "ACCELERATE_DEEPSPEED_CONFIG_FILE" in os.environ:
            raise UserError(
                "the accelerate config names a DeepSpeed JSON file, but here that is made from the recipe: remove "
                "deepspeed_config_file from the config and give engine.zero and engine.offload"
            )
        clip = os.environ.get("ACCELERATE_GRADIENT_CLIPPING", "auto")
        if clip not in ("auto", str(recipe.optimizer.clip_grad)):
            raise UserError(
                f"the accelerate config says gradient_clipping {clip}, but clipping belongs to the recipe: remove it "
                f"there, or add optimizer.clip_grad={clip}"
            )
        found["zero"] = int(os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", 2))
        found["offload"] = os.environ.get("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "none")
        # The Zero engine calls DeepSpeed itself; Accelerate would wrap the model a second time.
        os.environ["ACCELERATE_USE_DEEPSPEED"] = "false"
    return found
