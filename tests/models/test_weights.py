"""Weights from anybody's files: read without running anything, renamed, fitted, and what is left out is named."""

import pickle
from collections import OrderedDict
from pathlib import Path

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
