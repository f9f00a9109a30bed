"""Images that are huge, rotated by EXIF, or full of text are stored as the user wants them."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from data.batches import EvalBatches
from data.images.inspection import Unreadable, inspect
from data.images.size_limit import SizeLimit
from data.writing.sharding import shard
from recipes.errors import UserError
from recipes.load import load
from tests.data.pictures import encoded, write_tree


def rotated(name: str, file_format: str = "JPEG", **options) -> bytes:
    """Return an image of 40x30 pixels whose EXIF says that it was taken with the camera on its side."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(name, file_format, exif=exif.tobytes(), **options)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_upright_turns_an_image_as_its_exif_says(file_format):
    data = rotated("a", file_format)
    assert inspect(data).data == data, "the default stores it unchanged"
    turned = inspect(data, upright=True)
    image = Image.open(io.BytesIO(turned.data))
    assert image.size == (30, 40) and image.getexif().get(0x0112, 1) == 1 and turned.odd == ("exif-rotated",)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB").transpose(Image.Transpose.ROTATE_270))
    # Turned the other way, the mean difference of these pixels is above 50.
    difference = np.abs(np.asarray(image.convert("RGB")).astype(int) - expected).mean()
    assert difference < (8 if file_format == "JPEG" else 0.01)


def test_upright_and_a_size_limit_go_together():
    found = inspect(rotated("a"), SizeLimit(longest_side=20), upright=True)
    assert Image.open(io.BytesIO(found.data)).size == (15, 20) and found.shrunk


def test_an_upright_image_is_stored_unchanged():
    assert inspect(encoded("a"), upright=True).data == encoded("a")


def test_the_summary_says_what_became_of_exif_rotations(tmp_path, capsys):
    write_tree(tmp_path / "tree")
    (tmp_path / "tree/ant/r.jpg").write_bytes(rotated("r"))
    shard(str(tmp_path / "tree"), tmp_path / "as it is")
    assert "1 images have an EXIF rotation, which is ignored" in capsys.readouterr().err
    found = shard(str(tmp_path / "tree"), tmp_path / "upright", upright=True, val_fraction=0)
    assert "turned 1 images upright" in capsys.readouterr().err
    sizes = [Image.open(io.BytesIO(found.split("train").read(i))).size for i in range(31)]
    assert sorted(sizes)[0] == (30, 40) and sizes.count((40, 30)) == 30
    with pytest.raises(UserError, match="other options"):
        shard(str(tmp_path / "tree"), tmp_path / "as it is", upright=True)
    assert "upright" not in json.loads((tmp_path / "as it is/manifest.json").read_text())["source"]["options"]


def test_shards_of_others_are_turned_by_the_recipes_key(tmp_path, capsys):
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for i in range(4):
            for name, data in ((f"{i}.jpg", rotated(str(i))), (f"{i}.cls", str(i % 2).encode())):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    with pytest.raises(UserError, match="not rewritten: leave out .* --upright; .* set input.upright=true"):
        shard(str(tmp_path / "0.tar"), tmp_path / "out", upright=True)
    found = shard(str(tmp_path / "0.tar"), tmp_path / "out", val_fraction=0)
    assert "4 images have an EXIF rotation, .*: input.upright=true turns them" in capsys.readouterr().err.replace(
        "which is ignored, as in torchvision", ".*"
    )
    recipe = load("demo", ["input.size=16", "input.upright=true", "augment.randaugment=null"])
    upright, _ = EvalBatches(found.split("train"), recipe, 0, 1, 1)[0]
    plain, _ = EvalBatches(found.split("train"), recipe.variant(input={"upright": False}), 0, 1, 1)[0]
    # The centre crop of a lying image holds the same pixels, turned by a quarter, up to rounding of the filter.
    assert (upright[0].int() - plain[0].rot90(-1, (1, 2)).int()).abs().max() <= 2


def test_a_jpeg_above_the_limit_of_pillow_is_made_smaller_if_asked(monkeypatch):
    """With a lower limit than 178 million pixels, so that the test is quick."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    data = encoded("scan", size=(400, 300))
    with pytest.raises(Unreadable, match="more than 178 million pixels"):
        inspect(data)
    found = inspect(data, SizeLimit(longest_side=40))
    assert Image.open(io.BytesIO(found.data)).size == (40, 30) and found.shrunk
    with pytest.raises(Unreadable):  # a PNG decodes at full size only
        inspect(encoded("scan", "PNG", size=(400, 300)), SizeLimit(longest_side=40))
    assert Image.MAX_IMAGE_PIXELS == 10_000


def test_a_png_with_much_text_is_a_whole_image():
    text = PngImagePlugin.PngInfo()
    text.add_text("parameters", "steps " * 500_000, zip=True)
    assert inspect(encoded("a", "PNG", pnginfo=text)).extension == "png"


def test_a_class_whose_images_are_all_undecodable_is_an_error_and_leaves_nothing_behind(tmp_path):
    tree = write_tree(tmp_path / "tree", ("ant", "bee", "fox"), each=4)
    for path in (tree / "fox").iterdir():
        path.write_bytes(path.read_bytes()[:200])
    (tree / "bee/bee.0.jpg").write_bytes(b"")
    with pytest.raises(UserError, match="the class fox would be without images, .* its 4 can be decoded, e.g. fox/"):
        shard(str(tree), tmp_path / "out", workers=1, progress=False)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    (tmp_path / "map.txt").write_text("ant ant\nbee bee\n")
    found = shard(str(tree), tmp_path / "out", class_map=tmp_path / "map.txt", workers=1, progress=False)
    assert found.classes == ("ant", "bee") and sum(map(len, found.splits.values())) == 7
