"""Offload to a disk is refused in one sentence where its operator cannot be compiled, and says when it compiles."""

import time

import pytest
import torch

import launcher.engines.zero  # noqa: F401 - imports DeepSpeed for the device at hand
from launcher.engines import disk_offload
from launcher.engines.disk_offload import load_file_operator
from recipes.errors import UserError


class Builder:
    """DeepSpeed's AsyncIOBuilder, as this module uses it."""

    has_libaio, seconds, error = True, 0.0, None

    def is_compatible(self):
        return self.has_libaio

    def load(self, verbose):
        time.sleep(self.seconds)
        if self.error:
            raise self.error


@pytest.fixture(autouse=True)
def builder(monkeypatch):
    monkeypatch.setattr("deepspeed.ops.op_builder.AsyncIOBuilder", Builder)


def test_wheels_without_a_cuda_toolkit_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(disk_offload.cpp_extension, "CUDA_HOME", None)
    with pytest.raises(UserError, match="needs the CUDA toolkit: .* or use engine.offload=cpu"):
        load_file_operator(print)


def test_a_missing_library_and_a_failed_compilation_are_refused(monkeypatch):
    monkeypatch.setattr(Builder, "has_libaio", False)
    with pytest.raises(UserError, match="libaio-dev"):
        load_file_operator(print)
    monkeypatch.setattr(Builder, "has_libaio", True)
    monkeypatch.setattr(Builder, "error", RuntimeError("Error building extension 'async_io'\nmany lines"))
    with pytest.raises(UserError, match=r"failed \(Error building extension 'async_io'\)"):
        load_file_operator(print)


def test_only_an_operator_that_takes_long_to_load_is_announced(monkeypatch):
    said: list[str] = []
    load_file_operator(said.append)
    assert said == []
    monkeypatch.setattr(disk_offload, "_SILENT", 0.01)
    monkeypatch.setattr(Builder, "seconds", 0.3)
    load_file_operator(said.append)
    assert len(said) == 1 and "takes minutes" in said[0]
