"""The time of one optimizer step on given GPUs: computing, communication and, with offload, the CPU's part.

The constants below are assumptions. The output of `bigbatch plan` names those that matter for its times.
"""

from dataclasses import dataclass

from launcher.cut import Cut
from launcher.planning.gpus import Gpu
from launcher.planning.model_profile import ModelProfile
from launcher.planning.speeds import Measurement
from launcher.workers import loader_processes
from recipes.schema import Recipe

NETWORK = 25e9  # bytes/s of a node's network
CPUS_PER_GPU = 8
_SECONDS_PER_OPERATION = 10e-6  # the least time in which torch starts an operation; small models are bound by it
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
    passes = 4 if engine.checkpoint_activations else 3  # a backward pass costs as much as two forward passes
    tflops = hardware.gpu.tflops[engine.precision].value
    arithmetic = 2 * profile.multiply_adds * passes * cut.micro_batch / (tflops * 1e12)
    operations = profile.activations_of(engine.checkpoint_activations is True).operations
    micro_batch = max(arithmetic, operations * _SECONDS_PER_OPERATION)
    communication, hidden = _communication_seconds(recipe, profile, hardware, cut), 0.0
    if engine.zero == 0:
        # DDP all-reduces gradients while the last backward pass still runs, which is two of its `passes`.
        hidden = min(communication, 2 / passes * micro_batch)
    return cut.accumulation * micro_batch + communication - hidden + _offload_seconds(recipe, profile, hardware)


def _communication_seconds(recipe: Recipe, profile: ModelProfile, hardware: Hardware, cut: Cut) -> float:
    """Return the seconds of a step's ring collectives in float32.

    Each reduce-scatter or all-gather moves all parameters once past every node, or past every GPU on a single node.
    """
    if hardware.gpus == 1:
        return 0.0
    rounds: dict[int | str, int] = {
        0: 2,  # reduce-scatter and all-gather of the gradients, once a step
        1: 3,  # the same (DeepSpeed all-reduces its buckets), then an all-gather of the updated parameters
        2: 1 + 2 * cut.accumulation,  # the same, but gradients after every micro-batch
        3: 3 * cut.accumulation,  # parameters for the forward and the backward pass, and gradients, every micro-batch
    }
    bandwidth = hardware.network if hardware.nodes > 1 else hardware.gpu.link_gb_per_second * 1e9
    return rounds[recipe.engine.zero] * 4 * profile.parameters / bandwidth


def _offload_seconds(recipe: Recipe, profile: ModelProfile, hardware: Hardware) -> float:
    """Return the seconds in which gradients go to the CPU, the CPU updates, and parameters come back."""
    if recipe.engine.offload == "none":
        return 0.0
    shard = 4 * profile.parameters / hardware.gpus
    on_node = shard * min(hardware.gpus, hardware.per_node)
    update = 10 * on_node / _HOST_MEMORY  # AdamW with EMA reads and writes four tensors and reads two more
    # Weights, two moments and the EMA are read from the disk and written back.
    disk = 8 * on_node / _DISK if recipe.engine.offload == "nvme" else 0.0
    return 2 * shard / _HOST_LINK + update + disk
