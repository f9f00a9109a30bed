"""The time of one optimizer step on given GPUs: computing, communication and, with offload, the CPU's part.

Computing is a roofline over the traced operations (Williams, Waterman and Patterson, 2009): each takes as long as its
arithmetic at the GPU's rate or its bytes at the GPU's bandwidth, whichever is longer. The constants below are
assumptions. The output of `bigbatch plan` names those that matter for its times.
"""

from dataclasses import dataclass

from launcher.cut import Cut
from launcher.planning.gpus import Gpu
from launcher.planning.memory_model import moments_per_parameter
from launcher.planning.model_profile import ModelProfile
from launcher.planning.speeds import Measurement, Rates
from launcher.workers import loader_processes
from recipes.schema import Recipe

NETWORK = 25e9  # bytes/s of a node's network
CPUS_PER_GPU = 8
SECONDS_PER_OPERATION = 10e-6  # the least time in which torch starts an operation; small models are bound by it
_HOST_LINK = 20e9  # bytes/s between a GPU and the memory of its node
_DISK = 3e9  # bytes/s of a node's disk
_HOST_MEMORY = 100e9  # bytes/s of a node's memory, shared by its GPUs


@dataclass(frozen=True)
class Hardware:
    """The GPUs, network and CPUs that a plan is made for.

    Attributes:
        gpus: number of GPUs on all nodes; each runs one process.
        per_node: GPUs of one node.
        memory: bytes of one GPU that training may use.
        images_per_core: images/s that one loader process prepares.
        network: bytes/s of a node's network.
        cpus_per_gpu: CPU cores beside each GPU; all but one run a loader process.
    """

    gpus: int
    per_node: int
    memory: int
    gpu: Gpu
    images_per_core: Measurement
    network: float = NETWORK
    cpus_per_gpu: int = CPUS_PER_GPU

    @property
    def nodes(self) -> int:
        return -(-self.gpus // self.per_node)

    @property
    def images_per_second(self) -> float:
        """Images/s that all loader processes prepare together."""
        return self.gpus * loader_processes(self.cpus_per_gpu) * self.images_per_core.value


def gpu_seconds(recipe: Recipe, profile: ModelProfile, hardware: Hardware, cut: Cut) -> float:
    """Return the seconds of an optimizer step whose images are ready in time; the recipe's engine must be settled."""
    engine = recipe.engine
    checkpointing = engine.checkpoint_activations is True
    rates = hardware.gpu.rates[engine.precision]
    one_pass = profile.pass_of(checkpointing).seconds(rates, cut.micro_batch, engine.compile, SECONDS_PER_OPERATION)
    communication, hidden = _communication_seconds(recipe, profile, hardware, cut), 0.0
    if engine.zero == 0:
        # DDP all-reduces gradients while the last backward pass runs, which takes twice as long as a forward pass.
        # With checkpointing, two forward passes stand beside it.
        hidden = min(communication, 2 / (4 if checkpointing else 3) * one_pass)
    if engine.offload == "none":
        update = update_seconds(recipe, profile, rates, hardware.gpus if engine.zero else 1)
    else:
        update = _offload_seconds(recipe, profile, hardware)
    return cut.accumulation * one_pass + communication - hidden + update


def update_seconds(recipe: Recipe, profile: ModelProfile, rates: Rates, shards: int) -> float:
    """Return the seconds in which a GPU updates its share, one of `shards`, of the parameters that train.

    Their gradients, optimizer state and EMA count too. Frozen parameters (`model.train`) cost nothing.
    """
    averages = int(recipe.ema.decay is not None)
    # Parameters and moments are read and written, gradients read; the EMA is read and written beside the parameters.
    passes = 3 + 2 * moments_per_parameter(recipe) + 3 * averages
    return passes * 4 * profile.sizes.trained / shards / rates.bytes_per_second


def _communication_seconds(recipe: Recipe, profile: ModelProfile, hardware: Hardware, cut: Cut) -> float:
    """Return the seconds of a step's ring collectives in float32.

    Each reduce-scatter or all-gather moves its tensors once past every node, or past every GPU on a single node. Frozen
    parameters (`model.train`) have no gradients and do not change, so that only ZeRO-3 gathers them.
    """
    if hardware.gpus == 1:
        return 0.0
    trained = 4 * profile.sizes.trained
    sent: dict[int | str, int] = {
        0: 2 * trained,  # reduce-scatter and all-gather of the gradients, once a step
        1: 3 * trained,  # the same (DeepSpeed all-reduces its buckets), then an all-gather of the updated parameters
        2: (1 + 2 * cut.accumulation) * trained,  # the same, but gradients after every micro-batch
        # Parameters for the forward and the backward pass, and gradients, every micro-batch.
        3: cut.accumulation * (2 * 4 * profile.parameters + trained),
    }
    bandwidth = hardware.network if hardware.nodes > 1 else hardware.gpu.link_gb_per_second * 1e9
    return sent[recipe.engine.zero] / bandwidth


def _offload_seconds(recipe: Recipe, profile: ModelProfile, hardware: Hardware) -> float:
    """Return the seconds in which gradients go to the CPU, the CPU updates, and parameters come back."""
    shard = 4 * profile.sizes.trained / hardware.gpus
    on_node = shard * min(hardware.gpus, hardware.per_node)
    update = 10 * on_node / _HOST_MEMORY  # AdamW with EMA reads and writes four tensors and reads two more
    # Weights, two moments and the EMA are read from the disk and written back.
    disk = 8 * on_node / _DISK if recipe.engine.offload == "nvme" else 0.0
    return 2 * shard / _HOST_LINK + update + disk
