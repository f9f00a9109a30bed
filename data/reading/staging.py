"""Copies shards to a node's local disk: once per node, verified against the manifest, and shared by all its processes.

Every file is checked while it is copied and gets its name when it is complete; the manifest is written last. So an
interrupted copy resumes at the file that it had reached, and the next job on that node reuses the whole copy.
"""

import hashlib
import json
import shutil
from pathlib import Path

from data.atomic_io import flush, rename_durably, write_durably
from data.reading.file_lock import file_lock
from data.reading.manifest import MANIFEST, read_manifest
from data.reading.shards import ShardSet
from data.reading.storage import LocalFolder
from recipes.errors import UserError
from recipes.local_paths import local_path

_BLOCK = 4 * 2**20
_HEADROOM = 1.02  # a disk filled to its last byte makes the job's other files fail


def stage(source: Path, folder: Path) -> Path:
    """Copy the data set in `source` below `folder` unless it is there already, and return its path.

    Any number of processes may call this at once: one copies, the others wait.

    Raises:
        UserError: the disk is too small or cannot be written, or a file differs from its manifest.
    """
    source, folder = local_path(source), local_path(folder)
    shards = ShardSet.open(source)
    staged = folder / f"bigbatch-{shards.digest[:16]}"
    try:
        staged.mkdir(parents=True, exist_ok=True)
        with file_lock(staged / "lock"):
            if not (staged / MANIFEST).exists():
                # These belong to a copy that was killed: the lock shows that no other process is writing here.
                for left_over in staged.glob("*.partial"):
                    left_over.unlink()
                _copy(source, staged)
    except OSError as error:
        raise UserError(
            f"the shards cannot be copied to {folder} ({error.strerror}): choose another folder to stage to, or none"
        ) from None
    ShardSet.open(staged)
    return staged


def _copy(source: Path, staged: Path) -> None:
    manifest = read_manifest(LocalFolder(source))
    wanted = []  # (original path, name of the copy, SHA-256)
    for record in manifest["splits"].values():
        wanted.append((source / record["index"], record["index"], record["index_sha256"]))
        for number, shard in enumerate(record["shards"]):
            # Shards that others wrote are recorded by absolute path, and two of them may have one file name.
            name = f"{record['index'].split('.')[0]}-{number:06d}.tar"
            wanted.append((source / shard["file"], name, shard["sha256"]))
            shard["file"] = name
    missing = [(path, staged / name, checksum) for path, name, checksum in wanted if not (staged / name).exists()]
    needed = sum(path.stat().st_size for path, _, _ in missing)
    free = shutil.disk_usage(staged).free
    if needed * _HEADROOM > free:
        raise UserError(
            f"{staged.parent} has {free / 1e9:.1f} GB free and the shards need {needed / 1e9:.1f}: "
            f"choose another folder to stage to, or none"
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
        partial.unlink()
        raise UserError(
            f"{path} differs from its manifest (checksum): `bigbatch verify {path.parent}` names what is damaged"
        )
    rename_durably(partial, target)
