"""No option, recipe key or function makes a folder called `s3:` of a URL, and `~` is the home folder in all of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import typer
from typer.testing import CliRunner

from data.reading.shards import ShardSet
from data.writing.sharding import shard
from launcher.cli.main import app
from launcher.cli.options import on_this_machine
from launcher.evaluation.export import export
from launcher.evaluation.predict import predict
from launcher.jobs.planned_runs import SubmitOptions, plan_runs
from launcher.runs.report import write_report
from launcher.runs.run_directory import RunDirectory, find_run
from launcher.runs.weights_digest import weights_digest
from recipes.errors import UserError
from recipes.load import load
from recipes.local_paths import local_path
from recipes.schema import Recipe
from recipes.sections import Section
from slurm.cluster import Cluster

# Options of text, by name, that are no paths, and those whose text may be a path: a URL or a name has to stay possible.
TEXT = {
    *("overrides", "modules", "image_column", "label_column", "name", "array", "after", "cluster", "nodes", "gpu_type"),
    *("partition", "time", "gpu", "gpu_memory"),
}
PLACES = {
    *("source", "destination", "data", "folder"),  # of shards: `place_of`, or refused by `shard`
    *("recipe", "recipes"),  # a name or a YAML file: `recipes.load`
    *("weights", "right_labels"),  # of `features`, where it may be a model of timm; and of `evaluate`
}
# Recipe keys whose description names a file or folder, and that may be a URL or are not a path.
NO_LOCAL_PATHS = {"data.path", "branch.run", "code.modules", "model.weights_key", "run.evaluate_every"}


def parameters(group: typer.Typer = app) -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """Return type and typer's description of every parameter of every command, by ``command.parameter``."""
    found = {}
    for command in group.registered_commands:
        assert command.callback is not None
        hints = get_type_hints(command.callback, include_extras=True)
        for name, hint in hints.items():
            if name != "return":
                kind, *description = get_args(hint) if hasattr(hint, "__metadata__") else (hint,)
                found[f"{command.callback.__name__}.{name}"] = (kind, tuple(description))
    for inner in group.registered_groups:
        assert inner.typer_instance is not None
        found |= parameters(inner.typer_instance)
    return found


def holds(kind: Any, wanted: type) -> bool:
    """Return whether a type is `wanted`, or an alternative or a list of it."""
    return kind is wanted or any(holds(one, wanted) for one in get_args(kind))


def test_every_option_of_paths_expands_and_refuses():
    found = {name: described for name, (kind, described) in parameters().items() if holds(kind, Path)}
    assert len(found) > 15
    assert [name for name, (info,) in found.items() if info.callback is not on_this_machine] == []


def test_every_option_of_text_is_known_to_be_a_path_or_not():
    text = {name.partition(".")[2] for name, (kind, _) in parameters().items() if holds(kind, str)}
    assert text == TEXT | PLACES


def test_every_recipe_key_of_paths_refuses_a_url():
    named = {
        f"{section}.{name}"
        for section, field in Recipe.model_fields.items()
        for kind in [field.annotation, *get_args(field.annotation)]
        if isinstance(kind, type) and issubclass(kind, Section)
        for name, key in kind.model_fields.items()
        if {"folder", "file", "directory", "path"} & set((key.description or "").replace(",", " ").split())
    }
    assert named - NO_LOCAL_PATHS == {"model.weights", "data.cache", "engine.nvme_path"}
    for key in named - NO_LOCAL_PATHS:
        with pytest.raises(UserError, match="^s3://b/x is a URL, and only a path on this machine"):
            load("demo", [f"{key}=s3://b/x"])
        assert load("demo", [f"{key}=~/x"]).dotted()[key] == "~/x"  # the same recipe for every user
    with pytest.raises(ValueError, match="is a URL"):
        Cluster.model_validate({"stage": "s3://b/x"})


@pytest.mark.parametrize(
    "path", ["s3://b/run", "s3:/b/run", Path("s3://b/run"), "https://h/x", "file:///x", "HF+git://x"]
)
def test_a_url_is_no_local_path(path):
    with pytest.raises(UserError, match="^(s3|https|file|HF.git):/+"):
        local_path(path)


@pytest.mark.parametrize(
    "path", ["c:/runs", "runs/a:/b", "./s3:/b", "optimizer.lr=1e-3", "digits:b", "~nobody-of-that-name/x"]
)
def test_other_names_are_local_paths(path):
    assert local_path(path) == Path(path)


@pytest.mark.parametrize(
    "arguments",
    [
        "train demo --data x --run-dir s3://b/run",
        "train demo --data x --run-dir=s3:/b/run",
        "submit demo --data x --run-dir s3://b/run",
        "export run s3://b/x.onnx",
        "export s3://b/run x.onnx",
        "report run --out s3://b/x.html",
        "lr demo --data x --out s3://b/x.html",
        "features run x s3://b/x.npz",
        "branch run s3://b/new",
        "predict run s3://b/x.jpg",
        "shard digits s3:/b/x",
        "shard digits out --class-map s3://b/map.txt",
        "shard digits out --labels s3://b/labels.csv",
        "doctor --run-dir s3://b/run",
        "verify s3:/b/x",
    ],
)
def test_no_command_makes_a_folder_of_a_url(tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, arguments.split())
    assert isinstance(done.exception, UserError) and "s3://b/" in str(done.exception)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "call",
    [
        lambda url: shard("digits", url),
        lambda url: ShardSet.open(Path(url)),
        lambda url: RunDirectory(url),
        lambda url: find_run(url),
        lambda url: write_report("run", url),
        lambda url: export(RunDirectory("run"), url),
        lambda url: predict("run", url),
        lambda url: predict(url, "image.jpg"),
        lambda url: load(f"{url}.yaml"),
    ],
)
def test_no_function_makes_a_folder_of_a_url(tmp_path, monkeypatch, call: Callable[[Any], object]):
    monkeypatch.chdir(tmp_path)
    for url in ("s3://b/x", Path("s3://b/x")):
        with pytest.raises(UserError, match="s3://b/x"):
            call(url)
    assert list(tmp_path.iterdir()) == []


def test_the_home_folder_is_expanded_where_the_shell_does_not(tmp_path, monkeypatch):
    """A shell leaves the tilde of `--run-dir=~/run` and of `model.weights=~/run` as it is."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "w.safetensors").write_bytes(b"x")
    (tmp_path / "mine.yaml").write_text("base: demo\n")
    (tmp_path / "its.yaml").write_text("base: ~/mine.yaml\n")
    assert RunDirectory("~/run").path == tmp_path / "run"
    assert load("~/its.yaml", ["model.weights=~/w.safetensors"]).model.weights_path == tmp_path / "w.safetensors"
    assert weights_digest("~/w.safetensors") is not None
    assert on_this_machine([Path("~/a"), Path("b")]) == [tmp_path / "a", Path("b")]
    assert on_this_machine(None) is None
    (planned,), *_ = plan_runs(["demo", "model.weights=~/w.safetensors"], SubmitOptions(data="~/shards"))
    assert planned.recipe.data.path == str(tmp_path / "shards")
    assert planned.recipe.model.weights == str(tmp_path / "w.safetensors")
