"""DeepSpeed's configuration, from the recipe and the cut of its batch."""

from launcher.cut import Cut
from recipes.schema import Recipe

_BUCKET = 50_000_000  # elements exchanged at once; DeepSpeed's own 500 million would take 2 GB of each GPU in float32
_GATHERED = 100_000_000  # of parameters that stage 3 keeps gathered; DeepSpeed's own billion is all of any model here

NVME_BUFFERS = 5  # weights, gradient, two moments and average at once
KEPT_WHOLE = 100_000  # elements under which stage 3 keeps a parameter whole in every process


def deepspeed_config(recipe: Recipe, cut: Cut, parameters: int) -> dict:
    """Return what `deepspeed.initialize` takes as its JSON, complete: nothing is left to "auto".

    `parameters` is the number of elements of all parameters.

    Precision is not in it: the forward pass runs under torch's autocast, as with plain data parallelism, over float32
    parameters, and gradients are exchanged in float32. So the engines differ in where things are, not in numbers.
    """
    engine, bucket = recipe.engine, min(_BUCKET, parameters + parameters % 2)
    zero: dict = {
        "stage": engine.zero,
        "contiguous_gradients": True,
        "overlap_comm": engine.zero == 3,
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
    }
    if engine.zero == 3:
        kept = kept_gathered(parameters)
        # Parameters are let go of unless used again within so many elements; ahead of use no more than that are gathered.
        zero |= {
            "stage3_max_reuse_distance": kept,
            "stage3_max_live_parameters": kept,
            "stage3_prefetch_bucket_size": kept // 4,
        }
        zero["stage3_param_persistence_threshold"] = KEPT_WHOLE
    if engine.offload != "none":
        place = {"device": engine.offload, "pin_memory": True}
        if engine.offload == "nvme":
            place |= {"nvme_path": engine.nvme_path, "buffer_count": NVME_BUFFERS}
        zero["offload_optimizer"] = place
        if engine.zero == 3:
            # Parameters are a fifth of the state; on a disk they would have to be read twice a micro-batch.
            zero["offload_param"] = {"device": "cpu", "pin_memory": True}
    return {
        "train_batch_size": cut.world_size * cut.share,
        "train_micro_batch_size_per_gpu": cut.micro_batch,
        "gradient_accumulation_steps": cut.accumulation,
        "gradient_clipping": recipe.optimizer.clip_grad or 0.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,  # torch's fused AdamW, which carries the average of the weights in its state
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
    }


def kept_gathered(parameters: int) -> int:
    """Elements that stage 3 keeps gathered, beside the parameters in use: a quarter of a small model, or it would share nothing out."""
    return min(_GATHERED, parameters // 4)
