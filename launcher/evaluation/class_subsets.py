"""Evaluates on some of a model's classes: ImageNet-A and -R, or a model for 22K classes on ImageNet-1K.

The head loses the outputs of all other classes, which gives the logits of a full head with those outputs masked.
"""

import re
from collections.abc import Sequence

from timm.data import ImageNetInfo, infer_imagenet_subset
from torch import Tensor

_WORDNET_ID = re.compile(r"n\d{8}")


def has_all(trained: Sequence[str] | None, wanted: Sequence[str]) -> bool:
    """Return whether the model has every class of the shards, and more classes besides."""
    if trained is None or len(set(trained)) < len(trained):
        return False
    return len(wanted) < len(trained) and set(wanted) <= set(trained)


def imagenet_classes(head: Tensor, wanted: Sequence[str]) -> list[str] | None:
    """Return the WordNet ids of an ImageNet model's outputs, which weights of other tools do not name.

    Args:
        head: the classifier's weight; its length says which list of ImageNet's classes it is.
        wanted: the shards' classes; unless all are WordNet ids, they cannot be matched.
    """
    subset = infer_imagenet_subset({"num_classes": len(head)})
    if subset is None or not all(_WORDNET_ID.fullmatch(name) for name in wanted):
        return None
    return list(ImageNetInfo(subset).label_names())
