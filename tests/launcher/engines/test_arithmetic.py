"""How float32 is computed on a GPU is set, and not left to torch's defaults."""

import pytest
import torch
from accelerate import Accelerator

from launcher.engines.arithmetic import set_arithmetic
from launcher.training.fit_micro_batch import oom_on_any_rank
from recipes.errors import UserError


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
    torch.use_deterministic_algorithms(not deterministic)  # as an earlier run of this process may have set it
    set_arithmetic(deterministic)
    assert not torch.backends.cudnn.allow_tf32 and torch.get_float32_matmul_precision() == "highest"
    assert torch.backends.cudnn.benchmark is not deterministic
    assert torch.are_deterministic_algorithms_enabled() is deterministic


def test_a_model_without_deterministic_kernels_is_refused_in_a_sentence():
    """On a GPU, e.g. the backward pass of adaptive pooling; on a CPU, `put_` is such an operation."""
    torch.use_deterministic_algorithms(True)
    said = "no deterministic kernel for put_, which .* add engine.deterministic=false"
    with pytest.raises(UserError, match=said), oom_on_any_rank(Accelerator(cpu=True)):
        torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))
