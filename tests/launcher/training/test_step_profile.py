"""`--profile`: what is recorded, and how the time of a step is told apart."""

import gzip
import json
from collections import Counter
from types import SimpleNamespace

import pytest
from torch.autograd import DeviceType

from launcher.training.step_profile import StepTimes, step_times
from recipes.load import load
from tests.launcher.conftest import SMALL
from tests.launcher.process_group import train_group

SHORT = [*SMALL, "schedule.epochs=1", "schedule.warmup_epochs=0"]


@pytest.mark.slow
@pytest.mark.parametrize(("asked", "micro_batches", "updates"), [(2, 2, 1), (5, 8, 2)])
def test_a_profile_is_of_whole_micro_batches_and_ends_with_an_update(digits, tmp_path, asked, micro_batches, updates):
    """Four micro-batches a step: fewer are the last ones of a step, more are whole steps."""
    train_group(1, load("demo", [*SHORT, f"data.path={digits}"]), tmp_path / "run", micro_batch=16, profile=asked)
    with gzip.open(tmp_path / "run" / "profile" / "trace.json.gz") as file:
        names = Counter(event.get("name") for event in json.load(file)["traceEvents"])
    assert (names["bigbatch: forward"], names["bigbatch: backward"], names["bigbatch: update"]) == (
        micro_batches,
        micro_batches,
        updates,
    )
    text = (tmp_path / "run" / "profile" / "profile.txt").read_text()
    assert "of the time" in text and "a step has 4 micro-batches" in text and "aten::" in text
    assert f"profile of {micro_batches} micro-batches" in (tmp_path / "run.log").read_text()


def test_a_run_that_ends_too_early_says_why_there_is_no_profile(digits, tmp_path):
    train_group(1, load("demo", [*SHORT, f"data.path={digits}"]), tmp_path / "run", micro_batch=64, profile=1000)
    assert "no profile: it takes 1002 optimizer steps" in (tmp_path / "run.log").read_text()


def event(name: str, first: float, last: float, device=DeviceType.CUDA, annotation=False) -> SimpleNamespace:
    return SimpleNamespace(
        name=name,
        device_type=device,
        time_range=SimpleNamespace(start=first * 1e6, end=last * 1e6),
        is_user_annotation=annotation or name.startswith("bigbatch: "),
    )


def test_on_a_gpu_time_is_what_ran_there_and_not_what_the_process_did():
    """Two of four micro-batches; the process runs ahead of the GPU and waits for data while the GPU still computes."""
    host = [
        event("bigbatch: data wait", 0, 1, DeviceType.CPU),
        event("bigbatch: forward", 1, 1.5, DeviceType.CPU),
        event("bigbatch: backward", 1.5, 2, DeviceType.CPU),
        event("bigbatch: data wait", 2, 4, DeviceType.CPU),
        event("bigbatch: agreement", 9, 12, DeviceType.CPU),
    ]
    gpu = [
        event("gemm", 1, 4),
        event("gemm", 5, 8),
        event("elementwise", 7, 8),  # on another stream
        event("ncclDevKernel_AllReduce", 7, 9),  # the last second is not hidden
        event("bigbatch: update", 9, 10),
        event("adamw", 9, 10),
    ]
    times = step_times([*host, *gpu], on_gpu=True, scale=2, steps=1)
    # 12 s: 6 computing, 1 update, 1 communication alone, 4 unused, of which 3 can be the wait for data
    assert vars(times) == pytest.approx({"computing": 12, "optimizer": 1, "communication": 1, "data": 6, "idle": 2})


def test_annotations_gaps_and_copies_from_the_host_are_not_counted_as_computing():
    """torch annotates ranges on the GPU too, e.g. the whole forward pass, and those ranges contain gaps."""
    host = [event("bigbatch: forward", 0, 1, DeviceType.CPU), event("bigbatch: agreement", 9, 10, DeviceType.CPU)]
    gpu = [
        event("DistributedDataParallel.forward", 0, 8, annotation=True),
        event("Memcpy HtoD (Pinned -> Device)", 0, 3),
        event("gemm", 2, 4),
        event("Memset (Device)", 4, 5),
        event("nccl:all_reduce", 3, 8, annotation=True),
        event("ncclDevKernel_AllReduce", 4, 6),
        event("bigbatch: update", 7, 10),
        event("Optimizer.step#AdamW.step", 7, 10, annotation=True),
        event("adamw", 7, 8),
        event("adamw", 9, 10),
    ]
    times = step_times([*host, *gpu], on_gpu=True, scale=1, steps=1)
    assert vars(times) == pytest.approx({"computing": 3, "optimizer": 2, "communication": 1, "data": 0, "idle": 4})


@pytest.mark.parametrize(
    ("times", "said"),
    [
        (
            StepTimes(computing=8, optimizer=1, communication=0.1, data=0.1, idle=0.1),
            "the model's arithmetic bounds this run, 86%",
        ),
        (StepTimes(computing=1, optimizer=0, communication=0, data=3, idle=0), "waiting for data bounds this run, 75%"),
        (
            StepTimes(computing=7, optimizer=0, communication=0, data=3, idle=0),
            "but 30% is spent waiting for data: more CPU cores",
        ),
        (StepTimes(computing=1, optimizer=0, communication=0, data=0, idle=3), "--micro-batch or engine.compile=true"),
    ],
)
def test_one_sentence_says_what_bounds_the_run_and_what_would_help(times, said):
    assert said in times.sentence()
