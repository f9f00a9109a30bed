"""The manifest of a data set: what the file `manifest.json` records, and how it is read."""

import hashlib
import json
from typing import Any, NotRequired, cast

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic needs it below Python 3.12

from data.reading.storage import LocalFolder, RemoteFolder
from recipes.errors import UserError
from recipes.parsing import parse_json

FORMAT = 1
MANIFEST = "manifest.json"


class ShardRecord(TypedDict):
    """One shard: its file, relative to the manifest or absolute, and the sizes and checksums that verify it.

    `spots_sha256` is the `data.reading.sampled_checksum`, which the oldest manifests lack.
    """

    file: str
    samples: int
    bytes: int
    sha256: str
    spots_sha256: NotRequired[str]


class SplitRecord(TypedDict):
    """One split: its counts, its shards in the order of the index, and the index file."""

    samples: int
    per_class: list[int]
    bytes: int
    shards: list[ShardRecord]
    index: str
    index_sha256: str


class Manifest(TypedDict):
    """A whole data set.

    Attributes:
        skipped: "name" and "reason" of every image that was left out.
        odd: number of images of each unusual kind, see `data.images.inspection`.
        shrunk: number of images that were above the size limit.
        labels: for shards that others wrote, the class number of each text in their label members.
        source: what the data set was made from and with which options, by which a repeated command recognises it.
    """

    format: int
    name: str
    classes: list[str]
    splits: dict[str, SplitRecord]
    skipped: NotRequired[list[dict[str, str]]]
    odd: NotRequired[dict[str, int]]
    shrunk: NotRequired[int]
    labels: NotRequired[dict[str, int]]
    source: NotRequired[dict[str, Any]]


_SCHEMA = TypeAdapter(Manifest)


def read_manifest(folder: LocalFolder | RemoteFolder) -> Manifest:
    """Return the manifest of the data set in a folder.

    Raises:
        UserError: there is none, or it is damaged or of another format.
    """
    root, path = folder.root, folder.path(MANIFEST)
    if isinstance(folder, LocalFolder) and not folder.root.is_dir():
        if folder.root.is_file():
            raise UserError(f"{root} is a file, not a folder of shards: make one with `bigbatch shard {root} FOLDER`")
        raise UserError(
            f"there is no folder {root}: make it with `bigbatch shard SOURCE {root}`, or use --data to say "
            f"where the shards are"
        )
    try:
        contents = parse_json(folder.read_whole(MANIFEST))
    except FileNotFoundError:
        raise UserError(
            f"{root} has no {MANIFEST}, so it is no complete folder of shards: make or finish one with "
            f"`bigbatch shard SOURCE FOLDER`"
        ) from None
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is damaged: remake the folder with `bigbatch shard`") from None
    if not isinstance(contents, dict) or contents.get("format") != FORMAT:
        raise UserError(f"{path} is not of format {FORMAT}, which this version of bigbatch reads")
    try:
        _SCHEMA.validate_python(contents, strict=True)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise UserError(f"{path} is damaged at {where!r}: remake the folder with `bigbatch shard`") from None

    return cast(Manifest, contents)  # not the validated copy, which would lack keys that later versions may add


def contents_digest(manifest: Manifest) -> str:
    """Return the identity of a data set: SHA-256 in hexadecimal over its classes and the checksums of its files."""
    contents: list[Any] = [manifest["classes"]]
    for name, record in manifest["splits"].items():
        contents.append([name, record["index_sha256"], [shard["sha256"] for shard in record["shards"]]])
    return hashlib.sha256(json.dumps(contents).encode()).hexdigest()
