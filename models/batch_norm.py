"""BatchNorm over a statistics batch whose size the recipe fixes, independent of the micro-batch.

Plain BatchNorm computes mean and variance over the micro-batch, so its output changes with the cut. Here they are
computed over every `statistics_size` consecutive positions of the global batch, and a micro-batch holds a whole number
of these. In the published runs one statistics batch was one GPU's share. The running statistics are updated once per
optimizer step with the mean over all statistics batches of the step. (Upstream keeps those of rank 0 only, which
depend on the cut.)
"""

from collections.abc import Callable

import torch
from timm.layers import BatchNormAct2d, FrozenBatchNormAct2d, SyncBatchNormAct
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops import FrozenBatchNorm2d

from recipes.errors import UserError

# Subclasses may compute something else, so only the classes themselves are replaced. `SyncBatchNorm` computes the same
# over all processes, whose number belongs to the cut.
_WITH_ACTIVATION = (BatchNormAct2d, SyncBatchNormAct)
_REPLACED = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, *_WITH_ACTIVATION)
_FROZEN = (FrozenBatchNorm2d, FrozenBatchNormAct2d)  # these read running statistics and never compute any


class StatisticsBatchNorm(_BatchNorm):
    """A BatchNorm layer with the same parameters and buffers, over fixed statistics batches in training mode.

    It replaces torch's `BatchNorm1d` to `BatchNorm3d` and timm's `BatchNormAct2d`, which also applies an activation.
    The first dimension of the input holds the images in order, with one or several rows each: `BatchNorm1d` after a
    linear layer sees one row per token.

    Attributes:
        batches: statistics batches in the current micro-batch.
        seen: float32 ``[batches, 2, num_features]`` (mean, variance) of the last forward pass; None before it.
        total: float32 ``[2, num_features]``, the sum of these over the step so far; None before the first micro-batch.
    """

    # `attach` refuses layers without running statistics, so these are never None here.
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def __init__(self, replaced: _BatchNorm):
        super().__init__(replaced.num_features, replaced.eps, replaced.momentum, replaced.affine, device="meta")
        self.after: tuple[str, ...] = ()
        if isinstance(replaced, _WITH_ACTIVATION):
            self.after = tuple(name for name in ("drop", "act") if hasattr(replaced, name))
        for name in self.after:  # under their own names, because an activation may have weights
            self.add_module(name, replaced.get_submodule(name))
        self.load_state_dict(replaced.state_dict(), assign=True)
        for name, parameter in self.named_parameters():  # a model may fix some, e.g. the scale
            parameter.requires_grad_(replaced.get_parameter(name).requires_grad)
        self.train(replaced.training)
        self.batches = 1
        self.seen: Tensor | None = None
        self.total: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        x = self._over_statistics_batches(x) if self.training else super().forward(x)
        for name in self.after:
            x = self.get_submodule(name)(x)
        return x

    def _over_statistics_batches(self, x: Tensor) -> Tensor:
        # With momentum 1 from zeros, the kernel leaves exactly a batch's mean and variance in its row of `seen`.
        # One call over a reshaped batch would save kernel launches, but has to copy the activations first, because a
        # statistics batch would have to be part of the channel dimension (docs/measurements/engines.md).
        seen = self.running_mean.new_zeros(self.batches, 2, self.num_features)
        parts = [
            F.batch_norm(part, mean, variance, self.weight, self.bias, training=True, momentum=1.0, eps=self.eps)
            for part, (mean, variance) in zip(x.split(len(x) // self.batches), seen, strict=True)
        ]
        self.seen = seen  # assigned, not added: with checkpointed activations this forward pass runs twice
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept any shape: the replaced layer accepted what the model passes."""


def attach(model: nn.Module, statistics_size: int) -> "RunningStatistics | None":
    """Replace the BatchNorm layers of `model`; return the object that updates their running statistics.

    Layers in evaluation mode keep their running statistics and are not replaced (`models.frozen`).

    Returns:
        None for a model whose BatchNorm layers, if any, are all in evaluation mode.

    Raises:
        UserError: the model has layers with batch statistics that cannot be replaced, or `statistics_size` is below 2.
    """
    places = [(name, module) for name, module in model.named_modules() if has_batch_statistics(module)]
    if places and statistics_size < 2:
        raise UserError(
            f"BatchNorm needs at least 2 images for its statistics, and the recipe gives it {statistics_size}: "
            f"set batch.statistics to 2 or more, or batch.slices to at most half of batch.global"
        )
    layers = []
    for name, module in places:
        if type(module) not in _REPLACED or module.running_mean is None or module.momentum is None:
            raise UserError(
                f"the model's layer {name} is a {type(module).__name__}, whose statistics cannot be kept independent "
                f"of the micro-batch: choose a model with BatchNorm or LayerNorm"
            )
        layer = StatisticsBatchNorm(module)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer)
        layers.append(layer)
    if not layers:
        return None

    def count_batches(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        for layer in layers:
            layer.batches = max(1, len(inputs[0]) // statistics_size)

    model.register_forward_pre_hook(count_batches)
    return RunningStatistics(layers)


def has_batch_statistics(module: nn.Module) -> bool:
    """Return whether a layer will compute statistics over the images of a micro-batch.

    Such a layer keeps running statistics for evaluation, whatever its class, e.g. timm's EvoNorm2dB0 and InplaceAbn.
    """
    keeps_statistics = isinstance(module, _BatchNorm) or getattr(module, "running_var", None) is not None
    return keeps_statistics and module.training and not isinstance(module, _FROZEN)


class RunningStatistics:
    """Updates the running mean and variance of all layers once per optimizer step."""

    def __init__(self, layers: list[StatisticsBatchNorm]):
        self.layers = layers
        self._batches = 0

    def add(self, real_batches: int) -> None:
        """Add the first `real_batches` statistics batches of the last micro-batch; the others were padding."""
        for layer in self.layers:
            if layer.seen is not None and real_batches:
                statistics = layer.seen[:real_batches].sum(0)
                layer.total = statistics if layer.total is None else layer.total + statistics
            layer.seen = None
        self._batches += real_batches

    def update(self, sum_over_processes: Callable[[Tensor], Tensor]) -> None:
        """End the step: update the running statistics with the mean over the statistics batches of all processes.

        Args:
            sum_over_processes: all-reduces a float32 tensor by summation.
        """
        device = self.layers[0].running_mean.device
        totals = [
            layer.total if layer.total is not None else torch.zeros(2, layer.num_features, device=device)
            for layer in self.layers
        ]
        flat = torch.cat([total.flatten() for total in totals] + [totals[0].new_full((1,), float(self._batches))])
        flat = sum_over_processes(flat)
        means = (flat[:-1] / flat[-1]).split([2 * layer.num_features for layer in self.layers])
        for layer, mean in zip(self.layers, means):
            layer.running_mean.lerp_(mean[: layer.num_features], layer.momentum)
            layer.running_var.lerp_(mean[layer.num_features :], layer.momentum)
            layer.num_batches_tracked += 1
            layer.total = None
        self._batches = 0

    def forget(self) -> None:
        """Discard the statistics added since the last update; called before a step is repeated."""
        for layer in self.layers:
            layer.seen, layer.total = None, None
        self._batches = 0
