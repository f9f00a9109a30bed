"""What is said where the source's splits and `--val-fraction` do not go together, and names of splits in one word."""

import inspect

import pytest

from data.sources.recognition import open_source
from data.sources.splits import DEFAULT_FRACTION, split_of_name
from launcher.cli.data import shard as shard_command
from tests.data.pictures import write_tree
from tests.data.sources.test_class_trees import counts


@pytest.mark.parametrize(
    ("name", "split"),
    [("traindata", 0), ("TestData", 2), ("valimages", 1), ("devset", 1), ("testdataset", 2), ("trainsplit", 0)]
    + [("testament", None), ("trainer", None), ("valley", None), ("dataset", None)],
)
def test_splits_in_one_word_with_what_they_hold(name, split):
    assert split_of_name(name) == split


@pytest.mark.parametrize("other", ["val", "test"])
def test_what_a_validation_fraction_does_is_said_with_the_right_reason(tmp_path, other):
    for split in ("train", other):
        write_tree(tmp_path / "tree" / split, each=4)
    notes = open_source(str(tmp_path / "tree"), 1).notes
    if other == "val":
        assert notes == ["the source has a validation split of its own, so --val-fraction 1 changes nothing"]
        assert "--val-fraction 0 changes nothing" in open_source(str(tmp_path / "tree"), 0).notes[0]
        assert open_source(str(tmp_path / "tree"), DEFAULT_FRACTION).notes == []
    else:
        assert notes == ["12 training images are the validation split, because --val-fraction 1 takes them all"]
        assert open_source(str(tmp_path / "tree"), 0).notes == []


def test_the_fraction_that_needs_no_word_is_the_default_of_the_command():
    assert inspect.signature(shard_command).parameters["val_fraction"].default == DEFAULT_FRACTION


@pytest.mark.parametrize("inside", ["set/test", "val/images", "data"])
def test_a_lone_folder_of_test_images_is_said_to_be_trained_on(tmp_path, inside):
    write_tree(tmp_path / "photos" / inside, each=4)
    found = open_source(str(tmp_path / "photos"), 0.25)
    assert counts(found) == {"train": 9, "val": 3}
    named = inside.replace("set/", "").replace("/images", "")
    expected = [f"{named} is named like a {named} split, but holds all images, which become the train and val split: "]
    assert [note[: len(expected[0])] for note in found.notes] == (expected if named != "data" else [])
    given = open_source(str(tmp_path / "photos" / inside), 1)
    assert given.notes == [] and counts(given) == {"val": 12}
