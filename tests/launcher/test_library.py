"""`import bigbatch`: paths may be text, and a mistake in a notebook is one sentence."""

import pytest

import bigbatch
from tests.launcher.saved_runs import CLASSES, make_saved_run


@pytest.fixture
def run(toy_shards, tmp_path) -> str:
    return str(make_saved_run(tmp_path / "run", toy_shards(*CLASSES), {8: (0.5, 0.25)}).path)


def test_paths_may_be_text(run, toy_shards, small_recipe, tmp_path):
    raw, averaged = bigbatch.evaluate(run, options=bigbatch.EvaluateOptions(workers=0))
    assert raw.accuracy.images == averaged.accuracy.images == 8
    recipe = small_recipe("schedule.epochs=1", "schedule.warmup_epochs=0")
    assert bigbatch.train(recipe, str(tmp_path / "new"), bigbatch.StartOptions(workers=0))
    assert bigbatch.History(str(tmp_path / "new")).finished
    assert bigbatch.write_report(str(tmp_path / "new"), str(tmp_path / "report.html")).is_file()
    recipe_file = tmp_path / "mine.yaml"
    recipe_file.write_text("base: demo\n")
    assert bigbatch.load_recipe(recipe_file, "optimizer.lr=1e-3").optimizer.lr == 1e-3
    with pytest.raises(bigbatch.UserError, match="no file or folder no.png"):
        bigbatch.predict(run, "no.png")
    with pytest.raises(bigbatch.UserError, match="no file or folder"):
        bigbatch.shard(tmp_path / "nowhere", tmp_path / "shards")


@pytest.mark.parametrize(
    "mistake, said",
    [
        (lambda run: bigbatch.train("demo", run), "load it with bigbatch.load_recipe first"),
        (lambda run: bigbatch.evaluate("nowhere"), "there is no run or weights file nowhere"),
        (lambda run: bigbatch.History("nowhere"), "nowhere is not a run directory"),
        (lambda run: bigbatch.load_recipe("demo", "optimiser.lr=1"), "did you mean 'optimizer.lr'"),
        (lambda run: bigbatch.recommend([]), "no option to recommend"),
        (
            lambda run: bigbatch.plan_options(bigbatch.load_recipe("demo"), bigbatch.PlanRequest(gpus=0)),
            "at least one GPU",
        ),
    ],
)
def test_a_mistake_is_one_sentence(run, mistake, said):
    with pytest.raises(bigbatch.UserError, match=said) as raised:
        mistake(run)
    assert "\n" not in str(raised.value)
