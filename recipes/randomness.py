"""Keyed randomness: every random choice of a run is a pure function of the seed and of a key that names the choice.

A key names one decision, e.g. ``random_key(seed, "augment", epoch, sample_id)``. No generator state is shared between
decisions, so a decision does not depend on the process or worker that makes it, nor on restarts.
"""

import hashlib

KEY_BITS = 63  # keys fit a signed 64-bit integer, the widest one torch computes with


def random_key(seed: int, purpose: str, *numbers: int) -> int:
    """Return the key, uniform in ``[0, 2**63)``, of one decision.

    The integers are hashed with BLAKE2b, whose output is the same on every machine and in every library version.
    """
    text = ":".join((str(seed), purpose, *map(str, numbers)))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> (64 - KEY_BITS)
