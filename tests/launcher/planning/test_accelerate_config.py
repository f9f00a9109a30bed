"""The engine follows the recipe or `accelerate launch`; where they contradict each other, the run is refused."""

import pytest

from launcher.cut import cut_batch
from launcher.engines.deepspeed_config import deepspeed_config
from launcher.planning.accelerate_config import with_accelerate_config
from launcher.planning.engine_rules import with_default_engine
from recipes.errors import UserError
from recipes.load import load


@pytest.fixture
def accelerate(monkeypatch):
    """Set what an accelerate config that names DeepSpeed puts into the environment."""

    def config(**values):
        monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
        for name, value in values.items():
            monkeypatch.setenv(f"ACCELERATE_{name.upper()}", value)

    return config


def choice(*changes: str) -> tuple:
    engine = with_default_engine(with_accelerate_config(load("demo", changes))).engine
    return engine.zero, engine.offload, engine.precision


def test_without_a_word_it_is_plain_data_parallelism():
    assert choice() == (0, "none", "auto")


def test_the_recipe_decides():
    assert choice("engine.zero=3", "engine.offload=cpu", "engine.precision=bf16") == (3, "cpu", "bf16")


def test_an_accelerate_config_is_taken_as_the_users_choice(accelerate):
    accelerate(deepspeed_zero_stage="2", deepspeed_offload_optimizer_device="cpu", mixed_precision="bf16")
    assert choice() == (2, "cpu", "bf16")


def test_saying_the_same_twice_is_no_contradiction(accelerate):
    accelerate(deepspeed_zero_stage="3", deepspeed_offload_optimizer_device="none")
    assert choice("engine.zero=3", "engine.offload=none") == (3, "none", "auto")


MISTAKES = {
    "another stage": (
        {"deepspeed_zero_stage": "2"},
        ["engine.zero=3"],
        "engine.zero=3 but the accelerate config says 2",
    ),
    "plain": ({"deepspeed_zero_stage": "2"}, ["engine.zero=0"], "engine.zero=0 but the accelerate config says 2"),
    "another precision": (
        {"mixed_precision": "bf16"},
        ["engine.precision=float32"],
        "but the accelerate config says bf16",
    ),
    "a precision that is not offered": ({"mixed_precision": "fp8"}, [], "fp8, which is not offered"),
    "a JSON of its own": ({"deepspeed_config_file": "x.json"}, [], "made from the recipe"),
    "clipping": ({"gradient_clipping": "1.0"}, [], "optimizer.clip_grad=1.0"),
    "off-loading without ZeRO": (None, ["engine.offload=cpu"], "add engine.zero=2"),
    "a disk at stage 2": (None, ["engine.zero=2", "engine.offload=nvme"], "needs engine.zero=3"),
    "a disk without a folder": (None, ["engine.zero=3", "engine.offload=nvme"], "engine.nvme_path=FOLDER"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_cannot_be_meant_is_said_in_one_sentence(accelerate, mistake):
    config, changes, part = MISTAKES[mistake]
    if config is not None:
        accelerate(**config)
    with pytest.raises(UserError, match=part) as caught:
        choice(*changes)
    assert "\n" not in str(caught.value)


def test_the_engine_is_no_part_of_the_recipes_identity():
    changes = ["engine.zero=3", "engine.offload=cpu", "engine.checkpoint_activations=true", "engine.precision=bf16"]
    assert load("demo", changes).identity() == load("demo").identity()


def test_the_json_leaves_nothing_to_guess_and_has_the_recipes_batch():
    recipe = load("convnext_xlarge_in22k", ["engine.zero=3", "engine.offload=cpu", "optimizer.clip_grad=1"])
    config = deepspeed_config(recipe, cut_batch(recipe, 64, 16, largest=64), parameters=393_000_000)
    assert "auto" not in str(config)
    assert (
        config["train_batch_size"],
        config["train_micro_batch_size_per_gpu"],
        config["gradient_accumulation_steps"],
    ) == (4096, 16, 4)
    assert config["gradient_clipping"] == 1.0
    assert config["zero_optimization"]["offload_optimizer"]["device"] == "cpu"
