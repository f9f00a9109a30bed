"""Offload to a disk is refused in one sentence where its operator cannot be compiled, and says when it compiles."""

import os
import subprocess
import sys
import time

import pytest
import torch
from torch.utils import cpp_extension

from launcher.engines import base, disk_offload
from launcher.engines.base import make_accelerator
from launcher.engines.disk_offload import check_disk_offload, load_file_operator
from recipes.errors import UserError
from recipes.load import load


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
    monkeypatch.setattr(disk_offload, "_file_operator_builder", Builder)
    disk_offload._compatible_builder.cache_clear()
    yield
    disk_offload._compatible_builder.cache_clear()


@pytest.mark.slow
def test_deepspeed_has_the_builder(monkeypatch):
    """All other tests here replace it."""
    monkeypatch.undo()
    assert callable(disk_offload._file_operator_builder().is_compatible)


def test_what_is_missing_is_said_before_the_ranks_connect(monkeypatch):
    def connect(**_):
        raise AssertionError("connected")

    monkeypatch.setattr(base, "Accelerator", connect)
    monkeypatch.setattr(Builder, "has_libaio", False)
    recipe = load("demo", ["engine.zero=3", "engine.offload=nvme", "engine.nvme_path=disk"])
    with pytest.raises(UserError, match="libaio-dev"):
        make_accelerator(recipe)
    check_disk_offload(load("demo", ["engine.offload=cpu"]))


def test_the_first_rank_of_another_node_says_that_its_node_lacks_something(monkeypatch):
    """Rank 0 may be on a node that has it."""
    monkeypatch.setattr(Builder, "has_libaio", False)
    recipe = load("demo", ["engine.zero=3", "engine.offload=nvme", "engine.nvme_path=disk"])
    for rank, prefix in enumerate(["", "", r"\[rank 2\] ", ""]):
        variables = {"RANK": rank, "WORLD_SIZE": 4, "LOCAL_RANK": rank % 2, "LOCAL_WORLD_SIZE": 2}
        for name, value in variables.items():
            monkeypatch.setenv(name, str(value))
        with pytest.raises(UserError, match=f"^{prefix}engine.offload=nvme"):
            check_disk_offload(recipe)


def test_wheels_without_a_cuda_toolkit_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", None)
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


@pytest.mark.slow
def test_on_a_machine_with_a_cuda_toolkit_and_no_gpu_nothing_is_printed_at_the_start(tmp_path):
    """torch's module of extensions warns about it, and every command would begin with that."""
    environment = os.environ | {"CUDA_HOME": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", "import launcher.engines.base, launcher.evaluation.predict"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""
