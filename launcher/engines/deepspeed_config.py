"""DeepSpeed's configuration, from the recipe and the cut of its batch."""

from typing import Any

from launcher.cut import Cut
from recipes.local_paths import local_path
from recipes.schema import Recipe

_BUCKET = 50_000_000  # elements reduced at once; DeepSpeed's default of 500 million takes 2 GB of each GPU in float32
# Elements that stage 3 keeps gathered. With DeepSpeed's default of a billion, every model here would stay gathered.
_GATHERED = 100_000_000

NVME_BUFFERS = 5  # one each for weights, gradient, two moments and EMA
KEPT_WHOLE = 100_000  # stage 3 keeps parameters with fewer elements whole on every rank


def deepspeed_config(recipe: Recipe, cut: Cut, parameters: int) -> dict[str, Any]:
    """Return the complete configuration for `deepspeed.initialize`; nothing in it is "auto".

    It does not set the precision. As under DDP, the forward pass runs under torch's autocast over float32 parameters,
    and gradients are reduced in float32. So the engines differ in where tensors are, not in their values.

    Args:
        recipe: with its engine chosen.
        cut: how the global batch is cut.
        parameters: number of elements of all parameters.
    """
    engine, bucket = recipe.engine, min(_BUCKET, parameters + parameters % 2)
    zero: dict[str, object] = {
        "stage": engine.zero,
        "contiguous_gradients": True,
        "overlap_comm": engine.zero == 3,
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
    }
    if engine.zero == 3:
        kept = kept_gathered(parameters)
        # Stage 3 frees a parameter that is not reused within `kept` elements, and never gathers more than that ahead.
        zero |= {
            "stage3_max_reuse_distance": kept,
            "stage3_max_live_parameters": kept,
            "stage3_prefetch_bucket_size": kept // 4,
        }
        zero["stage3_param_persistence_threshold"] = KEPT_WHOLE
    if engine.offload != "none":
        place: dict[str, object] = {"device": engine.offload, "pin_memory": True}
        if engine.offload == "nvme":
            place |= {"nvme_path": engine.nvme_path and str(local_path(engine.nvme_path)), "buffer_count": NVME_BUFFERS}
        zero["offload_optimizer"] = place
        if engine.zero == 3:
            # Parameters are a fifth of the state, and on a disk they would be read twice in every micro-batch.
            zero["offload_param"] = {"device": "cpu", "pin_memory": True}
    return {
        "train_batch_size": cut.world_size * cut.share,
        "train_micro_batch_size_per_gpu": cut.micro_batch,
        "gradient_accumulation_steps": cut.accumulation,
        "gradient_clipping": recipe.optimizer.clip_grad or 0.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,  # torch's fused AdamW, which carries the EMA in its state
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
    }


def kept_gathered(parameters: int) -> int:
    """Return how many elements stage 3 keeps gathered besides the parameters in use.

    It is at most a quarter of the model: a small model would otherwise stay gathered as a whole.
    """
    return min(_GATHERED, parameters // 4)
