"""How float32 is computed on a GPU is set, and not left to torch's defaults."""

import pytest
import torch

from launcher.engines.arithmetic import set_arithmetic


@pytest.fixture(autouse=True)
def former_settings():
    torch.use_deterministic_algorithms(False)  # an earlier test of this process may have left it on
    kept = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision()
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = kept[:2]
    torch.set_float32_matmul_precision(kept[2])
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("deterministic", [False, True])
def test_float32_is_never_rounded_and_kernels_are_timed_unless_they_must_repeat(monkeypatch, deterministic):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("high")
    set_arithmetic(deterministic)
    assert not torch.backends.cudnn.allow_tf32 and torch.get_float32_matmul_precision() == "highest"
    assert torch.backends.cudnn.benchmark is not deterministic
    assert torch.are_deterministic_algorithms_enabled() is deterministic
