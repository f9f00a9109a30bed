"""Finds the layers of a model that draw random numbers, by one run on tensors that have shapes but no values."""

import random
from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from models.stochastic_depth import KeyedDropout, StochasticDepth

# A prime that no other dimension is a multiple of: a first dimension that is one holds the images.
_IMAGES = 13


class Draw(NamedTuple):
    """One operation that reads a random generator.

    Attributes:
        layer: dotted name of the layer that draws; empty for the model itself.
        before_classifier: it is dropout by the model itself, directly on the input of the classifier.
    """

    layer: str
    before_classifier: bool


def find_draws(model: nn.Module, depth: StochasticDepth, size: int) -> list[Draw]:
    """Return the draws of a forward pass in training mode, and set `per_image` of the keyed dropout layers.

    Args:
        model: on the meta device, with `depth` attached.
        size: width and height of the images in pixels.

    Raises:
        Exception: whatever the model raises for images of that size, or because its operations depend on values.
    """
    images = torch.empty(_IMAGES, 3, size, size, device="meta")
    depth.use(torch.empty(len(depth.branches), _IMAGES, device="meta"))
    for dropout in depth.dropouts:
        dropout.register_forward_pre_hook(_note_images)
    outside = _states_outside_torch()
    with _Draws(model) as draws:
        model.train()(images)
    if outside != _states_outside_torch():
        draws.found.append(Draw("", before_classifier=False))
    return draws.found


def _note_images(dropout: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    assert isinstance(dropout, KeyedDropout)
    dropout.per_image = inputs[0].shape[0] % _IMAGES == 0


def _states_outside_torch() -> str:
    return repr((random.getstate(), np.random.get_state()))


class _Draws(TorchDispatchMode):
    """Notes, for each operation that reads a generator, the innermost layer that is running."""

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
        # After drawing its mask, dropout divides it by the share that is kept, and multiplies its input by it.
        if self.found and self.found[-1].layer == "" and self._since_draw <= 2:
            self.found[-1] = Draw("", before_classifier=True)
