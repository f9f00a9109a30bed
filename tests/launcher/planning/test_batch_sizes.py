"""`bigbatch batchsize`: the law of McCandlish et al., the plan's times, and one recommended batch."""

from types import SimpleNamespace

import pytest

from launcher.planning.batch_sizes import (
    BatchSizeRow,
    compare_batch_sizes,
    needed_steps,
    noise_scale_of,
    recommended_range,
    recommended_row,
)
from launcher.planning.plan_request import PlanRequest
from launcher.runs.noise_scale import NOISE, SIGNAL
from recipes.errors import UserError
from recipes.load import load
from tests.launcher.saved_runs import make_saved_run

RECIPE = load("demo", ["model.name=test_convnext"])


def test_the_steps_follow_the_law_and_the_recommended_batch_is_the_smallest_of_the_fast_ones():
    rows = compare_batch_sizes(RECIPE, steps=900, noise=256.0, request=PlanRequest(gpus=16))
    assert [row.batch for row in rows] == [16, 32, 64, 128, 256, 512, 1024, 2048]  # 8 has too few images for 16 GPUs
    steps = {row.batch: row.steps for row in rows}
    assert steps[128] == pytest.approx(900)
    assert (steps[64], steps[256]) == pytest.approx((1500, 600))  # 300 steps with an endless batch
    lrs = {row.batch: row.lr for row in rows}
    assert (lrs[32], lrs[512]) == pytest.approx((2e-3, 8e-3))
    best = recommended_row(rows)
    assert all(row.seconds > 1.03 * min(other.seconds for other in rows) for row in rows if row.batch < best.batch)
    assert best.seconds <= 1.03 * min(row.seconds for row in rows)


def test_the_recommendation_says_what_it_would_be_for_a_noise_scale_of_a_quarter_and_of_four_times():
    """The time is that of (1 + noise / batch) steps, each of (1 + batch / 100) seconds: least at 10 √noise."""

    def rows(noise: float) -> list[BatchSizeRow]:
        batches = [2**power for power in range(4, 12)]
        options = [SimpleNamespace(step_seconds=1 + batch / 100) for batch in batches]
        return [
            BatchSizeRow(one, needed_steps(900, 128, noise, one), 1e-3, option) for one, option in zip(batches, options)
        ]

    assert recommended_row(rows(256)).batch == 128
    assert recommended_range(rows(256), 900, 128, 256) == (64, 256)
    assert [recommended_row(rows(noise)).batch for noise in (64, 1024)] == [64, 256]


@pytest.mark.parametrize("noise", [0.0, 1e300, float("inf"), float("nan")])
def test_an_impossible_noise_scale_is_refused(noise):
    with pytest.raises(UserError, match="is impossible: give more than 0"):
        compare_batch_sizes(RECIPE, steps=900, noise=noise, request=PlanRequest(gpus=16))


def test_a_run_brings_its_noise_scale_and_the_command_prints_it(tmp_path, toy_shards, bigbatch):
    run = make_saved_run(tmp_path / "run", toy_shards("ant", "bee", "cat", "dog"), {4: (0.5, 0.5)})
    with pytest.raises(UserError, match="has no noise scale yet"):
        noise_scale_of(run.path)
    for step in range(5, 200):  # only the last hundred count
        values = {SIGNAL: 2.0, NOISE: 100.0 if step >= 100 else 1.0}
        run.metrics.append("step", step, loss=1.0, lr=1e-3, images_per_second=1.0, data_wait=0.0, **values)
    assert noise_scale_of(run.path) == 50.0
    code, output, errors = bigbatch("batchsize", run.path, "batch.global=8", "batch.slices=1", "--gpus", 1)
    assert code == 0, errors
    assert "noise scale 50 images" in output and "trust it to a factor" in output
    assert "known to a factor of about four" in output and "Zhang et al., 2019" in output
    code, output, _ = bigbatch(
        "batchsize",
        "demo",
        "model.name=test_convnext",
        "batch.global=64",
        "data.train_images=1438",
        "--noise-scale",
        50,
    )
    assert code == 0 and "note: batch 128 → 64: the learning rate stays 4e-3" in output
    code, _, errors = bigbatch("batchsize", "demo")
    assert code == 2 and "--noise-scale" in errors
