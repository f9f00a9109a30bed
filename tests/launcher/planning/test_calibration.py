"""What `bigbatch plan --calibrate` measures is kept, named and used by the plans that follow."""

import json

import pytest

from launcher.planning import calibration
from launcher.planning.gpus import GPUS, gpu_named, kind_of
from launcher.planning.model_profile import profile_model
from launcher.planning.speeds import Device, Rates, Speeds, images_per_core, save_speeds, speeds_file
from launcher.planning.time_model import update_seconds
from recipes.errors import UserError
from recipes.load import load

RECIPE = ["demo", "model.name=test_convnext", "data.classes=10"]


@pytest.fixture
def bigbatch(bigbatch, monkeypatch, tmp_path):
    """Run the command with a home of its own; return exit code, stdout and stderr."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return bigbatch


@pytest.mark.slow
def test_this_machine_is_measured_and_planned_with(bigbatch, digits, monkeypatch):
    monkeypatch.setattr(calibration, "_SECONDS", 0.5)
    code, output, errors = bigbatch("plan", *RECIPE, "--calibrate", "--data", str(digits))
    assert code == 0 and "images/s in one loader process" in output and "--gpu cpu" in output, errors
    kept = json.loads(speeds_file().read_text())["devices"]["cpu"]["rates"]
    assert kept.keys() == {"float32", "bf16"} and all(rates["gb_per_second"] > 0 for rates in kept.values())
    recipe = load(RECIPE[0], RECIPE[1:])
    assert images_per_core(recipe).source.endswith(f"with {digits} at 32 px")
    assert images_per_core(load("convnext_tiny_in1k")).source.startswith("docs/measurements/data-speed.md")

    code, output, errors = bigbatch("plan", *RECIPE, "--gpu", "cpu", "--gpus", "1", "--json")
    values = json.loads(output)
    assert code == 0 and values["precision"] == "float32", errors
    assert values["speeds"]["gpu"] == kept["float32"] and kept["float32"]["source"].startswith("measured 20")


def test_the_step_that_was_measured_is_predicted():
    """Both rates are divided by one factor, so that the roofline of the model takes as long as its step."""
    recipe = load(RECIPE[0], [*RECIPE[1:], "ema.decay=null"])
    plain = Rates(0.1, 10.0, "plain kernels")
    rates = calibration._scaled_to_step(recipe, "float32", plain, 32, 0.25)
    profile = profile_model(recipe, "float32")
    predicted = profile.usual_pass.seconds(rates, 32, False) + update_seconds(recipe, profile, rates, 1)
    assert predicted == pytest.approx(0.25, rel=0.01)
    assert rates.tflops / rates.gb_per_second == pytest.approx(0.1 / 10, rel=0.01)


def test_measured_rates_take_the_tables_place_for_every_memory_of_that_chip(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    table = gpu_named("a100-80").rates["bf16"]
    assert table.source.startswith("data sheet")
    found = {"bf16": Rates(200.0, 900.0, "measured")}
    save_speeds(Speeds({"a100": Device(40.0, found), "tensor-9": Device(24.0, found)}))
    assert gpu_named("a100-80").rates["bf16"] == found["bf16"] and gpu_named("a100-80").memory_gib == 80
    assert gpu_named("a100").rates["fp16"].source == table.source
    assert gpu_named("tensor-9").memory_gib == 24
    given = gpu_named("a100").with_tflops(12).rates["bf16"]
    assert (given.tflops, given.gb_per_second) == (12, 900) and "given" in given.source


@pytest.mark.parametrize(
    "device, kind",
    [
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A10", "a10"),
        ("NVIDIA A10G", "a10g"),
        ("NVIDIA L40S", "l40s"),
        ("Tesla V100-SXM2-16GB", "v100"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA GH200 480GB", "gh200-480gb"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "rtx-4090-laptop-gpu"),
    ],
)
def test_a_driver_name_is_the_card_that_it_says_and_no_other(device, kind):
    assert kind_of(device) == kind


@pytest.mark.parametrize(
    "name, key",
    [
        ("A100-SXM4-80GB", "a100-80"),
        ("NVIDIA A100-SXM4-40GB", "a100"),
        ("H100", "h100"),
        ("rtx 4090", "rtx4090"),
        ("NVIDIA GeForce RTX 3090", "rtx3090"),
        ("Tesla V100-SXM2-32GB", "v100-32"),
    ],
)
def test_a_card_is_planned_for_by_its_key_and_by_the_names_that_people_know(name, key, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert gpu_named(name) == gpu_named(key) == GPUS[key]


def test_speeds_of_version_0_1_are_named_and_not_used(bigbatch):
    speeds_file().parent.mkdir(parents=True)
    old = {"a100": {"memory_gib": 40.0, "tflops": {"bf16": {"convnext_tiny at 224 px": [70.0, "measured"]}}}}
    speeds_file().write_text(json.dumps({"devices": old, "images_per_core": {}}))
    code, output, errors = bigbatch("plan", *RECIPE)
    assert code == 0 and "holds speeds of a100 as version 0.1 measured them" in output, errors
    assert "data sheet" in output


@pytest.mark.parametrize(
    "text",
    ["{", "{}", '{"devices": {}, "images_per_core": {"x": [-1, "y"]}}', "[]"]
    + ['{"devices": {"a100": {"memory_gib": 40, "rates": {"bf16": {"tflops": 1}}}}, "images_per_core": {}}'],
)
def test_a_damaged_file_is_named(monkeypatch, tmp_path, text):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    speeds_file().parent.mkdir()
    speeds_file().write_text(text)
    with pytest.raises(UserError, match="speeds.json cannot be read .*: remove it"):
        gpu_named("a100")
