"""`bigbatch predict` gives timm's own numbers, names what it cannot read, and goes on."""

import json
import sys

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform

from data.images.inspection import inspect
from launcher.cli.main import main
from launcher.evaluation.predict import predict
from recipes.errors import UserError
from recipes.load import load

CLASSES = ["cat", "dog", "élan"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A model of three classes as `bigbatch export` writes it."""
    torch.manual_seed(0)
    model = timm.create_model("test_convnext", num_classes=3)
    torch.nn.init.normal_(model.get_classifier().weight, std=2.0)
    recipe = load("demo", ["model.name=test_convnext", "data.classes=3", "input.size=64"])
    file = tmp_path_factory.mktemp("weights") / "three.safetensors"
    save_file(model.state_dict(), file, {"recipe": json.dumps(recipe.to_dict()), "classes": json.dumps(CLASSES)})
    return file


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Images of several kinds, below a folder, and two that cannot be read."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "more").mkdir()
    noise = np.random.default_rng(0)
    for number in range(40):
        pixels = noise.integers(0, 256, (4, 5, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((100, 80)).save(folder / ("more" if number % 2 else "") / f"{number:02}.jpg")
    Image.fromarray(pixels).convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(folder / "deep.png")
    (folder / "broken.jpg").write_bytes((folder / "00.jpg").read_bytes()[:300])
    (folder / "nonsense.png").write_bytes(b"nonsense")
    (folder / "notes.txt").write_text("no image")
    return folder


def test_a_prediction_is_what_plain_timm_says(weights, images):
    from safetensors.torch import load_file

    model = timm.create_model("test_convnext", num_classes=3)
    model.load_state_dict(load_file(weights))
    transform = create_transform(64, is_training=False, interpolation="bicubic", crop_pct=1.0)
    names = [f"{number:02}.jpg" for number in range(0, 10, 2)]
    found = predict(weights, [images / name for name in names], None, ema=True, workers=0)
    assert (
        len({prediction.likeliest[0][0] for prediction in found}) > 1
    )  # otherwise this test could not tell them apart
    for name, prediction in zip(names, found, strict=True):
        with torch.inference_mode():
            expected = model.eval()(transform(Image.open(images / name).convert("RGB"))[None]).softmax(dim=1)[0]
        assert [label for label, _ in prediction.likeliest] == [CLASSES[i] for i in expected.argsort(descending=True)]
        assert [share for _, share in prediction.likeliest] == pytest.approx(
            expected.sort(descending=True).values.tolist(), abs=1e-4
        )


def test_a_folder_is_searched_and_what_cannot_be_read_is_named_and_counted(weights, images, monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", ["bigbatch", "predict", str(weights), str(images), "--json", "--workers", "2"])
    with pytest.raises(SystemExit) as ended:
        main()
    output, errors = capfd.readouterr()
    assert ended.value.code == 1
    found = [json.loads(line) for line in output.splitlines()]
    assert [one["image"] for one in found] == sorted(str(path) for path in images.rglob("*.*g"))
    bad = {one["image"].rpartition("/")[2] for one in found if "error" in one}
    assert bad == {"broken.jpg", "nonsense.png"}
    assert all(name in errors for name in bad) and "2 of 44 images could not be read" in errors
    for one in found:
        if "error" not in one:
            assert one["class"] in CLASSES and sum(entry["probability"] for entry in one["likeliest"]) == pytest.approx(
                1, abs=1e-4
            )


def test_plain_output_is_a_line_per_image(weights, images, monkeypatch, capfd):
    monkeypatch.setattr(
        sys, "argv", ["bigbatch", "predict", str(weights), str(images / "00.jpg"), str(images / "deep.png")]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    lines = capfd.readouterr().out.splitlines()
    assert not ended.value.code and len(lines) == 2
    assert any(f"%  {name}  {images / '00.jpg'}" in lines[0] for name in CLASSES)


def test_what_is_missing_is_said_before_anything_is_predicted(weights, images, tmp_path):
    bare = tmp_path / "bare.safetensors"
    save_file(timm.create_model("test_convnext", num_classes=3).state_dict(), bare)
    (tmp_path / "empty").mkdir()
    for arguments, part in [
        ((weights, [images / "00.jpg", tmp_path / "none.jpg"], None), "none.jpg"),
        ((weights, [tmp_path / "empty"], None), "holds no images"),
        ((bare, [images], None), "--recipe"),
        ((bare, [images], "convnext_tiny_in1k"), "does not fit|has no"),
        ((tmp_path / "none.safetensors", [images], None), "no run or weights file"),
    ]:
        with pytest.raises(UserError, match=part):
            predict(*arguments, ema=True, workers=0)


def test_upright_predicts_for_the_turned_image_as_shards_hold_it(weights, tmp_path):
    pixels = np.random.default_rng(3).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).resize((100, 80)).save(tmp_path / "rotated.jpg", exif=exif.tobytes())
    (tmp_path / "turned.jpg").write_bytes(inspect((tmp_path / "rotated.jpg").read_bytes(), upright=True).data)

    def shares(name, **options):
        return predict(weights, [tmp_path / name], workers=0, **options)[0].likeliest

    assert shares("rotated.jpg", upright=True) == shares("turned.jpg") != shares("rotated.jpg")


def test_a_scan_that_shards_take_smaller_is_predicted_too(weights, tmp_path, monkeypatch):
    """With a lower limit than 178 million pixels, so that the test is quick."""
    pixels = np.random.default_rng(3).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    scan = Image.fromarray(pixels).resize((2000, 1600), Image.Resampling.BICUBIC)
    scan.save(tmp_path / "scan.jpg", quality=95)
    scan.resize((400, 320)).save(tmp_path / "small.jpg", quality=95)
    scan.save(tmp_path / "scan.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 800_000)
    png, jpeg, small = predict(weights, [tmp_path / name for name in ("scan.png", "scan.jpg", "small.jpg")], workers=0)
    assert png.error == "more than 178 million pixels: make it smaller first"  # a PNG decodes at full size only
    assert jpeg.error is None
    assert dict(jpeg.likeliest) == pytest.approx(dict(small.likeliest), abs=0.02)


def test_json_names_a_file_as_the_plain_output_does(weights, tmp_path, monkeypatch, capfd):
    """Its name is in Latin-1, so the byte E9 is no text in UTF-8."""
    Image.new("RGB", (64, 64)).save(tmp_path / "caf\udce9.png")
    for option in ["--json"], []:
        monkeypatch.setattr(sys, "argv", ["bigbatch", "predict", str(weights), str(tmp_path), *option])
        with pytest.raises(SystemExit):
            main()
    line, plain = capfd.readouterr().out.splitlines()
    assert json.loads(line)["image"] == str(tmp_path / "caf\\xe9.png")
    assert plain.endswith(str(tmp_path / "caf\\xe9.png"))


def test_names_cannot_control_the_terminal(weights, tmp_path, capsys, monkeypatch):
    Image.new("RGB", (64, 64)).save(tmp_path / "a\x1b[31mred\n.jpg")
    (tmp_path / "b\x1b[2J.jpg").write_bytes(b"no image")
    monkeypatch.setattr(sys, "argv", ["bigbatch", "predict", str(weights), str(tmp_path)])
    with pytest.raises(SystemExit):
        main()
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err
    assert "a\\x1b[31mred\\n.jpg" in out and "unreadable: " in err and "b\\x1b[2J.jpg" in err
