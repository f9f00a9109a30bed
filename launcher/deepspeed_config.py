"""DeepSpeed's configuration, from the recipe and the cut of its batch."""

from launcher.cut import Cut
from recipes.schema import Recipe

_BUCKET = 50_000_000  # elements exchanged at once; DeepSpeed's own 500 million would take 2 GB of each GPU in float32


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
    if engine.offload != "none":
        place = {"device": engine.offload, "pin_memory": True}
        if engine.offload == "nvme":
            place |= {"nvme_path": engine.nvme_path, "buffer_count": 5}  # weights, gradient, two moments and average at once
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
