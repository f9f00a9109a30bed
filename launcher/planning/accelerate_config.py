"""The configuration of `accelerate launch`: what a recipe follows, and what is refused because it would change numbers.

`accelerate launch` passes its configuration on in environment variables named ``ACCELERATE_*``, which may also be set
by hand. Gradient accumulation is the one that is neither followed nor refused:
`launcher.engines.base.make_accelerator` sets it to 1, because the cut of the recipe's batch decides how micro-batches
accumulate.
"""

import os
from collections.abc import Mapping

import torch

from recipes.errors import UserError
from recipes.schema import Recipe

_FLAGS = {
    "ACCELERATE_USE_FSDP": "FSDP: remove it from the config and use engine.zero=3, which shards the same state",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM, which is made for language models: remove it from the config",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "tensor, context or sequence parallelism: remove parallelism_config there",
    "ACCELERATE_USE_SAGEMAKER": "SageMaker: start with `bigbatch train` or `torchrun` on the instance instead",
}
# Flags without effect on numbers, which accelerate reads all the same and may not understand.
_HARMLESS_FLAGS = ("ACCELERATE_CPU_AFFINITY", "ACCELERATE_DEBUG_MODE")
_TRUE = ("1", "true", "yes", "y", "on", "t")  # as accelerate itself reads its flags
_FALSE = ("0", "false", "no", "n", "off", "f")
_STAGES = ("0", "1", "2", "3")


def with_accelerate_config(recipe: Recipe, environment: Mapping[str, str] | None = None) -> Recipe:
    """Return the recipe with the engine settings of the accelerate configuration where the recipe says "auto".

    A configuration that enables DeepSpeed chooses the ZeRO stage and the offload device. Everything else of DeepSpeed's
    configuration follows from the recipe.

    Args:
        environment: the variables of the configuration; None: those of this process.

    Raises:
        UserError: the recipe and the configuration contradict each other, or the configuration cannot be followed.
    """
    environment = os.environ if environment is None else environment
    _refuse_other_trainers(environment)
    chosen = recipe.engine.model_dump()
    for key, value in _engine_settings(recipe, environment).items():
        if chosen[key] == "auto":
            chosen[key] = value
        elif chosen[key] != value:
            raise UserError(
                f"engine.{key}={chosen[key]} but the accelerate config says {value}: leave engine.{key} out, or "
                f"start with `bigbatch train` or `torchrun`, which have no config"
            )
    return recipe.variant(engine=chosen)


def _refuse_other_trainers(environment: Mapping[str, str]) -> None:
    """Raise UserError where the configuration would train in a way or on a device other than the recipe's."""
    for name, meaning in _FLAGS.items():
        if _is_true(environment, name):
            raise UserError(f"the accelerate config asks for {meaning}")
    for name in _HARMLESS_FLAGS:
        _is_true(environment, name)
    backend = environment.get("ACCELERATE_DYNAMO_BACKEND", "no")
    if backend.lower() != "no":
        raise UserError(
            f"the accelerate config asks for torch.compile (dynamo_backend {backend}): choose no there and use "
            f"engine.compile=true, which compiles the model block by block"
        )
    device = environment.get("ACCELERATE_TORCH_DEVICE")
    if device is not None:
        raise UserError(
            f"ACCELERATE_TORCH_DEVICE={device} chooses the device: unset it, and use CUDA_VISIBLE_DEVICES to choose "
            "GPUs"
        )
    if _is_true(environment, "ACCELERATE_USE_CPU") and torch.cuda.is_available():
        raise UserError(
            "the accelerate config asks for the CPU (use_cpu), but this machine has a GPU: remove it from the "
            "config, or hide the GPU with CUDA_VISIBLE_DEVICES="
        )


def _engine_settings(recipe: Recipe, environment: Mapping[str, str]) -> dict[str, str | int]:
    """Return the engine settings that the configuration names, by their keys in the recipe."""
    found: dict[str, str | int] = {}
    precision = environment.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision != "no":  # "no" is also what `accelerate launch` passes on where the user chose nothing
        if precision not in ("bf16", "fp16"):
            raise UserError(
                f"the accelerate config asks for {precision}, which is not offered: choose no, bf16 or fp16 there"
            )
        found["precision"] = precision
    if _is_true(environment, "ACCELERATE_USE_DEEPSPEED"):
        if "ACCELERATE_DEEPSPEED_CONFIG_FILE" in environment:
            raise UserError(
                "the accelerate config names a DeepSpeed JSON file, but here that is made from the recipe: remove "
                "deepspeed_config_file from the config and give engine.zero and engine.offload"
            )
        _check_clipping(recipe, environment.get("ACCELERATE_GRADIENT_CLIPPING", "auto"))
        stage = environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
        if stage not in _STAGES:
            raise UserError(f"the accelerate config says zero_stage {stage}: choose 0, 1, 2 or 3 there")
        offload = environment.get("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "none")
        if offload not in ("none", "cpu", "nvme"):
            raise UserError(
                f"the accelerate config says offload_optimizer_device {offload}: choose none, cpu or nvme there"
            )
        parameters = environment.get("ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE", "none")
        if parameters != "none" and offload == "none":
            # engine.offload moves the optimizer's state first, since parameters are the smaller part of it.
            raise UserError(
                f"the accelerate config says offload_param_device {parameters} without offload_optimizer_device: "
                f"choose none there, or offload both with engine.offload=cpu"
            )
        found |= {"zero": int(stage), "offload": offload}
    return found


def _check_clipping(recipe: Recipe, clip: str) -> None:
    """Raise UserError unless the configuration clips gradients as the recipe does."""
    try:
        agrees = clip in ("auto", "none") or float(clip) == (recipe.optimizer.clip_grad or 0.0)
    except ValueError:
        raise UserError(
            f"the accelerate config says gradient_clipping {clip}, which is not a number: remove it there"
        ) from None
    if not agrees:
        raise UserError(
            f"the accelerate config says gradient_clipping {clip}, but clipping belongs to the recipe: remove it "
            f"there, or add optimizer.clip_grad={clip}"
        )


def _is_true(environment: Mapping[str, str], name: str) -> bool:
    """Return the value of a flag; raise UserError if it is neither true nor false."""
    value = environment.get(name, "false").lower()
    if value not in (*_TRUE, *_FALSE):
        raise UserError(f"{name}={environment[name]} is neither true nor false: unset it, or set it to one of them")
    return value in _TRUE
