"""Unreadable images: a few are counted and replaced, too many stop the run and are named."""

import pytest

from data.reading.shards import ShardSet
from launcher.runs.run_directory import RunDirectory
from launcher.training.train import StartOptions, train
from recipes.errors import UserError


@pytest.fixture
def damaged(digits, tmp_path):
    """The digits of which one in twenty is overwritten, where a check of a few spots does not look."""
    folder = tmp_path / "digits"
    folder.mkdir()
    for path in digits.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    split = ShardSet.open(folder).split("train")
    with split.shard_paths[0].open("r+b") as file:
        size, spots = split.shard_paths[0].stat().st_size, []
        for number in range(4):
            spots.append((size - 16384) * number // 3)
        for row in split.index[3::20]:
            offset, length = int(row["offset"]), int(row["size"])
            if all(offset + length < spot or offset > spot + 16384 for spot in spots):
                file.seek(offset)
                file.write(bytes(length))
    return folder


ONE_EPOCH = ("schedule.epochs=1", "schedule.warmup_epochs=0")


def test_too_many_stop_the_run_with_their_names(small_recipe, damaged, tmp_path):
    with pytest.raises(
        UserError, match=r"images could not be read, more than .*run.unreadable=0.01.*\.jpg in train-000000.tar"
    ) as caught:
        train(small_recipe(*ONE_EPOCH, f"data.path={damaged}"), tmp_path / "run", StartOptions(workers=1))
    assert "\n" not in str(caught.value)


def test_a_share_that_is_allowed_is_counted_step_by_step(small_recipe, damaged, tmp_path, capsys):
    assert train(
        small_recipe(*ONE_EPOCH, f"data.path={damaged}", "run.unreadable=0.1"),
        tmp_path / "run",
        StartOptions(workers=0),
    )
    counted = [
        event["replaced"] for event in RunDirectory(tmp_path / "run").metrics.events() if event["event"] == "step"
    ]
    assert len(counted) == 22 and 30 < sum(counted) < 90
    assert f"{sum(counted)} unreadable images were replaced" in capsys.readouterr().out
