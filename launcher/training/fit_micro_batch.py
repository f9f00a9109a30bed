"""Handles out-of-memory errors at the start of a run: all ranks halve the micro-batch together and repeat the step.

The inputs of a step depend on its number alone, not on the micro-batch. So a step that is repeated with a smaller
micro-batch is the same step. But one rank may run out of memory while the others wait for it in an all-reduce for ever.
Ranks therefore all-reduce only after they have agreed that none of them ran out of memory:

- `fit_micro_batch` is a memory probe. Every rank runs one forward and backward pass by itself, before the engine is
  made. Besides the activations, it allocates as much memory as the engine will.
- `oom_on_any_rank` surrounds the micro-batches of the first steps under DDP. They run without all-reduce, and
  `Engine.all_reduce_gradients` follows them. So no rank blocks on one that ran out of memory. Normal DDP resumes
  after the first step with optimizer state, usually the second. From then on every step takes the same memory.

Under ZeRO, at every stage, only the probe can save a run: DeepSpeed communicates inside its passes and its update.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.utils.memory import clear_device_cache
from torch import nn

from launcher.cut import Cut, smaller_cut
from launcher.engines.arithmetic import check_kernel_exists
from launcher.engines.out_of_memory import is_out_of_memory
from launcher.planning.memory_model import predict_states
from launcher.planning.model_profile import parameter_sizes
from launcher.world import print_on_main
from models.stochastic_depth import StochasticDepth
from recipes.errors import UserError
from recipes.schema import Recipe


class OutOfMemory(Exception):
    """A rank ran out of memory. All ranks raise this together."""


@contextmanager
def oom_on_any_rank(accelerator: Accelerator) -> Iterator[None]:
    """Surround work without communication: if any rank runs out of memory in it, all raise `OutOfMemory` at its end.

    Raises:
        UserError: the model needs an operation without a deterministic kernel, and `engine.deterministic` is true.
    """
    ran_out = False
    try:
        yield
    except RuntimeError as error:
        check_kernel_exists(error)
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
    unit: int,
) -> Cut:
    """Return `cut`, or the next smaller one whose micro-batch fits into memory on every rank.

    Args:
        recipe: with its engine chosen.
        model: is moved to the device; the values of its weights, gradients and buffers do not change.
        drop_path: of the model.
        accelerator: of this process.
        cut: the cut to try first.
        unit: as in `launcher.cut.cut_batch`.

    Raises:
        UserError: no micro-batch fits; the message names what would help.
    """
    while True:
        try:
            with oom_on_any_rank(accelerator):
                _try_micro_batch(recipe, model, drop_path, accelerator, cut)
            # The placeholder is one block of gigabytes, which torch would keep and split for the engine's tensors.
            clear_device_cache()
            return cut
        except OutOfMemory:
            pass  # shrink outside `except`: inside, the traceback would keep the activations of the failed pass alive
        cut = shrink_after_oom(recipe, cut, unit, "before the first step", print_on_main)


def shrink_after_oom(recipe: Recipe, cut: Cut, unit: int, when: str, say: Callable[[str], None]) -> Cut:
    """Report the error through `say`, release cached memory, and return the next smaller cut.

    Raises:
        UserError: there is no smaller one; the message names what would help.
    """
    clear_device_cache(garbage_collection=True)
    smaller = smaller_cut(recipe, cut, unit)
    if smaller is None:
        raise oom_error(recipe, cut, unit, when)
    say(
        f"out of memory {when} with micro-batch {cut.micro_batch}: retrying with {smaller.micro_batch}, "
        f"which gives the same result ({smaller})"
    )
    return smaller


def oom_error(recipe: Recipe, cut: Cut, unit: int, when: str) -> UserError:
    """Return the error for a start whose micro-batch cannot shrink; it names every option that needs less memory."""
    engine, help_ = recipe.engine, []
    if smaller := smaller_cut(recipe, cut, unit):
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
    """Run one forward and backward pass while a placeholder occupies the memory of the engine's other tensors."""
    device, size = accelerator.device, recipe.input.size
    # The memory format that the engine will use, because the size of the activations depends on it.
    memory_format = torch.channels_last if recipe.engine.zero == 0 else torch.preserve_format
    # torch's stubs have no overload with both arguments, which torch itself documents.
    model.to(device, memory_format=memory_format).train()  # type: ignore[call-overload]
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    present = sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))
    states = predict_states(recipe, parameter_sizes(model), buffers=0, cut=cut)
    placeholder = torch.empty(max(0, states.tensors - present), dtype=torch.uint8, device=device)
    # The placeholder has room for the gradients already, so each is freed as soon as it is complete.
    hooks = [parameter.register_post_accumulate_grad_hook(_free_gradient) for parameter in parameters]
    try:
        drop_path.draw(0, torch.arange(cut.micro_batch, device=device))
        images = torch.zeros(cut.micro_batch, 3, size, size, device=device)
        with accelerator.autocast():
            logits = model(images.contiguous(memory_format=torch.channels_last))
        logits.float().log_softmax(dim=-1).sum().backward()
    finally:
        for hook in hooks:
            hook.remove()
        del placeholder


def _free_gradient(parameter: torch.Tensor) -> None:
    parameter.grad = None
