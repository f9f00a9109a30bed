"""The form of a cached block on the disk: its contents, then the CRC-32 of each piece of 64 KiB.

A read checks the pieces that it touches, so that the checksum of a whole block need not be computed for one image.
"""

import os
import struct
import zlib

_PIECE = 2**16  # bytes
_CHECKSUM = 4  # bytes


def packed(contents: bytes) -> bytes:
    """Return the contents of a block with the checksums of its pieces."""
    view = memoryview(contents)
    checksums = [zlib.crc32(view[start : start + _PIECE]) for start in range(0, len(view), _PIECE)]
    return contents + struct.pack(f"<{len(checksums)}I", *checksums)


def read_part(descriptor: int, start: int, stop: int) -> bytes | None:
    """Return the bytes of the contents from `start` to `stop`, or fewer where the contents end.

    Returns None if the file was changed or cut, so that they cannot be trusted.
    """
    size = os.fstat(descriptor).st_size
    length = size - _CHECKSUM * -(-size // (_PIECE + _CHECKSUM))
    stop = min(stop, length)
    if start >= stop:
        return None
    first, end = start // _PIECE, -(-stop // _PIECE)
    pieces = memoryview(os.pread(descriptor, min(end * _PIECE, length) - first * _PIECE, first * _PIECE))
    stored = os.pread(descriptor, _CHECKSUM * (end - first), length + _CHECKSUM * first)
    computed = [zlib.crc32(pieces[place : place + _PIECE]) for place in range(0, len(pieces), _PIECE)]
    if stored != struct.pack(f"<{len(computed)}I", *computed):
        return None
    return bytes(pieces[start - first * _PIECE : stop - first * _PIECE])
