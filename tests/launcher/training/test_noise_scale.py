"""The gradient noise scale: unbiased at any cut, the same after a resume, and equal to what gradients by hand give."""

from statistics import fmean

import numpy as np
import pytest
import torch

from data.batches import MicroBatches
from data.mixing import drawn_mix, partner
from data.on_device import DevicePreprocessor
from data.reading.shards import ShardSet
from launcher.cut import cut_batch
from launcher.runs.noise_scale import (
    NOISE,
    NOISE_SCALE,
    SIGNAL,
    NoiseEstimate,
    RecentNoise,
    estimate_noise,
    noise_scale,
)
from launcher.runs.run_directory import RunDirectory
from launcher.training.noise_meter import BatchParts, batch_parts, why_not_measured
from models.loss import image_losses
from models.prepared import prepare_model
from recipes.load import load
from recipes.schema import Recipe
from tests.launcher.process_group import Group, train_until

SLICES = ["batch.global=64", "batch.slices=8", "engine.zero=0"]
CUTS = {
    "1 process": (1, 8),
    "1 process, two micro-batches a slice": (1, 4),
    "2": (2, 16),
    "4": (4, 16),
    "3, padded": (3, 12),
}


class TestOnAModelOfKnownNoiseScale:
    """The loss of an image is ``-lambda * <weights, image>`` with images from a normal distribution around `MEAN`.

    Lambda is uniform and common to a slice of s images. So the mean gradient of a slice has the mean E[λ] MEAN and the
    total variance ``E[λ²] tr Σ / s + Var[λ] |MEAN|²`` (images that are mixed with each other keep their sum).
    """

    SIZE, STEPS = 64, 600
    MEAN = np.full(SIZE, 0.5)  # |MEAN|² = 16, tr Σ = 64
    RECIPE = load("demo", [*SLICES, "mix.mixup=1", "mix.cutmix=0", "mix.probability=1"])
    SIGNAL = 0.25 * 16
    NOISE = 64 / 3 + 8 * 16 / 12

    @pytest.fixture(scope="class")
    @classmethod
    def sums(cls) -> np.ndarray:
        """For every step the summed gradient of each position, ``[steps, positions, size]``."""
        batch, random = cls.RECIPE.batch, np.random.default_rng(0)
        partners = [partner(position, batch.slice_size) for position in range(batch.global_)]
        found = np.empty((cls.STEPS, batch.global_, cls.SIZE), dtype=np.float32)
        for step in range(cls.STEPS):
            images = random.standard_normal((batch.global_, cls.SIZE)) + cls.MEAN
            lam = np.repeat([drawn_mix(cls.RECIPE, step, 8 * number).lam for number in range(8)], 8)[:, None]
            found[step] = lam * (lam * images + (1 - lam) * images[partners])
        return found.cumsum(axis=1)

    def estimates(self, sums: np.ndarray, sizes: list[int], share: int) -> np.ndarray:
        """The estimates of every step, ``[steps, 2]``, from parts that begin at multiples of `share`."""
        part, parts = sum(sizes) / sum(size > 0 for size in sizes), BatchParts(sizes, 1)
        assert part == parts.mean_size
        starts = np.concatenate([np.zeros_like(sums[:, :1]), sums], axis=1)
        squares = np.zeros(self.STEPS)
        for rank, size in enumerate(sizes):
            if size:
                mean = (starts[:, rank * share + size] - starts[:, rank * share]) / size
                squares += (mean**2).sum(axis=1) * size / sum(sizes)
        whole = ((sums[:, -1] / 64) ** 2).sum(axis=1)
        found = [estimate_noise(one, part, other, 64) for one, other in zip(squares, whole)]
        return np.array([(one.signal, one.noise) for one in found])

    @pytest.mark.parametrize("cut", CUTS)
    def test_the_estimates_are_unbiased_at_any_cut(self, sums, cut):
        processes, micro_batch = CUTS[cut]
        made = cut_batch(self.RECIPE, processes, micro_batch, 64)
        parts = batch_parts(self.RECIPE, made, has_batch_norm=False)
        found = self.estimates(sums, parts.images, made.share)
        standard_errors = found.std(axis=0) / self.STEPS**0.5
        assert (np.abs(found.mean(axis=0) - (self.SIGNAL, self.NOISE)) < 4 * standard_errors).all()
        assert (standard_errors < (0.1 * self.SIGNAL, 0.1 * self.NOISE)).all()  # so a bias would be noticed

    def test_parts_of_slices_would_be_biased(self, sums):
        """The lambda of a slice is common to its images, so halves of slices show too little of its variance."""
        noise = self.estimates(sums, [4] * 16, 4)[:, 1]
        assert noise.mean() + 4 * noise.std() / self.STEPS**0.5 < self.NOISE


@pytest.mark.parametrize(
    ("changes", "processes", "micro_batch", "images", "micro_batches"),
    [
        ([], 1, 8, [8], 1),
        ([], 1, 4, [8], 2),
        ([], 4, 16, [16] * 4, 1),
        ([], 3, 12, [24, 24, 16], 2),
        (["mix.probability=0"], 1, 7, [7], 1),  # without mixing, images do not depend on each other
        (["batch.statistics=32"], 1, 32, [32], 1),
    ],
)
def test_a_part_is_a_number_of_whole_slices(changes, processes, micro_batch, images, micro_batches):
    recipe = load("demo", [*SLICES, *changes])
    parts = batch_parts(recipe, cut_batch(recipe, processes, micro_batch, 64), bool(recipe.batch.statistics))
    assert parts == BatchParts(images, micro_batches)


@pytest.mark.parametrize(
    ("changes", "processes", "micro_batch", "sentence"),
    [
        ([], 1, 64, "--micro-batch 32 makes it measurable"),
        ([], 1, 13, "--micro-batch 32 makes it measurable"),
        (["batch.slices=1"], 1, 8, "the whole batch is one slice"),
        ([], 5, 13, "a number of processes that divides 8"),
        (["engine.zero=1"], 1, 8, "not measured under ZeRO"),
        (["augment.repeats=2"], 1, 8, "not measured with augment.repeats"),
    ],
)
def test_a_cut_that_measures_nothing_says_why_and_what_helps(changes, processes, micro_batch, sentence):
    recipe = load("demo", [*SLICES, *changes])
    cut = cut_batch(recipe, processes, micro_batch, 64)
    assert sentence in why_not_measured(recipe, cut, has_batch_norm=False)
    assert why_not_measured(load("demo", SLICES), cut_batch(recipe, 1, 32, 64), has_batch_norm=False) is None


def step_records(run) -> list[dict]:
    return [event for event in RunDirectory(run).metrics.events() if event["event"] == "step"]


def squares_by_hand(recipe: Recipe, part: int) -> tuple[float, float]:
    """The squared norms of the first step's gradients: the mean over parts of that many images, and of the batch."""
    split = ShardSet.open(recipe.data.path).split("train")
    batch = MicroBatches(split, recipe, first_position=0, micro_batch=recipe.batch.global_)[0, 0]
    model = prepare_model(recipe, 10)
    model.drop_path.draw(0, batch.positions)
    logits = model.module.train()(DevicePreprocessor(recipe, torch.device("cpu")).images(batch))
    labels = (batch.labels, batch.partner_labels, batch.lam)
    losses = image_losses(logits, *labels, batch.weights, recipe.loss)
    parameters = list(model.module.parameters())

    def square(loss) -> float:
        gradients = torch.autograd.grad(loss, parameters, retain_graph=True)
        return sum(gradient.double().square().sum().item() for gradient in gradients)

    return fmean(square(one.mean()) for one in losses.split(part)), square(losses.mean())


def test_the_record_of_a_step_has_the_estimates_of_its_gradients(small_recipe, tmp_path):
    """2 processes of 2 accumulation steps; the gradient before the all-reduce is that of a rank's share."""
    recipe = small_recipe("batch.global=32", "batch.slices=4", "schedule.warmup_epochs=0")
    Group(2, recipe, tmp_path / "run", train_until, step=2, micro_batch=8).finish()
    part, whole = squares_by_hand(recipe, 16)
    expected, found = estimate_noise(part, 16, whole, 32), step_records(tmp_path / "run")[0]
    assert (found[SIGNAL], found[NOISE]) == pytest.approx((expected.signal, expected.noise), rel=1e-3)


def test_a_resumed_run_records_the_same_noise_scale(small_recipe, tmp_path):
    recipe = small_recipe("batch.global=16", "batch.slices=2")
    for name, stops in (("at once", [13]), ("resumed", [6, 13])):
        for step in stops:
            Group(1, recipe, tmp_path / name, train_until, step=step, micro_batch=8).finish()
    keys = (SIGNAL, NOISE, NOISE_SCALE)
    records = [[[one[key] for key in keys] for one in step_records(tmp_path / name)] for name in ("at once", "resumed")]
    assert records[0] == records[1]
    assert [one[2] is None for one in records[0][:9]] == [True] * 9  # fewer than ten steps say nothing
    signal, noise = (fmean(one[at] for one in records[0][:10]) for at in (0, 1))
    assert records[0][9][2] == (pytest.approx(noise / signal) if signal > 0 < noise else None)


def test_estimates_are_averaged_apart_over_a_hundred_steps():
    """The mean of ratios would be biased. A signal that noise hides gives no noise scale."""
    estimates = [NoiseEstimate(1.0, 8.0), NoiseEstimate(3.0, 8.0)] * 100
    assert noise_scale(estimates) == 4.0
    assert noise_scale([NoiseEstimate(-1.0, 8.0)] * 100) is None
    recent = RecentNoise([{"event": "step", SIGNAL: 100.0, NOISE: 1.0}] * 100 + [{"event": "evaluation"}])
    for estimate in estimates[:100]:
        last = recent.add(estimate)
    assert last == {SIGNAL: 3.0, NOISE: 8.0, NOISE_SCALE: 4.0}
