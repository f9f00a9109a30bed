"""A run on shards that were made upright sees other images upright too, and so does what was exported from it."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from data.reading.shards import ShardSet
from data.writing.sharding import shard
from launcher.evaluation.export import export
from launcher.evaluation.features import write_features
from launcher.evaluation.predict import predict
from launcher.runs.metadata import RunMetadata
from launcher.runs.run_directory import RunDirectory
from launcher.training.run_description import describe_dataset
from tests.data.pictures import write_tree
from tests.launcher.saved_runs import CLASSES, make_saved_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[bool, RunDirectory]:
    """A run on shards that were made upright, and one on shards of the same images as they are stored."""
    folder = tmp_path_factory.mktemp("upright")
    write_tree(folder / "tree", CLASSES, each=4)
    made = {}
    for upright in (True, False):
        shard(str(folder / "tree"), folder / f"shards-{upright}", upright=upright, progress=False)
        made[upright] = make_saved_run(folder / f"run-{upright}", folder / f"shards-{upright}", {4: (0.5, None)})
    return made


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """A photograph of a camera that was held on its side, in PNG, whose pixels do not change when it is turned."""
    folder = tmp_path_factory.mktemp("photos")
    pixels = np.random.default_rng(3).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = Image.fromarray(pixels).resize((120, 80), Image.Resampling.BICUBIC)
    photo.save(folder / "a.png", exif=exif)
    ImageOps.exif_transpose(Image.open(folder / "a.png")).save(folder / "b.png")
    return folder


def views_alike(origin: Path, photos: Path, **options) -> bool:
    """Return whether the photograph and the one that was turned by Pillow get the same prediction."""
    one, other = predict(origin, photos, workers=0, **options)
    return one.likeliest == other.likeliest


@pytest.mark.parametrize("name", ["run", "weights.safetensors"])
def test_predict_turns_images_if_the_shards_were_made_upright(runs, photos, tmp_path, capsys, name):
    for upright, run in runs.items():
        origin = run.path
        if name != "run":
            origin = tmp_path / f"{upright}-{name}"
            export(run, origin)
        assert views_alike(origin, photos, upright=True)
        capsys.readouterr()
        assert views_alike(origin, photos) == upright
        assert ("turned as their EXIF orientation says" in capsys.readouterr().err) == upright


def test_features_turn_images_if_the_shards_were_made_upright(runs, photos, tmp_path):
    def same(run: RunDirectory, **options) -> bool:
        write_features(str(run.path), str(photos), tmp_path / "out.npz", workers=0, **options)
        one, other = np.load(tmp_path / "out.npz")["features"]
        return np.array_equal(one, other)

    assert same(runs[True]) and not same(runs[False]) and same(runs[False], upright=True)


def test_a_folder_for_timm_says_that_images_are_turned(runs, tmp_path):
    for upright, run in runs.items():
        export(run, tmp_path / str(upright))
        assert ("exif_transpose" in (tmp_path / str(upright) / "README.md").read_text()) == upright


def test_the_start_of_a_run_records_whether_its_shards_are_upright(runs):
    for upright, run in runs.items():
        shards = ShardSet.open(str(run.recipe().data.path))
        assert shards.upright == describe_dataset(run.recipe(), shards).upright == upright


def test_a_run_that_was_made_before_this_was_recorded_is_read(runs):
    values = json.loads(runs[False].metadata_file.read_text())
    del values["dataset"]["upright"]
    assert not RunMetadata.model_validate(values).dataset.upright
