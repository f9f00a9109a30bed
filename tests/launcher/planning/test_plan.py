"""A plan offers cuts that fit, recommends one with a reason, and says what would fit where nothing does."""

import json
import re
from dataclasses import replace

import pytest

from launcher.cut import cut_batch
from launcher.planning import published_errors
from launcher.planning.engine_rules import with_default_engine
from launcher.planning.gpus import GPUS
from launcher.planning.memory_model import GIB, predict_memory
from launcher.planning.model_profile import ModelProfile, ParameterSizes
from launcher.planning.pass_profile import Affine, PassProfile, RepeatedOperation, upper_envelope
from launcher.planning.plan import explain_no_fit, explain_recommendation, feasible_options, recommend
from launcher.planning.speeds import Measurement
from launcher.planning.time_model import Hardware, _communication_seconds, update_seconds
from recipes.load import load

# Sizes like those of ConvNeXt-XL in bf16.
SIZES = ParameterSizes(393_000_000, 45_000_000, 2_000_000, trained=393_000_000)


def one_pass(memory: Affine, passes: int) -> PassProfile:
    """1,900 matrix products that need the arithmetic of so many forward passes, and no time for memory."""
    flops = Affine(0.0, passes * 2 * 60_900_000_000 / 1900)
    return PassProfile([memory], [RepeatedOperation(1900, flops, Affine(0.0, 0.0), False)])


USUAL, CHECKPOINTED = one_pass(Affine(700e6, 260e6), 3), one_pass(Affine(800e6, 60e6), 4)
PROFILE = ModelProfile(SIZES, 0, 60_900_000_000, False, USUAL, CHECKPOINTED)
READING = Measurement(327.0, "assumed")


def hardware(gpus: int, gib: float) -> Hardware:
    return Hardware(gpus, 8, round(gib * GIB), GPUS["a100"], READING)


def recipe(*changes: str):
    return load("convnext_xlarge_in22k", ["engine.precision=bf16", *changes])


@pytest.mark.parametrize("gpus, gib", [(1, 80), (3, 40), (8, 16), (8, 10), (64, 80)])
def test_every_option_fits_and_is_a_cut_that_the_trainer_makes(gpus, gib):
    options = feasible_options(recipe(), PROFILE, hardware(gpus, gib))
    assert options
    for option in options:
        assert option.memory.peak <= gib * GIB
        assert option.cut == cut_batch(option.recipe, gpus, option.cut.micro_batch, largest=64)
    best = recommend(options)
    assert best.step_seconds <= 1.03 * min(option.step_seconds for option in options)
    assert best.engine in explain_recommendation(best, options) and "\n" not in explain_recommendation(best, options)


@pytest.mark.parametrize("zero, saved", [(0, 0.9), (1, 0.9), (2, 0.9), (3, 0.3)])
def test_frozen_parameters_cost_no_update_and_no_gradients_on_the_network(zero, saved):
    """A tenth of the model trains; of ZeRO-3's three rounds, only that of the gradients becomes smaller."""
    frozen = replace(PROFILE, sizes=PROFILE.sizes._replace(trained=PROFILE.sizes.trained // 10))
    chosen, cut = recipe(f"engine.zero={zero}"), cut_batch(recipe(), 8, 64, largest=64)
    sent, less = (_communication_seconds(chosen, profile, hardware(8, 80), cut) for profile in (PROFILE, frozen))
    assert less == pytest.approx((1 - saved) * sent, rel=1e-6)
    rates = GPUS["a100"].rates["bf16"]
    assert update_seconds(chosen, frozen, rates, 1) == pytest.approx(update_seconds(chosen, PROFILE, rates, 1) / 10)


def test_the_help_names_every_card(bigbatch, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    _, output, _ = bigbatch("plan", "--help")
    named = re.findall(r"[a-z0-9-]+", output[output.index("Kind of GPU") : output.index("or one that was calibrated")])
    assert set(GPUS) <= set(named)


def test_less_memory_means_smaller_micro_batches_then_zero():
    ample, scarce, tiny = (recommend(feasible_options(recipe(), PROFILE, hardware(8, gib))) for gib in (80, 16, 7))
    assert ample.engine == "DDP" and scarce.cut.micro_batch < ample.cut.micro_batch
    assert tiny.engine.startswith("ZeRO")


def test_the_engine_settings_of_the_recipe_are_kept():
    options = feasible_options(recipe("engine.zero=2", "engine.checkpoint_activations=true"), PROFILE, hardware(8, 40))
    assert {option.engine for option in options} == {"ZeRO-2 +checkpointing", "ZeRO-2 +cpu +checkpointing"}


def test_where_nothing_fits_the_message_names_a_memory_that_would_do():
    assert feasible_options(recipe(), PROFILE, hardware(8, 2)) == []
    sentence = explain_no_fit(recipe(), PROFILE, hardware(8, 2))
    needed = float(sentence.split("needs ")[1].split(" GiB")[0]) + 0.1
    assert feasible_options(recipe(), PROFILE, hardware(8, needed)) and "\n" not in sentence


def test_a_step_takes_as_long_as_its_images_take_to_prepare():
    slow = Measurement(100.0, "given")
    ready, late = (
        recommend(
            feasible_options(recipe(), PROFILE, replace(hardware(64, 80), images_per_core=slow, cpus_per_gpu=cpus))
        )
        for cpus in (16, 2)
    )
    assert ready.reading_seconds < ready.gpu_seconds == ready.step_seconds
    assert late.step_seconds == late.reading_seconds == pytest.approx(4096 / (64 * 100))


def test_states_are_sharded_by_stage():
    """In units of the float32 parameters, 8 processes, AdamW with an EMA."""
    unit = 4 * PROFILE.parameters

    def states(zero: int) -> list[float]:
        chosen = recipe("ema.decay=0.9999", f"engine.zero={zero}", "engine.offload=none")
        memory = predict_memory(with_default_engine(chosen), PROFILE, cut_batch(chosen, 8, 64, largest=64))
        return [round(part / unit, 3) for part in (memory.parameters, memory.gradients, memory.optimizer, memory.ema)]

    assert states(0) == [1, 1, 2, 1]
    assert states(1) == [1, 1, 0.375, 0.125]
    assert states(2) == [1, 0.25, 0.375, 0.125]
    assert states(3) == [0.125, 0.125, 0.375, 0.125]


def test_the_highest_lines_are_kept_and_no_other():
    lines = [Affine(*line) for line in [(100, 1), (0, 10), (50, 2), (95, 1), (-1000, 20), (-1000, 20)]]
    kept = PassProfile(upper_envelope(lines), [])
    assert len(kept.memory) == 3
    for images in range(1, 300):
        assert kept.bytes_for(images) == max(fixed + slope * images for fixed, slope in lines)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def plan(bigbatch, monkeypatch, cache):
    """Run `bigbatch plan` on a model that is traced fast; return exit code, stdout and stderr."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(cache))

    def run(*arguments: str) -> tuple[int, str, str]:
        return bigbatch("plan", "convnext_tiny_in1k", "model.name=test_convnext", "input.size=64", *arguments)

    return run


@pytest.mark.slow
def test_a_plan_with_shards_counts_their_images(plan, digits):
    known = ["--json", "data.classes=10", "batch.global=128", "batch.slices=8", "--gpus", "1"]
    counted, told = (
        json.loads(plan(*known, *images)[1])["rows"] for images in (["--data", str(digits)], ["data.train_images=1438"])
    )
    assert counted == told
    assert json.loads(plan(*known)[1])["rows"] != told


@pytest.mark.slow
def test_the_command_plans_from_a_trace_and_the_second_time_from_its_cache(plan, monkeypatch):
    code, first, errors = plan("--gpus", "16", "--json", "--mtbf-hours", "2000")
    assert code == 0, errors
    values = json.loads(first)
    assert sum(option["recommended"] for option in values["rows"]) == 1 and values["reason"]
    assert all(option["bytes"]["peak"] <= 40 * GIB for option in values["rows"])
    assert 0.5 < values["failures"]["goodput"] < 1
    monkeypatch.setattr("launcher.planning.model_profile._traced", lambda *_: pytest.fail("traced again"))
    assert plan("--gpus", "16", "--json", "--mtbf-hours", "2000")[1] == first
    shown = plan("--gpus", "16", "--cpus-per-gpu", "1")[1]
    assert published_errors.MEMORY in shown and published_errors.TIMES in shown
    assert published_errors.TIMES not in plan("--gpus", "16", "--tflops", "100")[1], "the error of other rates"
    assert (
        "→" in shown
        and "Reading bounds the step" in shown
        and "439 images/s a core (docs/measurements/data-speed.md, with RandAugment)" in shown
    )


@pytest.mark.parametrize(
    "hardware, named, runs",
    [
        (["--gpus", "4", "--gpu-memory", "80GB"], "4 GPUs (a100) of 74.5 GiB in 1 node", ("train", "--procs 4")),
        (
            ["--gpus", "16", "--gpu", "h100"],
            "16 GPUs (h100) of 80 GiB in 2 nodes",
            ("submit", "--nodes 2 --gpus-per-node 8"),
        ),
    ],
)
def test_the_plan_names_the_gpus_and_ends_with_the_command_that_runs_it(plan, hardware, named, runs):
    shown = plan(*hardware)[1]
    command = next(line.strip() for line in shown.splitlines() if line.startswith("  bigbatch "))
    assert named in shown
    assert command.startswith(
        f"bigbatch {runs[0]} convnext_tiny_in1k model.name=test_convnext input.size=64 engine.zero="
    )
    assert f" --data SHARDS {runs[1]} --micro-batch " in command


def test_a_plan_says_when_features_are_computed_once(plan):
    probe = ["--gpus", "1", "model.train=head", "augment.crop=center", "augment.flip=false"]
    plain = [*probe, "augment.randaugment=null", "augment.color_jitter=0", "augment.erasing=0", "mix.probability=0"]
    assert "features are computed once" not in plan(*probe)[1]
    shown = plan(*plain)[1]
    assert "1 GPU (a100) of 40 GiB in 1 node" in shown and "features are computed once" in shown


@pytest.mark.parametrize(
    "arguments, part",
    [
        (["--gpu-memory", "1MiB"], "write it as 80GiB"),
        (["--gpu-memory", "0.5GiB"], "does not fit"),
        (["--gpu-memory", "9" * 5000], "write it as 80GiB"),
        (["--mtbf-hours", "inf"], "--mtbf-hours inf is impossible"),
        (["--tflops", "1e300"], "--tflops 1e+300 is impossible"),
        (["--network", "inf"], "--network inf is impossible"),
        (["--save-stall", "inf"], "--save-stall inf is impossible"),
        (["--gpu", "abacus"], "use one of v100"),
        (["--gpus", "5000"], "at most 4096"),
        (["engine.offload=nvme", "engine.zero=3"], "engine.nvme_path=FOLDER"),
        (["data.classes=null"], "data.classes=NUMBER"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(plan, arguments, part):
    code, _, errors = plan(*arguments)
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(lines) == 1 and part in lines[0] and "Traceback" not in errors, errors
