"""The ways to run a recipe on given GPUs: which fit, how long a step takes with each, and which is best.

There is one option per ZeRO stage, with and without offload and activation checkpointing. Its micro-batch is the
largest that fits and does not lose time to padding. `memory_model` predicts the memory, `time_model` the time.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from launcher.cut import Cut, cut_batch, unit_of_cut
from launcher.planning.engine_rules import can_shard_optimizer, with_default_engine
from launcher.planning.gpus import gpu_count
from launcher.planning.memory_model import GIB, Memory, predict_memory
from launcher.planning.model_profile import ModelProfile
from launcher.planning.time_model import Hardware, gpu_seconds
from recipes.errors import UserError
from recipes.schema import Recipe

_PADDING_TOLERANCE = 1.01  # padding may cost a larger micro-batch this factor in time
_SPEED_TOLERANCE = 1.03  # a simpler engine is recommended if it takes at most this factor more time
# Stage and offload device, simplest first.
_ENGINES = [(0, "none"), (1, "none"), (2, "none"), (3, "none"), (2, "cpu"), (3, "cpu"), (3, "nvme")]
_MORE_GPUS = 64  # up to this factor more GPUs are tried where nothing fits


@dataclass(frozen=True)
class PlanOption:
    """One way to run the recipe.

    Attributes:
        recipe: with the engine of this option.
        gpu_seconds: of an optimizer step whose images are ready in time.
        reading_seconds: in which the loader processes prepare the images of a step, at the same time.
        fits: whether the memory is enough.
    """

    recipe: Recipe
    cut: Cut
    memory: Memory
    gpu_seconds: float
    reading_seconds: float
    fits: bool

    @property
    def step_seconds(self) -> float:
        """The slower of GPUs and loader processes, which work at the same time."""
        return max(self.gpu_seconds, self.reading_seconds)

    @property
    def engine(self) -> str:
        """The engine's title, e.g. "ZeRO-2 +cpu"."""
        engine = self.recipe.engine
        title = f"ZeRO-{engine.zero}" if engine.zero else "DDP"
        title += f" +{engine.offload}" if engine.offload != "none" else ""
        return title + (" +checkpointing" if engine.checkpoint_activations else "")


def feasible_options(
    recipe: Recipe, profile: ModelProfile, hardware: Hardware, micro_batch: int | None = None
) -> list[PlanOption]:
    """Return one option per engine that fits, the simplest first; an empty list where none fits.

    Args:
        recipe: an engine setting other than "auto" is kept.
        micro_batch: images per forward pass; None: the best of all.

    Raises:
        UserError: the batch cannot be cut over so many GPUs, or the engine settings are impossible.
    """
    variants = _engine_variants(recipe, profile, hardware)
    options = (_best_micro_batch(variant, profile, hardware, micro_batch) for variant in variants)
    return [option for option in options if option.fits]


def recommend(options: Sequence[PlanOption]) -> PlanOption:
    """Return the simplest of the options that take at most 3% longer than the fastest.

    Raises:
        UserError: there are no options.
    """
    if not options:
        raise UserError("there is no option to recommend: `plan_options` says why nothing fits")
    fastest = min(option.step_seconds for option in options)
    return next(option for option in options if option.step_seconds <= fastest * _SPEED_TOLERANCE)


def explain_recommendation(chosen: PlanOption, options: Sequence[PlanOption]) -> str:
    """Return one sentence that says why `recommend` chose this option."""
    simpler = options[: options.index(chosen)]
    if simpler:
        gain = min(option.step_seconds for option in simpler) / chosen.step_seconds
        return (
            f"{chosen.engine} takes {chosen.cut.micro_batch} images at a time and is {gain:.2f}× as fast as the "
            f"simpler engines that fit."
        )
    if chosen.engine == "DDP":
        return (
            f"{chosen.engine} fits with {chosen.cut.micro_batch} images at a time, "
            f"and no other engine is more than 3% faster."
        )
    return f"{chosen.engine} is the simplest engine that fits, and no other is more than 3% faster."


def explain_no_fit(recipe: Recipe, profile: ModelProfile, hardware: Hardware, micro_batch: int | None = None) -> str:
    """Return one sentence that names the option that needs the least memory, and what would make one fit."""
    variants = _engine_variants(recipe, profile, hardware)
    # The last cut has the smallest micro-batch.
    smallest = [(variant, _cuts(variant, profile, hardware, micro_batch)[-1]) for variant in variants]
    least = min(
        (_option(variant, profile, hardware, cut) for variant, cut in smallest), key=lambda option: option.memory.peak
    )
    needed = math.ceil(least.memory.peak / GIB * 10) / 10  # rounded up, so that GPUs of this size do fit
    remedies = ["use GPUs of at least that"]
    open_recipe = recipe.variant(engine={"zero": "auto", "offload": "auto", "checkpoint_activations": "auto"})
    if options := feasible_options(open_recipe, profile, hardware):
        best = recommend(options)
        auto = (
            f"leave micro-batch and engine to auto, which takes {best.engine} with micro-batch {best.cut.micro_batch}"
        )
        remedies.insert(0, auto)
    elif more := _fewest_gpus(open_recipe, profile, hardware):
        remedies.append(f"take {more[0]} of these, where {more[1].engine} fits")
    allowed = " that you allow" if open_recipe != recipe or micro_batch else ""
    return (
        f"{recipe.name} does not fit {gpu_count(hardware.gpus)} of {hardware.memory / GIB:.3g} GiB in any way"
        f"{allowed}; nearest is {least.engine} with micro-batch {least.cut.micro_batch}, which needs {needed:.1f} GiB "
        f"per GPU: {', or '.join(remedies)}"
    )


def _fewest_gpus(recipe: Recipe, profile: ModelProfile, hardware: Hardware) -> tuple[int, PlanOption] | None:
    """Double the GPUs until an option fits; return their number and the option, or None."""
    gpus = hardware.gpus
    while gpus < _MORE_GPUS * hardware.gpus:
        gpus *= 2
        try:
            options = feasible_options(recipe, profile, replace(hardware, gpus=gpus))
        except UserError:  # the batch has fewer parts than there are GPUs
            return None
        if options:
            return gpus, recommend(options)
    return None


def _engine_variants(recipe: Recipe, profile: ModelProfile, hardware: Hardware) -> list[Recipe]:
    """Return the recipe under every engine that its own `engine` section allows, the simplest first.

    Raises:
        UserError: it allows none.
    """
    engine = recipe.engine
    found = []
    for checkpointing in (False, True):
        for zero, offload in _ENGINES:
            if zero and not can_shard_optimizer(recipe):
                continue  # see `engine_rules.check_engine`
            if engine.zero not in ("auto", zero) or engine.offload not in ("auto", offload):
                continue
            if engine.checkpoint_activations not in ("auto", checkpointing):
                continue
            if checkpointing and profile.checkpointed_pass is None:
                continue
            if zero and engine.zero == "auto" and hardware.gpus == 1 and offload == "none":
                continue  # one GPU has no other to shard the states with
            if offload == "nvme" and engine.nvme_path is None or engine.compile and zero == 3:
                continue  # see `engine_rules.check_engine`
            found.append(
                recipe.variant(engine={"zero": zero, "offload": offload, "checkpoint_activations": checkpointing})
            )
    if not found:
        with_default_engine(recipe)  # its message is more precise, where it raises
        raise UserError(
            f"engine.zero={engine.zero}, engine.offload={engine.offload} and "
            f"engine.checkpoint_activations={engine.checkpoint_activations} are not possible together with "
            f"{recipe.model.name}: leave one of them out"
        )
    return found


def _cuts(recipe: Recipe, profile: ModelProfile, hardware: Hardware, micro_batch: int | None) -> list[Cut]:
    """Return the possible cuts, those with the fewest accumulation steps first."""
    unit = unit_of_cut(recipe, profile.has_batch_norm)
    largest = recipe.batch.global_
    if micro_batch is not None:
        return [cut_batch(recipe, hardware.gpus, micro_batch, largest, unit)]
    cuts: list[Cut] = []
    while True:
        cut = cut_batch(recipe, hardware.gpus, None, largest, unit)
        cuts.append(cut)
        if cut.micro_batch == unit:
            return cuts
        largest = cut.micro_batch - 1


def _best_micro_batch(recipe: Recipe, profile: ModelProfile, hardware: Hardware, micro_batch: int | None) -> PlanOption:
    """Return the option with the largest micro-batch that fits and is about the fastest; if none fits, the smallest."""
    options = [_option(recipe, profile, hardware, cut) for cut in _cuts(recipe, profile, hardware, micro_batch)]
    fitting = [option for option in options if option.fits]
    if not fitting:
        return options[-1]
    fastest = min(option.step_seconds for option in fitting)
    return next(option for option in fitting if option.step_seconds <= fastest * _PADDING_TOLERANCE)


def _option(recipe: Recipe, profile: ModelProfile, hardware: Hardware, cut: Cut) -> PlanOption:
    memory = predict_memory(recipe, profile, cut)
    return PlanOption(
        recipe,
        cut,
        memory,
        gpu_seconds=gpu_seconds(recipe, profile, hardware, cut),
        reading_seconds=recipe.batch.global_ / hardware.images_per_second,
        fits=memory.peak <= hardware.memory,
    )
