"""A checksum of a few places of a file: cheap enough to compare for every shard before every run.

It notices a file that was written again, or of which a copy was begun and parts of the disk blocks are still empty, though
its size is right. It cannot notice a single changed byte elsewhere: `bigbatch verify` reads everything.
"""

import hashlib
from collections.abc import Callable

_SPOTS = 4  # of the first to the last byte, evenly spread
_BYTES = 16 * 2**10  # of each; the last ones reach behind the zeros at the end of a tar


def sampled_checksum(read: Callable[[int, int], bytes], size: int) -> str:
    """Return the SHA-256 in hexadecimal of the spots of a file of `size` bytes, of which ``read(offset, size)`` gives parts."""
    found = hashlib.sha256()
    for number in range(_SPOTS):
        found.update(read(max(0, size - _BYTES) * number // (_SPOTS - 1), min(size, _BYTES)))
    return found.hexdigest()
