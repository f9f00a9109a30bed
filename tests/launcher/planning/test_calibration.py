"""What `bigbatch plan --calibrate` measures is kept, named and used by the plans that follow."""

import json
import sys

import pytest

from launcher.cli.main import main
from launcher.planning import calibration
from launcher.planning.gpus import gpu_named, kind_of
from launcher.planning.speeds import Device, Measurement, Speeds, images_per_core, save_speeds, speeds_file
from recipes.errors import UserError
from recipes.load import load

RECIPE = ["demo", "model.name=test_convnext", "data.classes=10"]


@pytest.fixture
def bigbatch(monkeypatch, capfd, tmp_path):
    """Run the command with a home of its own; return exit code, stdout and stderr."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["bigbatch", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code or 0, *capfd.readouterr()

    return run


@pytest.mark.slow
def test_this_machine_is_measured_and_planned_with(bigbatch, digits, monkeypatch):
    monkeypatch.setattr(calibration, "_SECONDS", 0.5)
    code, output, errors = bigbatch("plan", *RECIPE, "--calibrate", "--data", str(digits))
    assert code == 0 and "images/s in one loader process" in output and "--gpu cpu" in output, errors
    kept = json.loads(speeds_file().read_text())
    assert all(
        kept["devices"]["cpu"]["tflops"][precision]["test_convnext at 32 px"][0] > 0
        for precision in ("float32", "bf16")
    )
    recipe = load(RECIPE[0], RECIPE[1:])
    assert images_per_core(recipe).source.endswith(f"with {digits} at 32 px")
    assert images_per_core(load("convnext_tiny_in1k")).source.startswith("docs/measurements/data-speed.md")

    code, output, errors = bigbatch("plan", *RECIPE, "--gpu", "cpu", "--gpus", "1", "--json")
    values = json.loads(output)
    assert code == 0 and values["precision"] == "float32", errors
    value, source = kept["devices"]["cpu"]["tflops"]["float32"]["test_convnext at 32 px"]
    assert values["speeds"]["tflops"] == {"value": value, "source": source} and source.startswith("measured 20")


def test_a_measured_speed_takes_the_tables_place_for_every_memory_of_that_chip(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    tiny, xlarge = load("convnext_tiny_in1k"), load("convnext_xlarge_in22k")
    assert gpu_named("a100-80", tiny).tflops["bf16"].source == "assumed"
    found = {
        "convnext_tiny at 224 px": Measurement(70.0, "measured"),
        "convnext_base at 224 px": Measurement(90.0, "measured"),
    }
    save_speeds(Speeds({"a100": Device(40.0, {"bf16": found}), "rtx-4090": Device(24.0, {"bf16": found})}))
    assert kind_of("NVIDIA A100-SXM4-80GB") == "a100" and kind_of("NVIDIA GeForce RTX 4090") == "rtx-4090"
    assert gpu_named("a100-80", tiny).tflops["bf16"].value == 70 and gpu_named("a100-80", tiny).memory_gib == 80
    assert (
        gpu_named("a100", xlarge).tflops["bf16"].value == 90
        and gpu_named("a100", tiny).tflops["float32"].source == "assumed"
    )
    assert gpu_named("rtx-4090", tiny).memory_gib == 24
    assert gpu_named("a100", tiny).with_tflops(12).tflops["bf16"] == Measurement(12, "given")


@pytest.mark.parametrize("text", ["{", "{}", '{"devices": {}, "images_per_core": {"x": [-1, "y"]}}', "[]"])
def test_a_damaged_file_is_named(monkeypatch, tmp_path, text):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    speeds_file().parent.mkdir()
    speeds_file().write_text(text)
    with pytest.raises(UserError, match="speeds.json cannot be read .*: remove it"):
        gpu_named("a100", load("demo"))
