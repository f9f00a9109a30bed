"""Losses that the user's own code registers."""

from collections.abc import Callable

import torch
from torch import Tensor

from recipes.errors import UserError
from recipes.schema import Recipe
from recipes.user_code import Registry

# Takes float32 logits and targets, both [n, classes], and returns the loss of each image, float32 [n].
CustomLoss = Callable[[Tensor, Tensor], Tensor]
custom_losses: Registry[CustomLoss] = Registry("loss")


def load_custom_loss(recipe: Recipe) -> CustomLoss | None:
    """Return the loss that `code.loss` names; None if the recipe names none.

    Raises:
        UserError: no such loss is registered.
    """
    name = recipe.code.loss
    return None if name is None else custom_losses.get(name, recipe.code.modules)


def checked_losses(losses: object, images: int) -> Tensor:
    """Return what a custom loss has returned.

    Raises:
        UserError: it is not one number for each image.
    """
    if not isinstance(losses, torch.Tensor) or losses.shape != (images,):
        what = f"a tensor of shape {list(losses.shape)}" if isinstance(losses, torch.Tensor) else type(losses).__name__
        raise UserError(
            f"the loss of your own code returns {what} for {images} images: return one loss for each image, "
            f"[{images}], because the mean is taken over the global batch"
        )
    return losses
