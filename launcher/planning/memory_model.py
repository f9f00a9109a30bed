"""The memory of one GPU while a recipe trains: what each engine holds at the moment when activations are largest.

Parameters, gradients, the optimizer's state and the EMA are float32 in every engine. The table is in units of 4N
bytes for N parameters, with W processes. The columns of ZeRO are what DeepSpeed's objects were found to hold
(docs/measurements/plan-accuracy.md):

                      DDP     ZeRO-1     ZeRO-2        ZeRO-3
    parameters        1       1          1             1/W, and gathered ones: at most a quarter, and one layer
    master copy       -       1/W        1/W           1/W
    gradients         1       1          1/W or 2/W    1/W
    Adam's moments    2       2/W        2/W           2/W
    EMA               1       1/W        1/W           1/W

Frozen parameters (`model.train`) count in the first row only. Offload to the CPU removes the master copy, moments, EMA
and accumulated gradients from the GPU; at stage 3 also the parameters that are not in use.
"""

from dataclasses import dataclass, replace

from launcher.cut import Cut
from launcher.engines.deepspeed_config import NVME_BUFFERS, deepspeed_config, kept_gathered
from launcher.planning.model_profile import ModelProfile, ParameterSizes
from recipes.schema import Recipe

GIB = 2**30
_FLOAT32 = 4
# Assumed, not measured: memory that torch's allocator loses to fragmentation, and what CUDA, cuDNN and NCCL allocate.
_FRAGMENTED = 0.06
_OUTSIDE_TORCH = GIB


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU at the peak of a step.

    Attributes:
        optimizer: moments, and ZeRO's master copy of the parameters.
        engine: ZeRO's communication buckets, and parameters that it has gathered.
        host: bytes per process in the memory of the machine, not on the GPU.
    """

    parameters: int
    gradients: int
    optimizer: int
    ema: int
    activations: int
    engine: int
    host: int

    @property
    def tensors(self) -> int:
        return self.parameters + self.gradients + self.optimizer + self.ema + self.activations + self.engine

    @property
    def allowance(self) -> int:
        """Bytes that belong to no tensor."""
        return round(self.tensors * _FRAGMENTED + _OUTSIDE_TORCH)

    @property
    def peak(self) -> int:
        return self.tensors + self.allowance


def predict_memory(recipe: Recipe, profile: ModelProfile, cut: Cut) -> Memory:
    """Return the memory of a step; the engine settings of the recipe must not be "auto", `precision` excepted."""
    checkpointing = recipe.engine.checkpoint_activations is True
    activations = profile.pass_of(checkpointing).bytes_for(cut.micro_batch)
    return replace(predict_states(recipe, profile.sizes, profile.buffers, cut), activations=activations)


def predict_states(recipe: Recipe, sizes: ParameterSizes, buffers: int, cut: Cut) -> Memory:
    """Return the memory without activations of a model with these parameters and `buffers` bytes of buffers."""
    engine, world = recipe.engine, cut.world_size
    full, trained = _FLOAT32 * sizes.total, _FLOAT32 * sizes.trained
    shard = trained / world
    moments = moments_per_parameter(recipe)
    averages = int(recipe.ema.decay is not None)
    buffers *= 1 + averages  # BatchNorm's running averages have an EMA of their own
    if engine.zero == 0:
        return Memory(full + buffers, trained, moments * trained, averages * trained, activations=0, engine=0, host=0)
    kept = full / world if engine.zero == 3 else full
    # While it accumulates, stage 2 holds two shards: the sum so far, and the gradient that is added to it.
    gradients = trained if engine.zero == 1 else shard * 2 if engine.zero == 2 and cut.accumulation > 1 else shard
    optimizer, ema = (1 + moments) * shard, averages * shard
    bucket = _FLOAT32 * deepspeed_config(recipe, cut, sizes.total)["zero_optimization"]["reduce_bucket_size"]
    gathered = _FLOAT32 * (kept_gathered(sizes.total) + sizes.largest + sizes.small) if engine.zero == 3 else 0
    host = 0.0
    if engine.offload != "none":
        # Both stages accumulate gradients on the CPU; only the bucket on its way there is on the GPU.
        host, gradients, optimizer, ema = shard + optimizer + ema, 0, 0, 0
        if engine.offload == "nvme":
            # Each buffer is as large as the largest parameter group, which may hold nearly all parameters.
            host = shard + NVME_BUFFERS * shard
        if engine.zero == 3:
            host, kept = host + kept, 0
    return Memory(*map(round, (kept + buffers, gradients, optimizer, ema, 0, bucket + gathered, host)))


def moments_per_parameter(recipe: Recipe) -> int:
    """Return how many values of its own the optimizer keeps for each parameter; 2 is assumed of ``timm:NAME``."""
    if recipe.optimizer.name in ("sgd", "lars"):
        return int(recipe.optimizer.momentum > 0)
    return 1 if recipe.optimizer.name == "lion" else 2
