"""The file ``_info.json``, in which timm's WebDataset reader looks for the shards and sizes of every split."""

from typing import Any

from data.reading.manifest import SplitRecord

TIMM_INFO = "_info.json"
_ALIASES = {"val": "validation"}  # timm's scripts ask for it by this name


def timm_info(splits: dict[str, SplitRecord]) -> dict[str, Any]:
    """Return the contents of ``_info.json``: files, samples per file and samples of every split."""
    found: dict[str, Any] = {}
    for split, record in splits.items():
        for name in (split, *([_ALIASES[split]] if split in _ALIASES else [])):
            found[name] = {
                "name": name,
                "num_samples": record["samples"],
                "filenames": [shard["file"] for shard in record["shards"]],
                "shard_lengths": [shard["samples"] for shard in record["shards"]],
            }
    return {"splits": found}
