"""Weights that are damaged, or of which no model computes anything, are refused in one sentence."""

import pickle
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save

from models.weights import fit_weights, read_metadata, read_weights
from recipes.errors import UserError


@pytest.mark.parametrize(
    "change, part",
    [
        (lambda value: value.to(torch.int64), "is int64, not floating point"),
        (lambda value: value > 0, "is bool, not floating point"),
        (lambda value: value.to(torch.complex64), "is complex64, not floating point"),
        (lambda value: torch.zeros(value.shape, dtype=torch.uint8).view(torch.float4_e2m1fn_x2), "cannot convert"),
        (lambda value: value * torch.nan, "is NaN or infinite"),
        (lambda value: value.index_fill(0, torch.tensor(3), -torch.inf), "is NaN or infinite"),
        (lambda value: value.double() + 1e300, "is NaN or infinite"),
    ],
)
@pytest.mark.parametrize("meta", [False, True])
def test_weights_that_a_model_cannot_compute_with_are_refused(change, part, meta):
    """A dry run, which has a meta model, refuses them too."""
    model = timm.create_model("test_convnext", num_classes=10)
    weights = model.state_dict()
    weights["stages.0.blocks.0.norm.bias"] = change(weights["stages.0.blocks.0.norm.bias"])
    with pytest.raises(UserError, match=f"stages.0.blocks.0.norm.bias in file .*{part}"):
        fit_weights(model.to("meta") if meta else model, weights, "file")


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float64", "float8_e4m3fn"])
def test_weights_of_other_floating_point_types_are_converted(kind):
    """The counters of BatchNorm are integers, in some files floating-point numbers."""
    trained, fresh = (timm.create_model("test_resnet") for _ in range(2))
    weights = {name: value.to(getattr(torch, kind)) for name, value in trained.state_dict().items()}
    assert fit_weights(fresh, weights, "file") == []
    assert all(torch.equal(fresh.state_dict()[name], value.to(torch.float32)) for name, value in weights.items())


@pytest.mark.parametrize(
    "make, part",
    [
        (lambda dense: torch.zeros(2, 2, device="meta"), "a meta tensor"),
        (lambda dense: dense.to_sparse(), "a sparse tensor"),
        (lambda dense: dense.to_sparse_csr(), "a sparse tensor"),
        (lambda dense: torch.quantize_per_tensor(dense, 0.1, 0, torch.qint8), "a quantized tensor"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*(Sparse CSR|quant).*:UserWarning", "ignore:.*quant.*:DeprecationWarning")
def test_tensors_of_other_kinds_are_refused_by_name(tmp_path, make, part):
    torch.save({"model": {"head.weight": make(torch.eye(2))}}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=f"head.weight in .*x.pth is {part}"):
        read_weights(tmp_path / "x.pth")


SAFE = save({"w": torch.ones(2, 3)}, {"recipe": "r"})


@pytest.mark.parametrize("name", ["w.ckpt", "w.onnx", "w.pth", "w.SAFETENSORS", "w"])
def test_safetensors_are_known_by_their_content(tmp_path, name):
    (tmp_path / name).write_bytes(SAFE)
    assert read_weights(tmp_path / name).keys() == {"w"} and read_metadata(tmp_path / name) == {"recipe": "r"}


@pytest.mark.parametrize("damaged", [SAFE[:-1], SAFE[:20], SAFE.replace(b'"F32"', b'"F3x"'), SAFE[:8] + b"{" * 99])
@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
@pytest.mark.parametrize("read", [read_weights, read_metadata])
def test_damaged_safetensors_are_called_damaged(tmp_path, damaged, name, read):
    (tmp_path / name).write_bytes(damaged)
    with pytest.raises(UserError, match=f"{name} cannot be read as weights .*: it is damaged"):
        read(tmp_path / name)


@pytest.mark.parametrize(
    "content",
    [
        b"text",
        bytes(512),
        b"\x08\x0a\x12\x07pytorch",  # as an ONNX file begins
        pickle.dumps(print),
        pickle.dumps(Path(), protocol=2),
        b"c\x1b[31mos\nsys\x1b[0mtem\n.",
    ],
)
def test_no_advice_of_torch_to_run_a_file_and_no_control_characters_are_shown(tmp_path, content):
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_weights(tmp_path / "w.pth")
    assert str(caught.value).isprintable() and "weights_only" not in str(caught.value)
