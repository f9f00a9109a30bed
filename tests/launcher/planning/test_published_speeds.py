"""The plan beside what timm publishes for a real card: images/s, and the micro-batch that fits its memory."""

import pytest

from launcher.planning.gpus import GPUS
from launcher.planning.model_profile import profile_model
from launcher.planning.pass_profile import Affine, PassProfile, RepeatedOperation
from launcher.planning.speeds import Rates
from tests.benchmarks.plan_accuracy import CARD, PRECISION, predicted_peak, predicted_speed, published, recipe_of

ROWS = {row.model: row for row in published()}


@pytest.mark.slow
@pytest.mark.parametrize("model", ["resnet18", "convnext_tiny", "swin_tiny_patch4_window7_224"])
def test_speed_within_a_quarter_and_the_micro_batch_that_ran_fits(model, tmp_path, monkeypatch):
    """`python -m tests.benchmarks.plan_accuracy` compares all models of the file; docs/measurements has its table."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    row, recipe = ROWS[model], recipe_of(ROWS[model])
    profile = profile_model(recipe, PRECISION)
    speed = predicted_speed(row, recipe, profile, GPUS[CARD].rates[PRECISION])
    assert speed == pytest.approx(row.images_per_second, rel=0.25)
    assert predicted_peak(recipe, profile, row.fits) < 24
    if row.failed:
        assert predicted_peak(recipe, profile, row.failed) > 24


def test_a_card_takes_the_longer_of_arithmetic_and_bytes():
    """Each operation is bound by one of the two; a compiler removes the bytes of what it fuses."""
    operations = [
        RepeatedOperation(2, Affine(0, 1e12), Affine(0, 1e9), False),  # arithmetic: 1 s an image at 1 TFLOP/s
        RepeatedOperation(3, Affine(0, 0), Affine(1e9, 1e9), True),  # bytes: 0.1 s and 0.1 s an image at 10 GB/s
    ]
    rates = Rates(1.0, 10.0, "given")
    assert PassProfile([], operations).seconds(rates, 4, False) == pytest.approx(2 * 4 + 3 * 0.5)
    assert PassProfile([], operations).seconds(rates, 4, True) == pytest.approx(2 * 4)
    assert PassProfile([], operations).seconds(rates, 4, True, 10.0) == pytest.approx(2 * 10)  # slow to start
    repeated = PassProfile([], operations, repeats=2)
    assert repeated.seconds(rates, 4, False) == pytest.approx(2 * (2 * 2 + 3 * 0.3))
