"""Weights from anybody's files: read without running anything, renamed, fitted, and what is left out is named."""

import argparse
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from models.weights import fit_weights, read_weights
from recipes.errors import UserError


@pytest.fixture
def trained() -> nn.Module:
    torch.manual_seed(1)
    return timm.create_model("convnext_atto", num_classes=10, ls_init_value=1e-6)


@pytest.fixture
def fresh() -> nn.Module:
    torch.manual_seed(2)
    return timm.create_model("convnext_atto", num_classes=10, ls_init_value=1e-6)


def is_same(model: nn.Module, other: nn.Module, but: tuple[str, ...] = ()) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in model.state_dict().items() if name not in but)


WRAPPINGS = {
    "bare": lambda state: state,
    "model": lambda state: {"model": state, "epoch": 3, "optimizer": {"lr": 1.0}},
    "model_ema": lambda state: {"model_ema": state},
    "state_dict with module.": lambda state: {
        "state_dict": OrderedDict((f"module.{name}", value) for name, value in state.items())
    },
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_pth_files_of_timm_and_convnext_are_read(trained, fresh, tmp_path, wrapping):
    torch.save(WRAPPINGS[wrapping](trained.state_dict()), tmp_path / "weights.pth")
    assert fit_weights(fresh, read_weights(tmp_path / "weights.pth"), "weights.pth") == []
    assert is_same(fresh, trained)


def upstream_names(state: dict) -> dict:
    """A ConvNeXt's weights under the names, and in the shapes, of the paper's own code."""
    renamed = {}
    for name, value in state.items():
        if name.startswith("stem."):
            name = f"downsample_layers.0.{name.removeprefix('stem.')}"
        elif ".downsample." in name:
            _, stage, _, rest = name.split(".", 3)
            name = f"downsample_layers.{stage}.{rest}"
        elif name.startswith("stages."):
            name = name.replace(".blocks.", ".").replace("conv_dw", "dwconv")
            if "mlp.fc" in name:
                name = name.replace("mlp.fc1", "pwconv1").replace("mlp.fc2", "pwconv2")
                value = value.reshape(value.shape[:2]) if value.ndim == 4 else value  # upstream's are linear layers
        elif name.startswith("head.norm."):
            name = name.removeprefix("head.")
        elif name.startswith("head.fc."):
            name = name.replace("head.fc.", "head.")
        renamed[name] = value
    return renamed


def test_the_papers_own_names_are_renamed_and_the_model_computes_the_same(trained, fresh, tmp_path):
    torch.save({"model": upstream_names(trained.state_dict())}, tmp_path / "upstream.pth")
    assert "downsample_layers.1.0.weight" in read_weights(tmp_path / "upstream.pth")
    assert fit_weights(fresh, read_weights(tmp_path / "upstream.pth"), "upstream.pth") == []
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(fresh.eval()(images), trained.eval()(images))


def test_a_head_for_other_classes_is_new_and_that_is_said(trained, tmp_path):
    save_file(trained.state_dict(), tmp_path / "ten.safetensors")
    two = timm.create_model("convnext_atto", num_classes=2, ls_init_value=1e-6)
    head = {name: two.state_dict()[name].clone() for name in ("head.fc.weight", "head.fc.bias")}
    notes = fit_weights(two, read_weights(tmp_path / "ten.safetensors"), "ten.safetensors")
    assert [note.split(":")[0] for note in notes] == ["head.fc.weight", "head.fc.bias"]
    assert "10 classes in ten.safetensors, 2 here" in notes[0]
    assert all(torch.equal(two.state_dict()[name], value) for name, value in head.items())
    with pytest.raises(UserError, match="head.fc.weight is 10×320 there and 2×320 here"):
        fit_weights(two, read_weights(tmp_path / "ten.safetensors"), "ten.safetensors", new_head=False)
    state = trained.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in two.state_dict().items() if name not in head)


def test_every_key_that_is_not_used_is_named(trained, fresh):
    extra = {"fc_norm.weight": torch.zeros(3), "aux.bias": torch.zeros(1)}
    assert fit_weights(fresh, trained.state_dict() | extra, "file") == [
        "fc_norm.weight: not part of this model",
        "aux.bias: not part of this model",
    ]


class Attack:
    def __reduce__(self):
        return (Path.touch, (Path("attacked"),))


def test_nothing_in_a_file_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("bad.pth").write_bytes(pickle.dumps({"model": Attack()}))
    with pytest.raises(UserError) as caught:
        read_weights(Path("bad.pth"))
    torch.save({"model": {"w": torch.zeros(1)}, "extra": Attack()}, "worse.pth")
    with pytest.raises(UserError, match="holds more than weights"):
        read_weights(Path("worse.pth"))
    assert not Path("attacked").exists() and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "make, part",
    [
        (lambda path: None, "there is no weights file"),
        (lambda path: path.write_bytes(b"not weights"), "cannot be read as weights|holds more than weights"),
        (lambda path: torch.save({"epoch": 3}, path), "holds no weights"),
    ],
)
def test_a_file_without_weights_is_refused_in_one_sentence(tmp_path, make, part):
    make(tmp_path / "x.pth")
    with pytest.raises(UserError, match=part) as caught:
        read_weights(tmp_path / "x.pth")
    assert "\n" not in str(caught.value)


def test_weights_of_another_model_are_refused(trained):
    with pytest.raises(UserError, match="file has no conv1.0.weight: these are not weights of this model"):
        fit_weights(timm.create_model("test_resnet"), trained.state_dict(), "file")


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".pth.tar", ".bin"])
@pytest.mark.parametrize("script", ["timm", "ConvNeXt"])
def test_checkpoints_of_training_scripts_are_read_with_their_arguments_and_metrics(
    trained, fresh, tmp_path, script, suffix
):
    state, arguments = trained.state_dict(), argparse.Namespace(lr=1.0, device="cuda", nested=argparse.Namespace(a=[1]))
    numbers = {
        str(kind): kind(1) for kind in (np.float64, np.float32, np.float16, np.int64, np.int32, np.uint8, np.bool_)
    }
    optimizer = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1.0}]}
    beside = {"epoch": 3, "args": arguments, "optimizer": optimizer, "metric": numbers}
    path = tmp_path / f"checkpoint{suffix}"
    torch.save({"state_dict": state, "arch": "x"} | beside if script == "timm" else {"model": state} | beside, path)
    assert fit_weights(fresh, read_weights(path), path.name) == []
    assert is_same(fresh, trained)


def test_scalars_under_the_name_of_numpy_1_are_read(trained, tmp_path):
    """What NumPy 1 called numpy.core.multiarray is numpy._core.multiarray today."""
    path = tmp_path / "old.pth"
    torch.save({"model": trained.state_dict(), "metric": np.float64(1)}, path, _use_new_zipfile_serialization=False)
    new, old = b"cnumpy._core.multiarray\nscalar\n", b"cnumpy.core.multiarray\nscalar\n"
    assert new in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(new, old))
    assert len(read_weights(path)) == len(trained.state_dict())


PREFIXES = [
    "module.",
    "_orig_mod.",
    "model.",
    "backbone.",
    "module._orig_mod.",
    "_orig_mod.module.",
    "model.backbone.module.",
]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_prefixes_of_wrappers_are_removed_in_every_format(trained, fresh, tmp_path, prefix, suffix):
    state, path = {prefix + name: value for name, value in trained.state_dict().items()}, tmp_path / f"w{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save({"state_dict": state}, path)
    assert fit_weights(fresh, read_weights(path), "w") == []
    assert is_same(fresh, trained)


def test_what_lies_beside_a_wrapped_model_is_named(trained, fresh):
    """A Lightning module's loss, or the counter of torch's AveragedModel."""
    state = {f"module.{name}": value for name, value in upstream_names(trained.state_dict()).items()}
    assert fit_weights(fresh, state | {"n_averaged": torch.tensor(3)}, "file") == ["n_averaged: not part of this model"]
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(fresh.eval()(images), trained.eval()(images))


@pytest.mark.parametrize("raw, ema", [("state_dict", "state_dict_ema"), ("model", "model_ema")])
def test_of_raw_and_ema_weights_the_ema_is_taken_and_that_is_said(trained, fresh, tmp_path, raw, ema):
    state, path = trained.state_dict(), tmp_path / "both.pth"
    torch.save({raw: {name: value + 1 for name, value in state.items()}, ema: state, "epoch": 1}, path)
    notes = fit_weights(fresh, read_weights(path), "both.pth")
    assert len(notes) == 1 and f"loading {ema} from both.pth" in notes[0] and f"model.weights_key={raw}" in notes[0]
    assert is_same(fresh, trained)
    assert fit_weights(fresh, read_weights(path, raw), "both.pth") == []
    assert torch.equal(fresh.state_dict()["stem.0.bias"], state["stem.0.bias"] + 1)


def test_a_key_that_is_not_there_and_weights_of_unknown_names_are_one_sentence(trained, tmp_path):
    state = trained.state_dict()
    torch.save({"teacher": state, "student": state}, tmp_path / "two.pth")
    save_file(state, tmp_path / "one.safetensors")
    for path, key, part in [
        ("two.pth", None, "weights under teacher, student: choose one with model.weights_key=KEY"),
        ("two.pth", "teechr", "no weights under model.weights_key=teechr: its weights are under teacher, student"),
        ("one.safetensors", "teacher", "it holds one set, so leave the key out"),
    ]:
        with pytest.raises(UserError, match=part) as caught:
            read_weights(tmp_path / path, key)
        assert "\n" not in str(caught.value)
    assert len(read_weights(tmp_path / "two.pth", "teacher")) == len(state)


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_a_folder_in_the_hubs_layout_is_read(trained, fresh, tmp_path, file):
    (tmp_path / "config.json").write_text('{"architecture": "convnext_atto"}')
    with pytest.raises(UserError, match="folder without model.safetensors or pytorch_model.bin"):
        read_weights(tmp_path)
    state = trained.state_dict()
    save_file(state, tmp_path / file) if file.endswith("safetensors") else torch.save(state, tmp_path / file)
    assert fit_weights(fresh, read_weights(tmp_path), "folder") == []
    assert is_same(fresh, trained)


@pytest.mark.parametrize(
    "name, options, resized",
    [
        ("test_vit", {}, "pos_embed"),
        ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1)}, "relative_position_bias_table"),
    ],
)
def test_weights_of_another_resolution_are_resized_by_timms_filter(name, options, resized):
    """The same as timm does where it makes the model for that size from pretrained weights."""
    torch.manual_seed(0)
    there = timm.create_model(name, num_classes=4, img_size=128, **options)
    here = timm.create_model(name, num_classes=4, img_size=64, **options)
    notes = fit_weights(here, there.state_dict(), "file")
    assert len(notes) == 1 and resized in notes[0] and "resized from" in notes[0]
    assert here(torch.randn(2, 3, 64, 64)).isfinite().all()
    expected = there.state_dict()
    same = [n for n, value in here.state_dict().items() if torch.equal(value, expected.get(n, torch.empty(0)))]
    assert len(same) > 0.8 * len(expected)


def test_swins_masks_in_older_files_are_not_in_the_way():
    """Files of Swin's own code hold masks and indices, whose shapes depend on the resolution."""
    options = {"img_size": 64, "depths": (1, 1, 1, 1), "num_classes": 4}
    model = timm.create_model("swin_tiny_patch4_window7_224", **options)
    table = next(name for name in model.state_dict() if name.endswith("bias_table"))
    other = timm.create_model("swin_tiny_patch4_window7_224", **options | {"img_size": 128}).state_dict()
    old = other | {table.replace("bias_table", "index"): torch.zeros(3), "layers.0.blocks.0.attn_mask": torch.zeros(9)}
    assert not [note for note in fit_weights(model, old, "file") if "not part" in note]


def test_a_resolution_that_cannot_be_resized_is_called_that(monkeypatch):
    there, here = (timm.create_model("test_vit", num_classes=4, img_size=size) for size in (128, 64))
    monkeypatch.delattr("timm.models.vision_transformer.checkpoint_filter_fn")
    with pytest.raises(UserError, match="trained at another resolution .pos_embed .* set input.size") as caught:
        fit_weights(here, there.state_dict(), "file")
    assert "\n" not in str(caught.value)


def test_weights_without_a_head_get_a_new_one(trained, fresh):
    body = {name: value for name, value in trained.state_dict().items() if not name.startswith("head.fc.")}
    assert [note.partition(":")[0] for note in fit_weights(fresh, body, "file")] == ["head.fc.weight", "head.fc.bias"]
    with pytest.raises(UserError, match="file has no head.fc.weight"):
        fit_weights(fresh, body, "file", new_head=False)
