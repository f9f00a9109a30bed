"""A checksum over a few samples of a file: cheap enough to compare for every shard before every run.

It detects a rewritten file, and an incomplete copy that has the right size but unwritten blocks. It does not detect a
single changed byte elsewhere: `bigbatch verify` reads everything.
"""

import hashlib
from collections.abc import Callable

_SAMPLES = 4  # evenly spaced from the first to the last byte
_SAMPLE_BYTES = 16 * 2**10  # larger than the 10 KiB of zeros that end a tar, so that the last sample holds data


def sampled_checksum(read: Callable[[int, int], bytes], size: int) -> str:
    """Return the SHA-256, in hexadecimal, over samples of a file.

    Args:
        read: returns the bytes at ``(offset, size)``.
        size: of the file, in bytes.
    """
    found = hashlib.sha256()
    for number in range(_SAMPLES):
        found.update(read(max(0, size - _SAMPLE_BYTES) * number // (_SAMPLES - 1), min(size, _SAMPLE_BYTES)))
    return found.hexdigest()
