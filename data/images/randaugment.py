"""timm's RandAugment on arrays, with faster code for most operations. The random draws and their order stay timm's.

An image is uint8 ``[height, width, 3]``.
"""

import numpy as np
from timm.data import auto_augment
from timm.data.auto_augment import RandAugment

from data.images import randaugment_color as color
from data.images import randaugment_geometry as geometry
from data.images.randaugment_pillow import PillowOperation

FAST_OPERATIONS = {
    auto_augment.shear_x: geometry.shear_x,
    auto_augment.shear_y: geometry.shear_y,
    auto_augment.translate_x_rel: geometry.translate_x,
    auto_augment.translate_y_rel: geometry.translate_y,
    auto_augment.invert: color.invert,
    auto_augment.solarize: color.solarize,
    auto_augment.solarize_add: color.solarize_add,
    auto_augment.posterize: color.posterize,
    auto_augment.brightness: color.brightness,
    auto_augment.contrast: color.contrast,
    auto_augment.sharpness: color.sharpness,
}


def with_array_operations(policy: RandAugment) -> RandAugment:
    """Change timm's policy in place so that it takes and returns arrays, and return it."""
    for operation in policy.ops:
        operation.aug_fn = FAST_OPERATIONS.get(operation.aug_fn) or PillowOperation(operation.aug_fn)
    # The policy draws its operations with np.random.choice, which would convert a list to an array at every call.
    operations = np.empty(len(policy.ops), dtype=object)
    operations[:] = policy.ops
    policy.ops = operations
    return policy
