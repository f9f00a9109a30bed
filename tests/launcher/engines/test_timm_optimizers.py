"""LAMB, LARS, Lion and timm's other optimizers: the steps are timm's, and a run resumes with the same bits."""

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2

from launcher.checkpoints.checkpoint import CheckpointReader, checkpoint_path, open_checkpoint
from launcher.checkpoints.retention import Retention
from launcher.checkpoints.writer import CheckpointWriter, new_attempt
from launcher.engines.base import load_model, make_accelerator
from launcher.engines.data_parallel import DataParallel
from launcher.engines.optimizer import make_optimizer, set_lr
from launcher.planning.engine_rules import with_default_engine
from launcher.training.train import StartOptions, train
from models.prepared import PreparedModel, prepare_model
from recipes.errors import UserError
from recipes.load import load
from tests.launcher.comparison import assert_same_curve, losses, train_until

OPTIONS = StartOptions(micro_batch=32, workers=0)
SETTINGS = {
    "lamb": ["optimizer.eps=1e-6", "optimizer.lr=5e-3"],
    "lars": ["optimizer.lr=1.0", "optimizer.momentum=0.9"],
    "lion": ["optimizer.betas=[0.9,0.99]", "optimizer.lr=1e-4"],
    "timm:nadamw": [],
    "timm:adopt": [],
}


def recipe_of(name: str, *changes: str):
    return load(
        "demo",
        ["model.name=test_convnext", "model.layer_scale=null", f"optimizer.name={name}", *SETTINGS[name], *changes],
    )


@pytest.mark.parametrize("name", SETTINGS)
def test_its_steps_are_those_of_timms_own_factory(name):
    """Bit for bit over six steps, biases and norms without weight decay; LAMB's own clipping is off in both."""
    recipe = recipe_of(name, "ema.decay=null")
    settings, models = recipe.optimizer, []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(timm.create_model("test_convnext", num_classes=10))
    ours = make_optimizer(models[0], recipe)
    options = {"max_grad_norm": None} if name == "lamb" else {}
    theirs = create_optimizer_v2(
        models[1],
        opt=name.removeprefix("timm:"),
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        momentum=settings.momentum,
        eps=settings.eps,
        betas=settings.betas,
        filter_bias_and_bn=True,
        **options,
    )
    generator = torch.Generator().manual_seed(1)
    for step in range(6):
        lr = settings.lr / (1 + step)
        set_lr(ours, lr)
        for group in theirs.param_groups:
            group["lr"] = lr
        for one, other in zip(models[0].parameters(), models[1].parameters()):
            one.grad = torch.randn(one.shape, generator=generator)
            other.grad = one.grad.clone()
        ours.step()
        theirs.step()
    for (key, one), other in zip(models[0].named_parameters(), models[1].parameters()):
        assert torch.equal(one, other), key


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lamb", "lars", "timm:nadamw"])
def test_a_run_resumes_with_the_same_bits_and_has_one_curve_at_any_cut(name, small_recipe, tmp_path, monkeypatch):
    changes = ["schedule.epochs=1", "schedule.warmup_epochs=0", f"optimizer.name={name}", *SETTINGS[name]]
    recipe = small_recipe(*changes)
    assert train(recipe, tmp_path / "whole", OPTIONS)
    assert not train_until(9, monkeypatch, recipe, tmp_path / "stopped", OPTIONS)
    assert train(recipe, tmp_path / "stopped", OPTIONS)
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")
    assert train(recipe, tmp_path / "cut", StartOptions(micro_batch=13, workers=0))
    assert_same_curve(tmp_path / "cut", tmp_path / "whole", 22)


RESUMED = ["adabelief", "adan", "adopt", "lamb", "lars", "lion", "madgrad", "nadamw", "rmsproptf", "sgdw"]


def made_engine(name: str, saved: CheckpointReader | None = None) -> tuple[DataParallel, PreparedModel]:
    """An engine with this optimizer of timm: at its start, or as it was saved."""
    changes = ["model.name=test_convnext", "model.layer_scale=null", "optimizer.clip_grad=1"]
    recipe = load("demo", [*changes, f"optimizer.name=timm:{name}", "engine.deterministic=true"])
    accelerator = make_accelerator(recipe)
    model = prepare_model(recipe, 10)
    if saved:
        load_model(model.module, saved)
    engine = DataParallel(recipe, model.module, accelerator)
    if saved:
        engine.load_state(saved)
    return engine, model


def update(engine: DataParallel, model: PreparedModel, step: int, micro_batch: int = 4) -> float:
    """Update with four random images, in micro-batches; return the loss before."""
    generator, total = torch.Generator().manual_seed(step), 0.0
    images = torch.randn(4, 3, 32, 32, generator=generator)
    labels = torch.randint(0, 10, (4,), generator=generator)
    for first in range(0, 4, micro_batch):
        part = slice(first, first + micro_batch)
        model.drop_path.draw(step, torch.arange(4)[part])
        with engine.micro_batch(last_of_step=first + micro_batch == 4):
            loss = torch.nn.functional.cross_entropy(engine.forward(images[part]), labels[part], reduction="sum") / 4
            engine.backward(loss)
        total += loss.item()
    engine.update(1e-4, weight_decay=0.05)
    return total


@pytest.mark.parametrize("name", RESUMED)
def test_timms_optimizers_resume_with_the_same_bits_and_have_one_curve_at_any_cut(name, tmp_path):
    """From a checkpoint after three of six updates, with EMA and clipping."""
    whole, model = made_engine(name)
    losses = [update(whole, model, step) for step in range(6)]
    first, its_model = made_engine(name)
    assert [update(first, its_model, step) for step in range(3)] == losses[:3]
    writer = CheckpointWriter(tmp_path, Retention(1), 0, 1, attempt=new_attempt(), resumed_step=None)
    writer.save(3, first.state(), first.scalars(), first.shapes, {"identity": "", "dataset": ""})
    writer.wait()
    second, its_model = made_engine(name, open_checkpoint(checkpoint_path(tmp_path, 3)).reader())
    assert [update(second, its_model, step) for step in range(3, 6)] == losses[3:]
    expected = {(shard.kind, shard.name): shard.values for shard in whole.state()}
    found = {(shard.kind, shard.name): shard.values for shard in second.state()}
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    cut, its_model = made_engine(name)
    assert [update(cut, its_model, step, micro_batch=1) for step in range(6)] == pytest.approx(losses, rel=1e-4)


@pytest.mark.parametrize(
    "name, message",
    [
        ("timm:adafactorbv", "keeps exp_avg_sq_r, exp_avg_sq_c"),  # for matrices that are large enough
        ("timm:muon", "no checkpoint can hold it"),
        ("timm:adafactor", "which is not of a parameter's shape, so that no checkpoint can hold it"),
        ("timm:adahessian", "needs second derivatives"),
        ("timm:lam", "did you mean timm:la"),
        ("timm:fusedlamb", "cannot be used here"),
    ],
)
def test_an_optimizer_that_cannot_be_resumed_or_used_is_refused(name, message):
    with pytest.raises(UserError, match=message) as caught:
        make_optimizer(torch.nn.Linear(2, 2), load("demo", [f"optimizer.name={name}"]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["adam", "timm:", "timm:a b", "LAMB"])
def test_an_unknown_name_says_which_there_are(name):
    with pytest.raises(UserError, match="use 'adamw', 'sgd', 'lamb', 'lars', 'lion', or timm:NAME"):
        load("demo", [f"optimizer.name='{name}'"])


@pytest.mark.parametrize("name", ["lamb", "lars", "timm:nadamw"])
def test_zero_is_refused_because_it_would_take_norms_of_parts(name):
    with pytest.raises(UserError, match=f"optimizer.name={name} works under plain DDP only"):
        with_default_engine(recipe_of(name, "engine.zero=1"))
