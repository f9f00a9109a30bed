"""timm's RandAugment on arrays, with faster code for the operations that have some; what is drawn, and in which order, stays timm's.

An image is uint8 ``[height, width, 3]``.
"""

import numpy as np
from timm.data import auto_augment
from timm.data.auto_augment import RandAugment

from data.images import randaugment_color as tones
from data.images import randaugment_geometry as moves
from data.images.randaugment_pillow import PillowOperation

FAST = {
    auto_augment.shear_x: moves.shear_x,
    auto_augment.shear_y: moves.shear_y,
    auto_augment.translate_x_rel: moves.translate_x,
    auto_augment.translate_y_rel: moves.translate_y,
    auto_augment.invert: tones.invert,
    auto_augment.solarize: tones.solarize,
    auto_augment.solarize_add: tones.solarize_add,
    auto_augment.posterize: tones.posterize,
    auto_augment.brightness: tones.brightness,
    auto_augment.contrast: tones.contrast,
    auto_augment.sharpness: tones.sharpness,
}


def on_arrays(policy: RandAugment) -> RandAugment:
    """The same policy of timm's, which from now on takes and returns arrays."""
    for operation in policy.ops:
        operation.aug_fn = FAST.get(operation.aug_fn) or PillowOperation(operation.aug_fn)
    operations = np.empty(len(policy.ops), dtype=object)
    operations[:] = policy.ops
    policy.ops = operations  # NumPy, which draws from it, would make this array of a list each time
    return policy
