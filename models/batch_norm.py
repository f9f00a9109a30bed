"""BatchNorm over a statistics batch whose size the recipe fixes, independent of the micro-batch.

Plain BatchNorm computes mean and variance over the micro-batch, so its output changes with the cut. Here they are
computed over every `statistics_size` consecutive positions of the global batch, and a micro-batch holds a whole number
of these. In the published runs one statistics batch was one GPU's share. The running statistics are updated once per
optimizer step with the mean over all statistics batches of the step. (Upstream keeps those of rank 0 only, which
depend on the cut.)
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recipes.errors import UserError


class StatisticsBatchNorm2d(nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` with the same parameters and buffers, over fixed statistics batches in training mode.

    Attributes:
        seen: float32 ``[2, num_features]`` (mean, variance) of each statistics batch of the last forward pass.
        total: float32 ``[2, num_features]``, the sum of these over the step so far; None before the first micro-batch.
    """

    # `attach` refuses layers without running statistics, so these are never None here.
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def __init__(self, num_features: int, statistics_size: int, eps: float, momentum: float):
        super().__init__(num_features, eps=eps, momentum=momentum)
        self.statistics_size = statistics_size
        self.seen: list[Tensor] = []
        self.total: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        parts, seen = [], []
        # With momentum 1 from zeros, the kernel leaves exactly this batch's mean and variance in `statistics`.
        for part in x.split(self.statistics_size):
            statistics = torch.zeros(2, self.num_features, dtype=torch.float32, device=x.device)
            parts.append(
                F.batch_norm(
                    part,
                    statistics[0],
                    statistics[1],
                    self.weight,
                    self.bias,
                    training=True,
                    momentum=1.0,
                    eps=self.eps,
                )
            )
            seen.append(statistics)
        self.seen = seen  # assigned, not appended: with checkpointed activations this forward pass runs twice
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def attach(model: nn.Module, statistics_size: int) -> "RunningStatistics | None":
    """Replace every BatchNorm2d of `model`; return the object that updates their running statistics.

    Returns:
        None for a model without BatchNorm.

    Raises:
        UserError: the model has BatchNorm layers of a kind that cannot be replaced, or `statistics_size` is below 2.
    """
    places = [
        (name, module) for name, module in model.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)
    ]
    if places and statistics_size < 2:
        raise UserError(
            f"BatchNorm needs at least 2 images for its statistics, and the recipe gives it {statistics_size}: "
            f"set batch.statistics to 2 or more, or batch.slices to at most half of batch.global"
        )
    layers = []
    for name, module in places:
        if type(module) is not nn.BatchNorm2d or module.running_mean is None or module.momentum is None:
            raise UserError(
                f"the model's layer {name} is a {type(module).__name__}, whose statistics cannot be kept independent "
                f"of the micro-batch: choose a model with plain BatchNorm2d or LayerNorm"
            )
        layer = StatisticsBatchNorm2d(module.num_features, statistics_size, module.eps, module.momentum)
        layer.load_state_dict(module.state_dict(), assign=True)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer)
        layers.append(layer)
    return RunningStatistics(layers) if layers else None


class RunningStatistics:
    """Updates the running mean and variance of all layers once per optimizer step."""

    def __init__(self, layers: list[StatisticsBatchNorm2d]):
        self.layers = layers
        self._batches = 0

    def add(self, real_batches: int) -> None:
        """Add the first `real_batches` statistics batches of the last micro-batch; the others were padding."""
        for layer in self.layers:
            for statistics in layer.seen[:real_batches]:
                layer.total = statistics if layer.total is None else layer.total + statistics
            layer.seen = []
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
            layer.seen, layer.total = [], None
        self._batches = 0
