"""Every image comes once per epoch at any number of processes and workers, with damage too; memory does not grow."""

import multiprocessing
from pathlib import Path

import numpy as np
import pytest

from data.batches import MicroBatches
from data.loader import load_steps
from data.reading.shards import ShardSet, Split
from data.writing.sharding import shard
from recipes.load import load

STEPS = 22  # an epoch of 1,438 digits in batches of 64


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Split:
    folder = tmp_path_factory.mktemp("data") / "digits"
    return shard("digits", folder, val_fraction=0.2, progress=False).split("train")


@pytest.fixture(scope="module")
def damaged(tmp_path_factory) -> tuple[Split, set[int]]:
    """Return the same split with every twentieth image overwritten inside the shard, and the damaged samples."""
    folder = tmp_path_factory.mktemp("data") / "damaged"
    split = shard("digits", folder, val_fraction=0.2, progress=False).split("train")
    bad = range(7, len(split), 20)
    with split.shard_paths[0].open("r+b") as file:
        for row in split.index[bad.start :: bad.step]:
            file.seek(int(row["offset"]))
            file.write(bytes(int(row["size"])))
    return ShardSet.open(folder).split("train"), set(bad)


def recipe_of(shuffle: str):
    changes = [
        "batch.global=64",
        "batch.slices=4",
        "input.size=16",
        "augment.randaugment=null",
        "augment.color_jitter=null",
    ]
    return load("demo", [*changes, f"data.shuffle={shuffle}"])


def epoch_of(split: Split, recipe, epoch: int, processes: int, workers: int) -> tuple[np.ndarray, int]:
    """Return the sample at each position of the epoch, int64 ``[steps * 64]``, and the number of failed reads."""
    per_process = -(-64 // processes)
    seen, failed = np.full((STEPS, 64), -1), 0
    for rank in range(processes):
        dataset = MicroBatches(split, recipe, rank * per_process, per_process)
        for batch in load_steps(dataset, range(epoch * STEPS, (epoch + 1) * STEPS), 1, workers, pin=False):
            own = batch.weights > 0
            positions = batch.positions[own].numpy()
            assert (seen[batch.step - epoch * STEPS, positions] == -1).all()
            seen[batch.step - epoch * STEPS, positions] = batch.samples[own].numpy()
            failed += len(batch.replaced)
    return seen.ravel(), failed


@pytest.mark.slow
@pytest.mark.parametrize("shuffle", ["full", "blocks"])
def test_every_image_comes_once_an_epoch_at_any_number_of_processes_and_workers(digits, shuffle):
    recipe = recipe_of(shuffle)
    one, failed = epoch_of(digits, recipe, 1, 1, 0)
    assert failed == 0 and len(np.unique(one)) == len(one) == STEPS * 64
    for processes, workers in ((1, 2), (2, 0), (2, 1), (3, 2)):
        assert np.array_equal(epoch_of(digits, recipe, 1, processes, workers)[0], one)


@pytest.mark.slow
@pytest.mark.parametrize("shuffle", ["full", "blocks"])
def test_with_one_in_twenty_corrupt_all_others_still_come_once_and_the_rest_is_replaced_alike(digits, damaged, shuffle):
    split, bad = damaged
    recipe = recipe_of(shuffle)
    intended, _ = epoch_of(digits, recipe, 1, 1, 0)
    one, failed = epoch_of(split, recipe, 1, 1, 0)
    replaced = np.isin(intended, list(bad))
    assert np.array_equal(one[~replaced], intended[~replaced])
    assert not np.isin(one, list(bad)).any() and replaced.sum() <= failed < 1.3 * replaced.sum()
    for processes, workers in ((2, 1), (3, 2)):
        again, failed_again = epoch_of(split, recipe, 1, processes, workers)
        assert np.array_equal(again, one) and failed_again == failed


def test_the_memory_of_a_worker_does_not_grow_over_three_epochs(digits):
    recipe = load("demo", ["batch.global=64", "batch.slices=4", "input.size=64"])
    # Daemons of earlier tests may still be alive, a worker that is about to end or a server that forks processes.
    others = set(multiprocessing.active_children())
    batches = load_steps(MicroBatches(digits, recipe, 0, 64), range(3 * STEPS), 1, 1, pin=False)
    after = []
    for number, _ in enumerate(batches, 1):
        if number % STEPS == STEPS - 4:  # near the end of an epoch, while the worker is alive
            (worker,) = set(multiprocessing.active_children()) - others
            after.append(_resident(worker.pid))
    assert len(after) == 3 and after[2] - after[0] < 4 * 2**20


def _resident(process: int) -> int:
    """Return a process's resident memory in bytes, without shared memory."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) * 1024
