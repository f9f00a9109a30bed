"""Out of memory when a process starts: all processes halve the micro-batch together and do the same again.

A step's inputs follow from its number and a micro-batch decides nothing, so a step done again in smaller parts is the same step.
The difficulty is that one process may run out while the others wait for it in an exchange, for ever. So exchanges come after all
processes have agreed that nobody ran out:

- `fit_micro_batch` does a forward and backward pass of one micro-batch in every process by itself, before an engine that exchanges
  anything takes the model, with as much memory taken as that engine will hold beside the activations.
- `oom_on_any_rank` is put around the micro-batches of the first steps under plain data parallelism, which are then passed without
  exchange (`Engine.all_reduce_gradients` makes up for it), until a step went through with the optimizer's state in memory. From
  then on every step takes the same memory. ZeRO-2 and 3 exchange inside every pass, so there only the rehearsal can save a run.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.utils.memory import clear_device_cache
from torch import nn

from launcher.cut import Cut, smaller_cut
from launcher.engines.out_of_memory import is_out_of_memory
from launcher.planning.memory_model import predict_states
from launcher.planning.model_profile import parameter_sizes
from models.stochastic_depth import StochasticDepth
from recipes.errors import UserError
from recipes.schema import Recipe


class OutOfMemory(Exception):
    """A process ran out of memory; raised in all of them."""


@contextmanager
def oom_on_any_rank(accelerator: Accelerator) -> Iterator[None]:
    """Around work that exchanges nothing: if it runs out of memory in any process, `OutOfMemory` is raised in each, at its end."""
    ran_out = False
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        ran_out = True
    if accelerator.reduce(torch.tensor(float(ran_out), device=accelerator.device), reduction="sum").item():
        raise OutOfMemory


def fit_micro_batch(
    recipe: Recipe,
    model: nn.Module,
    drop_path: StochasticDepth,
    accelerator: Accelerator,
    cut: Cut,
    statistics_size: int,
) -> Cut:
    """Return `cut`, or the next one with fewer images at a time of which a micro-batch fits, on every process.

    Args:
        recipe: with the engine chosen.
        model: moved to the device; its weights, gradients and buffers are left as they are.
        statistics_size: as of `launcher.cut.cut_batch`.

    Raises:
        UserError: none fits; with what would help.
    """
    while True:
        try:
            with oom_on_any_rank(accelerator):
                _try_micro_batch(recipe, model, drop_path, accelerator, cut)
            return cut
        except OutOfMemory:
            pass
        cut = shrink_after_oom(recipe, cut, statistics_size, "before the first step", accelerator.print)


def shrink_after_oom(recipe: Recipe, cut: Cut, statistics_size: int, when: str, say) -> Cut:
    """Say what happened, let go of cached memory, and return the next smaller cut.

    Raises:
        UserError: there is none; with what would help.
    """
    clear_device_cache(garbage_collection=True)
    smaller = smaller_cut(recipe, cut, statistics_size)
    if smaller is None:
        raise oom_error(recipe, cut, statistics_size, when)
    say(
        f"out of memory {when} with micro-batch {cut.micro_batch}: goes on with {smaller.micro_batch}, the result is the same ({smaller})"
    )
    return smaller


def oom_error(recipe: Recipe, cut: Cut, statistics_size: int, when: str) -> UserError:
    """What to do where a smaller micro-batch is not possible, or comes too late for this start."""
    engine, help_ = recipe.engine, []
    if smaller := smaller_cut(recipe, cut, statistics_size):
        help_.append(f"--micro-batch {smaller.micro_batch}")
    if engine.checkpoint_activations is not True:
        help_.append("engine.checkpoint_activations=true")
    if cut.world_size > 1 and engine.zero != 3:
        help_.append(f"engine.zero={3 if engine.zero else 1}")
    if engine.offload == "none":
        help_.append("engine.offload=cpu" if engine.zero in (2, 3) else "engine.zero=2 engine.offload=cpu")
    help_.append("GPUs with more memory")
    return UserError(f"out of memory {when} with micro-batch {cut.micro_batch} ({cut}): try {', or '.join(help_)}")


def _try_micro_batch(
    recipe: Recipe, model: nn.Module, drop_path: StochasticDepth, accelerator: Accelerator, cut: Cut
) -> None:
    device, size = accelerator.device, recipe.input.size
    memory_format = (
        torch.channels_last if recipe.engine.zero == 0 else torch.preserve_format
    )  # as the engine will have it
    model.to(device, memory_format=memory_format).train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    there = sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))
    states = predict_states(recipe, parameter_sizes(model), buffers=0, cut=cut)
    beside = torch.empty(max(0, states.tensors - there), dtype=torch.uint8, device=device)
    hooks = [parameter.register_post_accumulate_grad_hook(_forget_gradient) for parameter in parameters]
    try:
        drop_path.draw(0, torch.arange(cut.micro_batch, device=device))
        images = torch.zeros(cut.micro_batch, 3, size, size, device=device).contiguous(
            memory_format=torch.channels_last
        )
        with accelerator.autocast():
            logits = model(images)
        logits.float().log_softmax(dim=-1).sum().backward()
    finally:
        for hook in hooks:
            hook.remove()
        del beside


def _forget_gradient(parameter: nn.Parameter) -> None:
    parameter.grad = None
