"""Each rank uses its own GPU, and a node without a working one is found before a group of NCCL waits for it."""

import os
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from launcher.engines import rank_gpus
from launcher.engines.base import make_accelerator
from launcher.engines.connection import TIMEOUT, Connection
from launcher.engines.rank_gpus import gpu_of_rank, refuse_shared_gpus, use_gpu_of_rank
from launcher.jobs import preflight
from launcher.training import start
from launcher.world import World, this_process
from recipes.errors import UserError
from recipes.load import load
from recipes.schema import Recipe
from slurm.job import BAD_NODE
from tests.launcher.process_group import Group

SECOND_OF_TWO = World(rank=1, size=2, local_rank=1, local_size=2, is_launched=True)


def test_a_rank_takes_the_gpu_of_its_number_or_the_only_one_that_it_sees():
    assert gpu_of_rank(SECOND_OF_TWO, visible=2, environment={}) == 1
    assert gpu_of_rank(SECOND_OF_TWO, visible=1, environment={"CUDA_VISIBLE_DEVICES": "3"}) == 0
    assert gpu_of_rank(SECOND_OF_TWO, visible=1, environment={"SLURM_PROCID": "1"}) == 0


@pytest.mark.parametrize("ranks, visible, part", [(2, 1, "1 visible GPU,"), (4, 2, "2 visible GPUs,")])
@pytest.mark.parametrize("is_counted", [True, False])
def test_more_ranks_than_gpus_are_refused(ranks, visible, part, is_counted):
    """By every rank of the node, or by those without a GPU where the launcher does not say how many there are."""
    environment = {"LOCAL_WORLD_SIZE": str(ranks)} if is_counted else {}
    begun = ranks if is_counted else visible + 1
    for rank in range(0 if is_counted else visible, ranks):
        with pytest.raises(UserError, match=f"{max(begun, rank + 1)} processes .* {part} .*--procs {visible}"):
            gpu_of_rank(World(rank, ranks, rank, ranks, is_launched=True), visible, environment)


def test_one_rank_of_each_node_says_that_there_are_too_few_gpus():
    """`run_app` prints what rank 0 raises and what begins with the number of another rank."""
    said = []
    for rank in range(6):
        with pytest.raises(UserError) as caught:
            gpu_of_rank(World(rank, 6, rank % 3, 3, is_launched=True), 2, {"LOCAL_WORLD_SIZE": "3"})
        said += [rank] if rank == 0 or str(caught.value).startswith(f"[rank {rank}] 3 processes") else []
    assert said == [0, 3]


def test_two_ranks_on_one_gpu_are_refused():
    refuse_shared_gpus(["node1 GPU-1", "node1 GPU-2", "node2 GPU-1"])
    with pytest.raises(UserError, match="ranks 1 and 2 were started on the same GPU, .* CUDA_VISIBLE_DEVICES"):
        refuse_shared_gpus(["node1 GPU-1", "node1 GPU-2", "node1 GPU-2"])


@pytest.fixture
def of_two_nodes_with_one_gpu_per_task(monkeypatch):
    """Return a function that makes this process that rank of two nodes with two ranks each; each sees one GPU."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-5e")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "BIGBATCH_LOCAL_RANK"):
        monkeypatch.setenv(name, "")  # so that they are as before after the test, whoever sets them

    def become(rank: int) -> None:
        os.environ |= {"WORLD_SIZE": "4", "RANK": str(rank), "LOCAL_RANK": str(rank % 2), "LOCAL_WORLD_SIZE": "2"}
        os.environ.pop("BIGBATCH_LOCAL_RANK", None)
        use_gpu_of_rank()

    return become


def test_the_libraries_get_the_index_of_the_device_as_local_rank(of_two_nodes_with_one_gpu_per_task):
    """Accelerate, DDP and DeepSpeed read LOCAL_RANK as a device. Whoever asks for the rank on the node gets that."""
    of_two_nodes_with_one_gpu_per_task(3)
    assert os.environ["LOCAL_RANK"] == "0" and this_process() == World(3, 4, 1, 2, is_launched=True)
    use_gpu_of_rank()  # as for a second training in the same process
    assert os.environ["LOCAL_RANK"] == "0" and this_process() == World(3, 4, 1, 2, is_launched=True)


def test_one_rank_per_node_downloads_weights_where_each_sees_one_gpu(of_two_nodes_with_one_gpu_per_task, monkeypatch):
    """Otherwise all ranks of a node without a shared cache would download at once."""
    asked: list[int] = []
    monkeypatch.setattr(start, "raised_on_all_ranks", nullcontext)
    monkeypatch.setattr(start, "cached_timm_file", lambda name: asked.append(this_process().rank))
    for rank in range(4):
        of_two_nodes_with_one_gpu_per_task(rank)
        start._download_by_turns("convnext")
    assert set(asked) == {0, 2}


def test_a_rank_waits_longer_for_the_others_than_a_save_may_take(monkeypatch):
    given = {}
    monkeypatch.setattr("launcher.engines.base.Accelerator", lambda **options: given.update(options) or Accelerators)
    make_accelerator(load("demo"))
    assert TIMEOUT.total_seconds() > 30 * 60 and TIMEOUT in [
        getattr(handler, "timeout", None) for handler in given["kwargs_handlers"]
    ]


class Accelerators:
    num_processes = 1


def preflight_with_a_broken_gpu(_: Recipe, run: Path) -> None:
    """The second rank lists a GPU that does not work; the first one's works."""
    begun: list[str] = []
    begin = Connection._begin

    def recorded(self, backend, timeout):
        begun.append(backend)
        begin(self, "gloo", timeout)

    def ones(*_, **options):
        if options.get("device") == "cuda" and this_process().rank == 1:
            raise RuntimeError("CUDA error: an uncorrectable ECC error was encountered")
        return real_ones(*_, **{name: value for name, value in options.items() if name != "device"})

    real_ones, torch.ones = torch.ones, ones
    Connection._begin = recorded
    torch.cuda.is_available, torch.cuda.device_count = lambda: True, lambda: 2
    torch.cuda.set_device, preflight.identity_of_gpu = lambda _: None, lambda: "GPU-5e"
    rank_gpus._RESTRICTED = ()
    code: object = None
    try:
        preflight.check_all_nodes("", run, None)
    except SystemExit as end:
        code = end.code
    print(f"rank {this_process().rank}: exit {code}, groups {begun}", file=sys.stderr)


def test_a_gpu_that_does_not_work_ends_the_preflight_before_nccl_begins(tmp_path):
    group = Group(2, load("demo"), tmp_path / "run", target=preflight_with_a_broken_gpu)
    group.finish()
    log = group.log.read_text()
    assert [f"rank {rank}: exit {BAD_NODE}, groups ['gloo']" in log for rank in (0, 1)] == [True, True], log
    assert "cannot be used: CUDA error: an uncorrectable ECC error" in log


def download(recipe: Recipe, run: Path) -> None:
    """Both ranks want timm's weights; the cache has them once somebody has downloaded them."""

    def cached(name):
        rank = os.environ["RANK"]
        if name == "unreachable":
            raise UserError("the weights cannot be downloaded")
        time.sleep(0.2)  # a rank that did not wait would find no file
        file = run.parent / name
        print(f"rank {rank} {'finds' if file.exists() else 'downloads'} {name}", file=sys.stderr)
        file.touch()

    start.cached_timm_file = cached
    make_accelerator(recipe)
    start._download_by_turns("convnext")
    assert (run.parent / "convnext").exists()
    try:
        start._download_by_turns("unreachable")
    except UserError as error:
        print(f"rank {os.environ['RANK']}: {error}", file=sys.stderr)


def test_one_rank_downloads_weights_while_the_others_wait(tmp_path):
    group = Group(2, load("demo"), tmp_path / "run", target=download)
    group.finish()
    log = group.log.read_text()
    assert log.count("downloads convnext") == 1 and "rank 0 downloads convnext" in log
    assert [f"rank {rank}: the weights cannot be downloaded" in log for rank in (0, 1)] == [True, True], log
