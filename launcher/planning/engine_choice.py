"""Which engine a run gets: what the recipe says, what `accelerate launch` says, and a refusal where they contradict.

What both leave open is for `launcher.planning.automatic` to fill in.
"""

import os

from recipes.errors import UserError
from recipes.schema import Recipe


def with_accelerate_config(recipe: Recipe) -> Recipe:
    """Return the recipe with what an accelerate config says of the engine, where the recipe leaves that open.

    A config that names DeepSpeed is taken as the user's choice of stage and off-loading; the rest of the configuration is
    the recipe's.

    Raises:
        UserError: the recipe and the config contradict each other, or the config cannot be followed.
    """
    chosen = recipe.engine.model_dump()
    for key, value in _from_accelerate(recipe).items():
        if chosen[key] == "auto":
            chosen[key] = value
        elif chosen[key] != value:
            raise UserError(
                f"engine.{key}={chosen[key]} but the accelerate config says {value}: leave engine.{key} out, or start with "
                f"`bigbatch train` or `torchrun`, which have no config"
            )
    return recipe.variant(engine=chosen)


def with_default_engine(recipe: Recipe) -> Recipe:
    """Return the recipe with nothing left to "auto" in `engine` but the precision: no ZeRO, no off-loading, no checkpointing.

    Raises:
        UserError: what is named is impossible, or is so without what was left open.
    """
    plain = {"zero": 0, "offload": "none", "checkpoint_activations": False}
    chosen = recipe.engine.model_dump()
    chosen |= {key: value for key, value in plain.items() if chosen[key] == "auto"}
    _check(chosen)
    return recipe.variant(engine=chosen)


def _from_accelerate(recipe: Recipe) -> dict:
    """What the config of `accelerate launch` decides; it arrives in the environment."""
    found = {}
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision != "no":  # which is also what a config says that nobody was asked about
        if precision not in ("bf16", "fp16"):
            raise UserError(
                f"the accelerate config asks for {precision}, which is not offered: choose no, bf16 or fp16 there"
            )
        found["precision"] = precision
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        if "ACCELERATE_DEEPSPEED_CONFIG_FILE" in os.environ:
            raise UserError(
                "the accelerate config names a DeepSpeed JSON file, but here that is made from the recipe: remove deepspeed_config_file "
                "from the config and give engine.zero and engine.offload"
            )
        clip = os.environ.get("ACCELERATE_GRADIENT_CLIPPING", "auto")
        if clip not in ("auto", str(recipe.optimizer.clip_grad)):
            raise UserError(
                f"the accelerate config says gradient_clipping {clip}, but clipping belongs to the recipe: remove it there, or add "
                f"optimizer.clip_grad={clip}"
            )
        found["zero"] = int(os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", 2))
        found["offload"] = os.environ.get("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "none")
        os.environ["ACCELERATE_USE_DEEPSPEED"] = "false"  # taken note of; Accelerate itself is not to start DeepSpeed
    return found


def _check(chosen: dict) -> None:
    if chosen["offload"] != "none" and chosen["zero"] == 0:
        raise UserError(
            f"engine.offload={chosen['offload']} needs ZeRO: add engine.zero=2, or 3 to off-load the parameters too"
        )
    if chosen["compile"] and chosen["zero"] == 3:
        raise UserError(
            "engine.compile=true does not go with engine.zero=3, which gathers parameters inside the blocks: choose a lower stage"
        )
    if chosen["offload"] == "nvme" and chosen["zero"] != 3:
        raise UserError("engine.offload=nvme needs engine.zero=3: DeepSpeed ignores it at other stages")
    if chosen["offload"] == "nvme" and chosen["nvme_path"] is None:
        raise UserError("engine.offload=nvme needs engine.nvme_path=FOLDER, a folder on a local disk")
