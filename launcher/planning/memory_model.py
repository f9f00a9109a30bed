"""The memory of one GPU while a recipe trains: what each engine holds there, at the moment when activations are largest.

Parameters, gradients, the optimizer's state and the average are float32 in every engine. With N parameters and W processes,
in units of 4N bytes; DeepSpeed's columns are what its objects were found to hold (docs/plan.md):

                      DDP     ZeRO-1     ZeRO-2        ZeRO-3
    parameters        1       1          1             1/W, and what is gathered: a quarter or less, and a layer
    master copy       -       1/W        1/W           1/W
    gradients         1       1          1/W or 2/W    1/W
    Adam's moments    2       2/W        2/W           2/W
    average (EMA)     1       1/W        1/W           1/W

Off-loading to the CPU takes away master copy, moments, average and the gradients that were added up; at stage 3 also the
parameters that are not in use.
"""

from dataclasses import dataclass, replace

from launcher.cut import Cut
from launcher.engines.deepspeed_config import NVME_BUFFERS, deepspeed_config, kept_gathered
from launcher.planning.model_profile import ModelProfile, ParameterSizes
from recipes.schema import Recipe

GIB = 2**30
_FLOAT32 = 4
# Assumed, not measured: what torch's allocator cannot use, and what CUDA, cuDNN and NCCL take for themselves.
_FRAGMENTED = 0.06
_OUTSIDE_TORCH = GIB


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU at the peak of a step; `host` is beside it, in the memory of the machine, per process."""

    parameters: int
    gradients: int
    optimizer: int  # moments, and ZeRO's master copy of the parameters
    ema: int
    activations: int
    engine: int  # what ZeRO collects before it is exchanged, and parameters that it has gathered
    host: int

    @property
    def tensors(self) -> int:
        return self.parameters + self.gradients + self.optimizer + self.ema + self.activations + self.engine

    @property
    def allowance(self) -> int:
        """For what no tensor shows."""
        return round(self.tensors * _FRAGMENTED + _OUTSIDE_TORCH)

    @property
    def peak(self) -> int:
        return self.tensors + self.allowance


def predict_memory(recipe: Recipe, profile: ModelProfile, cut: Cut) -> Memory:
    """Return the memory of a recipe whose engine is chosen (`engine.zero` and `engine.offload` are not "auto")."""
    activations = profile.activations(recipe.engine.checkpoint_activations).of(cut.micro_batch)
    return replace(predict_states(recipe, profile.sizes, profile.buffers, cut), activations=activations)


def predict_states(recipe: Recipe, sizes: ParameterSizes, buffers: int, cut: Cut) -> Memory:
    """Return the memory beside activations, of a model with such parameters and so many bytes in buffers."""
    engine, world = recipe.engine, cut.world_size
    all_ = _FLOAT32 * sizes.total
    share = all_ / world
    moments = 2 if recipe.optimizer.name == "adamw" else int(recipe.optimizer.momentum > 0)
    averages = int(recipe.ema.decay is not None)
    buffers *= 1 + averages
    if engine.zero == 0:
        return Memory(all_ + buffers, all_, moments * all_, averages * all_, activations=0, engine=0, host=0)
    kept = share if engine.zero == 3 else all_
    gradients = all_ if engine.zero == 1 else share * 2 if engine.zero == 2 and cut.accumulation > 1 else share
    optimizer, ema = (1 + moments) * share, averages * share
    collected = _FLOAT32 * deepspeed_config(recipe, cut, sizes.total)["zero_optimization"]["reduce_bucket_size"]
    gathered = _FLOAT32 * (kept_gathered(sizes.total) + sizes.largest + sizes.small) if engine.zero == 3 else 0
    host = 0.0
    if engine.offload != "none":
        # Both stages add gradients up on the CPU; what stays here until then is one bucket.
        host, gradients, optimizer, ema = share + optimizer + ema, 0, 0, 0
        if engine.offload == "nvme":
            host = (
                share + NVME_BUFFERS * share
            )  # one for each of a group's tensors, and a group may be nearly all there is
        if engine.zero == 3:
            host, kept = host + kept, 0
    return Memory(*map(round, (kept + buffers, gradients, optimizer, ema, 0, collected + gathered, host)))
