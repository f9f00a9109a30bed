"""Stochastic depth and dropout whose masks depend on the recipe and the step, not on how the batch is cut.

The mask of the image at `position` of the global batch in optimizer step `step`, in layer `layer`, is a hash of (seed,
step, layer, position) compared with the layer's rate. No generator is read, so micro-batch size, rank and restarts
cannot change it, and recomputed activations get the same mask.

The masks of all residual branches are computed at once before a forward pass, and a branch then multiplies by its row.
A dropout layer gets a key per image, and hashes it with the index of each element when it runs, because the shape of
its input is not known earlier. The model itself draws no random numbers: torch.compile, activation checkpointing, DDP
and ZeRO see plain arithmetic.
"""

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from recipes.randomness import random_key

_UNIFORM_BITS = 24  # a float32 holds these exactly
_ALL_IMAGES = -1  # replaces the position in the keys of layers whose input is shared by all images
_CHANNEL_DROPOUTS = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


class KeyedDropPath(nn.Module):
    """Replaces timm's DropPath: drops the residual branch of whole images."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate
        self.scale: Tensor | None = None  # float32 [n], for the images of the current micro-batch

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        assert self.scale is not None, "StochasticDepth.draw must be called before the forward pass"
        scale = self.scale.to(x.dtype)
        if len(x) != len(scale):  # the rows are parts of images, e.g. windows: an image drops all of its parts together
            scale = scale.repeat_interleave(len(x) // len(scale))
        return x * scale.view(-1, *[1] * (x.ndim - 1))

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3f}"


class KeyedDropout(nn.Module):
    """Replaces `nn.Dropout`, and `nn.Dropout1d` to `nn.Dropout3d`, which drop whole channels.

    Attributes:
        per_image: whether the first dimension of the input holds the images in order, with one or several rows each.
            Otherwise all images share the input, e.g. a table of position biases, and so its mask.
    """

    def __init__(self, rate: float, channels: bool = False):
        super().__init__()
        self.rate, self.channels, self.per_image = rate, channels, True
        self.keys: Tensor | None = None  # int64 [n + 1], for the images of the current micro-batch and for all together
        self._threshold = round(rate * 2**_UNIFORM_BITS)
        self._kept_scale = 1 / (1 - rate) if rate < 1 else 0.0

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        assert self.keys is not None, "StochasticDepth.draw must be called before the forward pass"
        keys = self.keys[:-1] if self.per_image else self.keys[-1:]
        shape = (*x.shape[:2], *[1] * (x.ndim - 2)) if self.channels else x.shape
        elements = torch.arange(math.prod(shape) // len(keys), device=x.device)
        kept = _uniform(keys[:, None] + elements) >= self._threshold
        return torch.where(kept.view(shape), x * self._kept_scale, 0)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3f}"


class StochasticDepth:
    """The masks of one model. `attach` returns one; call `draw` before each forward pass in training mode."""

    def __init__(self, seed: int, rates: Sequence[float], dropouts: Sequence[KeyedDropout] = ()):
        self.seed = seed
        self.branches = [KeyedDropPath(rate) for rate in rates]
        self.dropouts = list(dropouts)
        self._drawn: tuple[Tensor, ...] = ()
        self._hashes: tuple[Tensor, ...] = ()  # int64 [layers, n], of the last draw
        self._thresholds = torch.tensor(
            [round(rate * 2**_UNIFORM_BITS) for rate in rates], dtype=torch.int64, device="cpu"
        )
        self._kept_scale = torch.tensor([1 / (1 - rate) for rate in rates], dtype=torch.float32, device="cpu")

    @property
    def rates(self) -> list[float]:
        """The drop rate of each residual branch."""
        return [branch.rate for branch in self.branches]

    def draw(self, step: int, positions: Tensor) -> Tensor:
        """Draw the masks of one micro-batch; return the factors on the branches, float32 ``[branches, n]``.

        A factor is 0 or 1 / (1 - rate).

        Args:
            step: optimizer step, from 0.
            positions: int64 ``[n]``, positions in the global batch, on the device of the model.
        """
        device = positions.device
        hashed = _hash(positions)
        kept = _uniform(self._keys("drop path", step, len(self.branches), device) ^ hashed)
        self._thresholds, self._kept_scale = self._thresholds.to(device), self._kept_scale.to(device)  # moved once
        is_kept = kept >= self._thresholds[:, None]
        scales = is_kept * self._kept_scale[:, None]
        self._hashes = ((kept + self._thresholds[:, None]) * is_kept,)
        if not self.dropouts:
            return self.use(scales)
        hashed = torch.cat([hashed, _hash(torch.full((1,), _ALL_IMAGES, device=device))])
        keys = _hash(self._keys("dropout", step, len(self.dropouts), device) ^ hashed)
        self._hashes += (keys[:, :-1] & (2**_UNIFORM_BITS - 1),)
        return self.use(scales, keys)

    def digest(self, weights: Tensor) -> Tensor:
        """Return a digest of the last `draw`, an int64 scalar on its device: the sum of hashes of the images' masks.

        It adds up the uniform numbers of the branches that an image keeps, with their thresholds, and its dropout keys.

        Args:
            weights: float32 ``[n]``, 1 for an image that counts and 0 for padding.
        """
        counts = weights.to(torch.int64)
        return torch.stack([(hashes * counts).sum() for hashes in self._hashes]).sum()

    def use(self, scales: Tensor, keys: Tensor | None = None) -> Tensor:
        """Let each layer use its row for the next forward pass; return `scales`.

        Args:
            scales: float32 ``[branches, n]``.
            keys: int64 ``[dropouts, n + 1]``; None for zeros, which suffice where only shapes matter.
        """
        if keys is None:
            keys = torch.zeros(len(self.dropouts), scales.shape[1] + 1, dtype=torch.int64, device=scales.device)
        for branch, scale in zip(self.branches, scales.unbind()):
            branch.scale = scale
        for dropout, row in zip(self.dropouts, keys.unbind()):
            dropout.keys = row
        self._drawn = (scales, keys)
        return scales

    def drawn_for(self, image: int) -> list[Tensor]:
        """Return the last `draw` of one image: float32 ``[branches]`` factors, and int64 ``[dropouts]`` keys."""
        return [one[:, image] for one in self._drawn]

    def key_head_dropout(self, model: nn.Module) -> None:
        """Replace the ``F.dropout`` that `model` applies before its classifier by a keyed layer of the same rate."""
        timm_model = cast(Any, model)
        dropout = KeyedDropout(timm_model.drop_rate)
        timm_model.drop_rate = 0.0
        self.dropouts.append(dropout)

        # A hook and not a submodule, because a submodule would change the names of the classifier's weights.
        def drop(classifier: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (dropout.train(classifier.training)(inputs[0]), *inputs[1:])

        timm_model.get_classifier().register_forward_pre_hook(drop)

    def _keys(self, purpose: str, step: int, layers: int, device: torch.device) -> Tensor:
        """Return a key per layer, int64 ``[layers, 1]``."""
        numbers = [random_key(self.seed, purpose, step, layer) for layer in range(layers)]
        keys = torch.tensor(numbers, dtype=torch.int64, device="cpu")[:, None]
        if device.type == "cuda":  # a copy from pageable memory would wait for all kernels queued before it
            keys = keys.pin_memory()
        return keys.to(device, non_blocking=True)


def attach(model: nn.Module, seed: int) -> StochasticDepth:
    """Replace every timm DropPath and torch Dropout of `model` by a keyed layer of the same rate.

    Dropout layers of rate 0 and layers in evaluation mode, which are frozen (`models.frozen`), are left as they are,
    because they draw nothing. Other random layers are left too; `models.draws` finds them.
    """
    modules = [(name, module) for name, module in model.named_modules() if module.training]
    # Subclasses may compute something else, so only the classes themselves are replaced.
    paths = [(name, module) for name, module in modules if type(module) is DropPath and module.scale_by_keep]
    kinds = (nn.Dropout, *_CHANNEL_DROPOUTS)
    drops = [(name, module) for name, module in modules if type(module) in kinds and module.p > 0]
    dropouts = [KeyedDropout(module.p, channels=isinstance(module, _CHANNEL_DROPOUTS)) for _, module in drops]
    depth = StochasticDepth(seed, [module.drop_prob for _, module in paths], dropouts)
    for (name, _), keyed in zip([*paths, *drops], [*depth.branches, *depth.dropouts]):
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, keyed)
    for module in model.modules():
        # A fused kernel draws its own dropout. timm's unfused path gives the same result and calls the dropout layer.
        if isinstance(getattr(module, "attn_drop", None), KeyedDropout) and getattr(module, "fused_attn", False):
            cast(Any, module).fused_attn = False
    return depth


def _uniform(keys: Tensor) -> Tensor:
    """Return a uniform integer of 24 bits for each key."""
    return _hash(keys) & (2**_UNIFORM_BITS - 1)


def _hash(numbers: Tensor) -> Tensor:
    """Return SplitMix64's finaliser of int64 numbers, as non-negative int64 of 63 bits.

    Integer arithmetic wraps in the same way on every device, so the result is the same everywhere.
    """
    numbers = numbers * -0x61C8864680B583EB  # the odd number nearest 2**64 / golden ratio, as a signed integer
    numbers = (numbers ^ (numbers >> 30 & (2**34 - 1))) * -0x40A7B892E31B1A47
    numbers = (numbers ^ (numbers >> 27 & (2**37 - 1))) * -0x6B2FB644ECCEEE15
    return (numbers ^ (numbers >> 31 & (2**33 - 1))) & (2**63 - 1)
