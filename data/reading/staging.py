"""Shards on a disk of the node's own: copied once, checked by the manifest, shared by all processes of the node.

Every file is checked while it is copied and gets its name when it is whole; the manifest comes last. So a copy that was
interrupted goes on at the file it had reached, and the next job finds everything there.
"""

import fcntl
import hashlib
import json
import os
import shutil
from pathlib import Path

from data.atomic_io import flush, rename_durably, write_durably
from data.reading.shards import MANIFEST, ShardSet, read_manifest
from recipes.errors import UserError

_BLOCK = 4 * 2**20
_ROOM = 1.02  # of what is to be copied; a disk filled to the last byte helps nobody


def stage(source: Path, folder: Path) -> Path:
    """Copy the data set in `source` below `folder` unless it is there, and return where it is.

    Any number of processes may call this at once; one copies and the others wait.

    Raises:
        UserError: the disk is too small or cannot be written, or a file is not what the manifest says.
    """
    shards = ShardSet.open(source)
    staged = folder / f"bigbatch-{shards.digest[:16]}"
    try:
        staged.mkdir(parents=True, exist_ok=True)
        with (staged / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (staged / MANIFEST).exists():
                _copy(source, staged)
    except OSError as error:
        raise UserError(
            f"the shards cannot be copied to {folder} ({error.strerror}): choose another folder to stage to, or none"
        ) from None
    ShardSet.open(staged)
    return staged


def _copy(source: Path, staged: Path) -> None:
    manifest = read_manifest(source)
    wanted = []  # (where from, name there, SHA-256)
    for record in manifest["splits"].values():
        wanted.append((source / record["index"], record["index"], record["index_sha256"]))
        for number, shard in enumerate(record["shards"]):
            name = f"{record['index'].split('.')[0]}-{number:06d}.tar"  # others' shards are named by a whole path
            wanted.append((source / shard["file"], name, shard["sha256"]))
            shard["file"] = name
    missing = [(path, staged / name, checksum) for path, name, checksum in wanted if not (staged / name).exists()]
    needed = sum(path.stat().st_size for path, _, _ in missing)
    free = shutil.disk_usage(staged).free
    if needed * _ROOM > free:
        raise UserError(
            f"{staged.parent} has {free / 1e9:.1f} GB free and the shards need {needed / 1e9:.1f}: choose another folder to stage to, "
            f"or none"
        )
    for path, target, checksum in missing:
        _copy_file(path, target, checksum)
    write_durably(staged / MANIFEST, json.dumps(manifest).encode())


def _copy_file(path: Path, target: Path, expected: str) -> None:
    partial, digest = target.with_name(f"{target.name}.partial"), hashlib.sha256()
    with path.open("rb") as source, partial.open("wb") as copy:
        while block := source.read(_BLOCK):
            digest.update(block)
            copy.write(block)
        flush(copy)
    if digest.hexdigest() != expected:
        os.unlink(partial)
        raise UserError(f"{path} is not what its manifest says (checksum): run `bigbatch verify {path.parent}`")
    rename_durably(partial, target)
