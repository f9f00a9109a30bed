"""Checks of the user's own code: that a run would find its parts, and that they are exact at every cut."""

from collections.abc import Iterable

import torch

from data.images.augment import custom_transforms
from launcher.engines.optimizer import custom_optimizers
from launcher.recipe_shards import open_shards
from launcher.training.fingerprint import fingerprints
from models.custom_loss import checked_losses, custom_losses, load_custom_loss
from recipes.errors import UserError
from recipes.schema import Recipe

CUTS = ((1, None), (2, None), (3, 7))  # ranks, images per forward pass
_EQUAL = 1e-5  # largest relative difference of a loss between two cuts, from the order of float32 operations


def check_code_is_found(recipe: Recipe) -> None:
    """Check that the modules of the recipe can be imported and register the parts that it names.

    Raises:
        UserError: one is missing; names it.
    """
    code = recipe.code
    for registry, name in (
        (custom_losses, code.loss),
        (custom_optimizers, code.optimizer),
        (custom_transforms, code.transform),
    ):
        if name is not None:
            registry.get(name, code.modules)


def check_exact(recipe: Recipe, cuts: Iterable[tuple[int, int | None]] = CUTS, steps: int = 2) -> None:
    """Check that a recipe's inputs and its loss do not depend on the cut. It is meant for tests of your own code.

    Args:
        recipe: names its shards in `data.path`.
        cuts: numbers of ranks, each with the images per forward pass (None: as many as fit on a CPU).
        steps: optimizer steps whose inputs are compared bit for bit.

    Raises:
        UserError: two cuts differ; says in which step, or that it is the loss.
    """
    check_code_is_found(recipe)
    digests = {cut: dict(fingerprints(recipe, range(steps), *cut, workers=0)) for cut in cuts}
    reference, *others = digests
    for cut in others:
        for step, digest in digests[reference].items():
            if digests[cut][step] != digest:
                raise UserError(
                    f"the inputs of step {step} differ between {_named(reference)} and {_named(cut)}: draw random "
                    f"numbers only from the generator that your transform is given, and keep nothing between images"
                )
    _check_loss(recipe)


def _check_loss(recipe: Recipe) -> None:
    """Check that the loss of an image does not depend on the other images of its micro-batch."""
    loss = load_custom_loss(recipe)
    if loss is None:
        return
    generator = torch.Generator().manual_seed(0)
    images, classes = 12, len(open_shards(recipe).classes)
    logits = torch.randn(images, classes, generator=generator)
    targets = torch.rand(images, classes, generator=generator).softmax(dim=1)
    whole = checked_losses(loss(logits, targets), images)
    parts = [loss(logits[rows], targets[rows]) for rows in torch.arange(images).split(5)]
    if not torch.allclose(whole, torch.cat(parts), rtol=_EQUAL, atol=_EQUAL):
        raise UserError(
            f"loss {recipe.code.loss} gives an image another value in another micro-batch: compute it from the image's "
            f"own logits and targets, without random numbers"
        )


def _named(cut: tuple[int, int | None]) -> str:
    ranks, images = cut
    size = "" if images is None else f" with {images} images at a time"
    return f"{ranks} rank{'s' if ranks > 1 else ''}{size}"
