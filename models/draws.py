"""Finds the layers of a model that draw random numbers, by one forward pass on meta tensors (shapes without values)."""

import random
from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from models.stochastic_depth import KeyedDropout, StochasticDepth

# Number of images in that pass: a prime that divides no other dimension of a model. A tensor whose first dimension is
# a multiple of it has the images in that dimension.
_IMAGES = 13


class Draw(NamedTuple):
    """One operation that reads a random generator.

    Attributes:
        layer: dotted name of the layer that draws; empty for the model itself.
        before_classifier: whether it is the ``F.dropout`` that the model itself applies to the classifier's input.
    """

    layer: str
    before_classifier: bool


def find_draws(model: nn.Module, drop_path: StochasticDepth, size: int) -> list[Draw]:
    """Return the draws of a forward pass in training mode, and set `per_image` of the keyed dropout layers.

    Args:
        model: on the meta device.
        drop_path: the model's keyed layers, from `stochastic_depth.attach`.
        size: width and height of the images in pixels.

    Raises:
        Exception: whatever the model raises for images of that size, or because its operations depend on values.
    """
    images = torch.empty(_IMAGES, 3, size, size, device="meta")
    drop_path.use(torch.empty(len(drop_path.branches), _IMAGES, device="meta"))
    for dropout in drop_path.dropouts:
        dropout.register_forward_pre_hook(_set_per_image)
    outside = _states_outside_torch()
    with _Draws(model) as draws:
        model.train()(images)
    if outside != _states_outside_torch():
        draws.found.append(Draw("", before_classifier=False))
    return draws.found


def _set_per_image(dropout: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    assert isinstance(dropout, KeyedDropout)
    dropout.per_image = inputs[0].shape[0] % _IMAGES == 0


def _states_outside_torch() -> str:
    return repr((random.getstate(), np.random.get_state()))


class _Draws(TorchDispatchMode):
    """Records the innermost running layer of each operation that reads a generator."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.found: list[Draw] = []
        self._model = model
        self._running: list[str] = []
        self._since_draw = 0  # operations since the last draw
        self._hooks: list[Any] = []

    def __enter__(self) -> "_Draws":
        for name, module in self._model.named_modules():
            self._hooks.append(module.register_forward_pre_hook(partial(self._enter, name)))
            self._hooks.append(module.register_forward_hook(self._leave))
        classifier = cast(Any, self._model).get_classifier()
        if isinstance(classifier, nn.Module):
            self._hooks.append(classifier.register_forward_pre_hook(self._at_classifier, prepend=True))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for hook in self._hooks:
            hook.remove()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._since_draw += 1
        if torch.Tag.nondeterministic_seeded in function.tags:
            self.found.append(Draw(self._running[-1], before_classifier=False))
            self._since_draw = 0
        return function(*args, **(kwargs or {}))

    def _enter(self, name: str, *_: object) -> None:
        self._running.append(name)

    def _leave(self, *_: object) -> None:
        self._running.pop()

    def _at_classifier(self, classifier: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        # `F.dropout` runs at most two operations after its draw: it divides the mask by the keep probability, and
        # multiplies its input by the mask.
        if self.found and self.found[-1].layer == "" and self._since_draw <= 2:
            self.found[-1] = Draw("", before_classifier=True)
