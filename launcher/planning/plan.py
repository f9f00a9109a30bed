"""The ways to cut a recipe over GPUs: does each fit, how long does a step take, and which is best.

For every ZeRO stage, with and without off-loading and activation checkpointing, the option is the largest micro-batch that fits
and does not cost time by padding the batch. Time is arithmetic on stated assumptions; memory is `launcher.planning.memory_model`.
"""

import math
from dataclasses import dataclass, replace

from launcher.cut import Cut, cut_batch, unit_of_cut
from launcher.planning.engine_choice import with_default_engine
from launcher.planning.gpus import Gpu
from launcher.planning.memory_model import GIB, Memory, predict_memory
from launcher.planning.model_profile import ModelProfile
from launcher.planning.speeds import Measurement
from launcher.workers import loader_processes
from recipes.errors import UserError
from recipes.schema import Recipe

# Assumed, and said so where times are printed.
NETWORK = 25e9
CPUS_PER_GPU = 8
_SECONDS_PER_OPERATION = 10e-6  # torch starts an operation in no less
_HOST_LINK = 20e9  # bytes/s between a GPU and the memory of its machine
_DISK = 3e9  # bytes/s of a node's disk
_HOST_MEMORY = 100e9  # bytes/s of that memory, shared by the GPUs of a node
_PADDING = 1.01  # a larger micro-batch may cost so much of the step by padding
_ABOUT_AS_FAST = 1.03  # a simpler way is preferred up to here
_CHOICES = [(0, "none"), (1, "none"), (2, "none"), (3, "none"), (2, "cpu"), (3, "cpu"), (3, "nvme")]  # simplest first
_MORE_GPUS = 64  # times as many are tried where nothing fits


@dataclass(frozen=True)
class Hardware:
    """The hardware of a plan; `network` is bytes/s of one node's network; CPUs prepare images."""

    gpus: int
    per_node: int
    memory: int  # bytes of one GPU
    gpu: Gpu
    images_per_core: Measurement
    network: float = NETWORK
    cpus_per_gpu: int = CPUS_PER_GPU

    @property
    def nodes(self) -> int:
        return -(-self.gpus // self.per_node)

    @property
    def images_per_second(self) -> float:
        """What all loader processes can prepare."""
        return self.gpus * loader_processes(self.cpus_per_gpu) * self.images_per_core.value


@dataclass(frozen=True)
class PlanOption:
    """One way to run the recipe."""

    recipe: Recipe  # with the engine chosen
    cut: Cut
    memory: Memory
    gpu_seconds: float  # of a step, if images are ready in time
    reading_seconds: float  # to prepare the images of a step, meanwhile
    fits: bool

    @property
    def step_seconds(self) -> float:
        """Whichever takes longer."""
        return max(self.gpu_seconds, self.reading_seconds)

    @property
    def engine(self) -> str:
        engine = self.recipe.engine
        title = f"ZeRO-{engine.zero}" if engine.zero else "DDP"
        title += f" +{engine.offload}" if engine.offload != "none" else ""
        return title + (" +checkpointing" if engine.checkpoint_activations else "")


def feasible_options(
    recipe: Recipe, profile: ModelProfile, hardware: Hardware, micro_batch: int | None = None
) -> list[PlanOption]:
    """Return a option for every engine that fits, simplest engine first; empty where none does.

    Args:
        recipe: what its `engine` section does not leave to "auto" is kept.
        micro_batch: the only one to consider.

    Raises:
        UserError: the batch cannot be cut over so many GPUs, or what the recipe says of the engine is impossible.
    """
    options = (_best_cut(variant, profile, hardware, micro_batch) for variant in _variants(recipe, profile, hardware))
    return [option for option in options if option.fits]


def recommended(options: list[PlanOption]) -> PlanOption:
    """The fastest option, or the simplest among those that are about as fast."""
    fastest = min(option.step_seconds for option in options)
    return next(option for option in options if option.step_seconds <= fastest * _ABOUT_AS_FAST)


def reason(chosen: PlanOption, options: list[PlanOption]) -> str:
    """Why, in one sentence."""
    simpler = options[: options.index(chosen)]
    if chosen is options[0] and chosen.engine == "DDP":
        return f"{chosen.engine} fits with {chosen.cut.micro_batch} images at a time, and nothing else is more than 3% faster."
    if simpler:
        gain = min(option.step_seconds for option in simpler) / chosen.step_seconds
        return f"{chosen.engine} takes {chosen.cut.micro_batch} images at a time and is {gain:.2f}× as fast as what is simpler and fits."
    return f"{chosen.engine} is the simplest way that fits, and no other is more than 3% faster."


def nearest(recipe: Recipe, profile: ModelProfile, hardware: Hardware, micro_batch: int | None = None) -> str:
    """Where nothing fits: what comes nearest, and what would make it fit, in one sentence."""
    variants = _variants(recipe, profile, hardware)
    least = min(
        (_option(v, profile, hardware, _cuts(v, profile, hardware, micro_batch)[-1]) for v in variants),
        key=lambda option: option.memory.peak,
    )
    needed = math.ceil(least.memory.peak / GIB * 10) / 10
    ways = ["use GPUs of at least that"]
    open_ = _left_open(recipe)
    if options := feasible_options(open_, profile, hardware):
        best = recommended(options)
        ways = [
            f"leave micro-batch and engine to auto, which takes {best.engine} with micro-batch {best.cut.micro_batch}",
            *ways,
        ]
    elif more := _enough_gpus(open_, profile, hardware):
        ways.append(f"take {more[0]} of these, where {more[1].engine} fits")
    return (
        f"{recipe.name} does not fit {hardware.gpus} GPUs of {hardware.memory / GIB:.3g} GiB in any way"
        f"{' that you left open' if open_ != recipe or micro_batch else ''}; nearest is {least.engine} with micro-batch "
        f"{least.cut.micro_batch}, which needs {needed:.1f} GiB a GPU: {', or '.join(ways)}"
    )


def _left_open(recipe: Recipe) -> Recipe:
    return recipe.variant(engine={"zero": "auto", "offload": "auto", "checkpoint_activations": "auto"})


def _enough_gpus(recipe: Recipe, profile: ModelProfile, hardware: Hardware) -> tuple[int, PlanOption] | None:
    """The fewest doublings of the GPUs after which something fits, and what."""
    gpus = hardware.gpus
    while gpus < _MORE_GPUS * hardware.gpus:
        gpus *= 2
        try:
            options = feasible_options(recipe, profile, replace(hardware, gpus=gpus))
        except UserError:  # the batch has not so many parts
            return None
        if options:
            return gpus, recommended(options)
    return None


def _variants(recipe: Recipe, profile: ModelProfile, hardware: Hardware) -> list[Recipe]:
    """The recipe under every engine that its own `engine` section leaves open; simplest first.

    Raises:
        UserError: there is none, as what it says is impossible.
    """
    engine = recipe.engine
    found = []
    for checkpointing in (False, True):
        for zero, offload in _CHOICES:
            if engine.zero not in ("auto", zero) or engine.offload not in ("auto", offload):
                continue
            if (
                checkpointing
                and profile.recomputed is None
                or engine.checkpoint_activations not in ("auto", checkpointing)
            ):
                continue
            if zero and engine.zero == "auto" and hardware.gpus == 1 and offload == "none":
                continue  # nobody to share with
            if offload == "nvme" and engine.nvme_path is None or engine.compile and zero == 3:
                continue  # `launcher.planning.engine_choice` says why
            chosen = {"zero": zero, "offload": offload, "checkpoint_activations": checkpointing}
            found.append(recipe.variant(engine=chosen))
    if not found:
        with_default_engine(recipe)  # which says what is wrong, in most cases
        raise UserError(
            f"engine.zero={engine.zero}, engine.offload={engine.offload} and engine.checkpoint_activations={engine.checkpoint_activations} "
            f"are not possible together with {recipe.model.name}: leave one of them out"
        )
    return found


def _cuts(recipe: Recipe, profile: ModelProfile, hardware: Hardware, micro_batch: int | None) -> list[Cut]:
    """Fewest accumulation steps first."""
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


def _best_cut(recipe: Recipe, profile: ModelProfile, hardware: Hardware, micro_batch: int | None) -> PlanOption:
    """The option of the largest micro-batch that fits, of those about as fast as the fastest; the smallest where none fits."""
    options = [_option(recipe, profile, hardware, cut) for cut in _cuts(recipe, profile, hardware, micro_batch)]
    fitting = [option for option in options if option.fits]
    if not fitting:
        return options[-1]
    fastest = min(option.step_seconds for option in fitting)
    return next(option for option in fitting if option.step_seconds <= fastest * _PADDING)


def _option(recipe: Recipe, profile: ModelProfile, hardware: Hardware, cut: Cut) -> PlanOption:
    memory = predict_memory(recipe, profile, cut)
    reading = recipe.batch.global_ / hardware.images_per_second
    return PlanOption(
        recipe, cut, memory, _gpu_seconds(recipe, profile, hardware, cut), reading, memory.peak <= hardware.memory
    )


def _gpu_seconds(recipe: Recipe, profile: ModelProfile, hardware: Hardware, cut: Cut) -> float:
    """Predicted seconds of an optimizer step whose images are ready in time."""
    engine = recipe.engine
    passes = 4 if engine.checkpoint_activations else 3  # a backward pass costs two forward passes
    tflops = hardware.gpu.tflops[engine.precision].value
    arithmetic = 2 * profile.multiply_adds * passes * cut.micro_batch / (tflops * 1e12)
    pass_ = max(arithmetic, profile.activations(engine.checkpoint_activations).operations * _SECONDS_PER_OPERATION)
    exchange, hidden = _exchange_seconds(recipe, profile, hardware, cut), 0.0
    if engine.zero == 0:
        hidden = min(exchange, 2 / passes * pass_)  # DDP exchanges while the last backward pass goes on
    return cut.accumulation * pass_ + exchange - hidden + _host_seconds(recipe, profile, hardware)


def _exchange_seconds(recipe: Recipe, profile: ModelProfile, hardware: Hardware, cut: Cut) -> float:
    """Ring exchanges in float32: each of them moves all parameters once past every node (or GPU, where there is one node)."""
    if hardware.gpus == 1:
        return 0.0
    rounds = {
        0: 2,  # reduce-scatter and all-gather of gradients, once a step
        1: 3,  # gradients as before (DeepSpeed all-reduces its buckets), then the updated parameters
        2: 1 + 2 * cut.accumulation,  # the same, but gradients after every micro-batch
        3: 3 * cut.accumulation,  # parameters for each way, and gradients, every micro-batch
    }[recipe.engine.zero]
    speed = hardware.network if hardware.nodes > 1 else hardware.gpu.links * 1e9
    return rounds * 4 * profile.parameters / speed


def _host_seconds(recipe: Recipe, profile: ModelProfile, hardware: Hardware) -> float:
    """Off-loading: gradients go to the CPU, which updates, and parameters come back."""
    if recipe.engine.offload == "none":
        return 0.0
    share = 4 * profile.parameters / hardware.gpus
    of_node = share * min(hardware.gpus, hardware.per_node)
    update = 10 * of_node / _HOST_MEMORY  # four tensors read and written, two read
    disk = (
        8 * of_node / _DISK if recipe.engine.offload == "nvme" else 0.0
    )  # weights, two moments and average, to and fro
    return 2 * share / _HOST_LINK + update + disk
