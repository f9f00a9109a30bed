"""A mistake in a recipe is one sentence that names the key, what was wrong, and the nearest right one."""

import pytest

from recipes.errors import UserError
from recipes.load import load


@pytest.mark.parametrize(
    "override, parts",
    [
        ("optimiser.lr=1", ["'optimiser.lr'", "'optimizer.lr'"]),
        ("lr=1", ["'lr'", "'optimizer.lr'"]),
        ("mix.mixpu=0", ["'mix.mixup'"]),
        ("optimizer.lr=fast", ["optimizer.lr='fast'", "number"]),
        ("optimizer.lr=-1", ["optimizer.lr=-1", "greater than 0"]),
        ("optimizer.lr=.nan", ["optimizer.lr=nan", "finite"]),
        ("optimizer.name=adam", ["optimizer.name='adam'", "'adamw'"]),
        ("batch.global=102", ["batch.global 102", "batch.slices 4"]),
        ("schedule.warmup_epochs=20", ["schedule.warmup_epochs 20", "schedule.epochs "]),
        ("model.drop_path=1", ["model.drop_path=1", "less than 1"]),
        ("nosuch=1", ["unknown key 'nosuch': `bigbatch recipes NAME`"]),
        ("seed=1.5", ["seed=1.5", "integer"]),
        ("seed", ["'seed'", "key=value"]),
        ("optimizer=sgd", ["optimizer is a section", "did you mean optimizer.name=sgd?", "optimizer.lr"]),
        ("model=resnet50", ["did you mean model.name=resnet50?"]),
        ("mix=0", ["mix is a section", "mix.mixup"]),
        ("model.weights=", ["'model.weights='", "model.weights=null"]),
        ("seed=2024-13-45", ["seed='2024-13-45'", "integer"]),
        ("seed=!!bool maybe", ["seed='!!bool maybe'", "integer"]),
        (f"seed=0x{'f' * 5000}", ["seed='0xff", "integer"]),
        (r'name="\uD800"', [r"name='\ud800'", "Unicode"]),
        ("optimizer.betas=[0.9,1]", ["optimizer.betas", "less than 1"]),
        ("data.cache_gib=1e300", ["data.cache_gib='1e300'", "less than or equal to"]),
        ("augment.crop_scale=[1.0,0.5]", ["augment.crop_scale=[1,0.5]", "smallest value"]),
        ("augment.crop_scale=[0,0]", ["augment.crop_scale=[0,0]", "above 0"]),
        ("augment.crop_ratio=[2,1]", ["augment.crop_ratio=[2,1]", "smallest value"]),
        ("seed=5 #6", ["seed='5 #6'", "integer"]),
    ],
)
def test_a_wrong_override_is_one_helpful_sentence(override, parts):
    with pytest.raises(UserError) as caught:
        load("demo", [override])
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize("policy", ["foo", "rand-m9-n-1", "rand-m-9", "rand-mnan", '""', "rand-m9-n0", "rand-mstdinf"])
def test_a_policy_that_timm_would_misread_is_refused(policy):
    with pytest.raises(UserError, match="is not a RandAugment policy: write one such as rand-m9"):
        load("demo", [f"augment.randaugment={policy}"])


@pytest.mark.parametrize("policy", ["rand", "rand-m9-n3-mstd0.5", "rand-mstd1-tweights", "rand-m15-p0.5-mmax20-inc1"])
def test_the_policies_of_timms_documentation_are_accepted(policy):
    assert load("demo", [f"augment.randaugment={policy}"]).augment.randaugment == policy


@pytest.mark.parametrize(
    "overrides",
    [
        ["schedule.warmup_epochs=20"],
        ["batch.global=121"],
        ["batch.global=5"],
        ["batch.global=121", "batch.statistics=48"],
        ["batch.statistics=48"],
    ],
)
def test_the_value_that_a_message_proposes_is_possible(overrides):
    with pytest.raises(UserError) as error:
        load("demo", overrides)
    load("demo", [*overrides, str(error.value).split()[-1]])


def test_overrides_change_what_they_name_and_nothing_else():
    plain, changed = load("demo"), load("demo", ["optimizer.lr=2e-3", "model.name=convnext_femto", "ema.decay=null"])
    assert (changed.optimizer.lr, changed.model.name, changed.ema.decay) == (2e-3, "convnext_femto", None)
    assert changed.model_copy(update={"optimizer": plain.optimizer, "model": plain.model, "ema": plain.ema}) == plain


@pytest.mark.parametrize(
    "text, value",
    [("a #b.pth", "a #b.pth"), ("#b.pth", "#b.pth"), ("a#b", "a#b"), ("'a #b'", "a #b"), ("'a' #b", "'a' #b")],
)
def test_an_override_loses_no_characters(text, value):
    assert load("demo", [f"model.weights={text}"]).model.weights == value


def test_a_file_extends_a_recipe_of_the_catalogue_or_another_file(tmp_path):
    (tmp_path / "mine.yaml").write_text("base: convnext_tiny_in1k\nbatch: {global: 1024, slices: 8}\n")
    (tmp_path / "longer.yaml").write_text("base: mine.yaml\nname: my longer run\nschedule: {epochs: 600}\n")
    recipe = load(str(tmp_path / "longer.yaml"))
    assert (recipe.name, recipe.batch.global_, recipe.schedule.epochs, recipe.optimizer.lr) == (
        "my longer run",
        1024,
        600,
        4e-3,
    )
    assert load(str(tmp_path / "mine.yaml")).name == "mine"


@pytest.mark.parametrize(
    "text, part",
    [
        ("base: itself.yaml", "extends itself"),
        ("- a list", "mapping"),
        ("batch: {global: [", "not valid YAML"),
        ("model: !!python/object/apply:os.system ['true']", "not valid YAML"),
        ("seed: 2024-13-45", "not valid YAML: this is no valid timestamp .* line 1"),
        ("seed: !!int abc", "no valid int"),
        ("seed: !!int ''", "no valid int"),
        ("seed: !!float abc", "no valid float"),
        ("seed: !!bool maybe", "no valid bool"),
        ("seed: !!timestamp abc", "no valid timestamp"),
        (f"seed: {'9' * 5000}", "no valid int"),
        (f"seed: 0x{'f' * 5000}", "no valid int"),
        ("5: 5", "the key 5 is not text"),
        ("model: {5: 5}", "the key 5 is not text"),
        ("model.name: x", "write model: {name: ...}"),
        (r'name: "\UFFFFFFFF"', "not valid YAML"),
        ("modl: {name: x}", "did you mean 'model'"),
        ("scheduling: {epochs: 5}", "did you mean 'schedule'"),
        ("schedule: {epoch: 5}", "did you mean 'schedule.epochs'"),
        ("optimizer: sgd", "optimizer: 'sgd' is not a section; did you mean optimizer.name=sgd"),
        ("base: nosuch", "there is no recipe 'nosuch': `bigbatch recipes` lists all"),
        ("base: convnext_tinny_in1k", "'convnext_tiny_in1k'"),
    ],
)
def test_a_broken_recipe_file_is_one_sentence(tmp_path, text, part):
    file = tmp_path / "itself.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=part) as caught:
        load(str(file))
    assert "\n" not in str(caught.value)


def test_recipes_that_extend_each_other_through_other_paths_are_one_sentence(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.yaml").write_text("base: ./b.yaml\n")
    (tmp_path / "sub" / "b.yaml").write_text("base: ../sub/a.yaml\n")
    with pytest.raises(UserError, match="extends itself"):
        load(str(tmp_path / "sub" / "a.yaml"))


@pytest.mark.parametrize("batch", ["{global: many}", "{global: .inf}", "64", "{global: null}"])
@pytest.mark.parametrize("lr", ["", "optimizer: {lr: 1e-3}\n"])
def test_a_recipe_may_mend_the_batch_of_its_base(tmp_path, batch, lr):
    (tmp_path / "bad.yaml").write_text(f"base: demo\nbatch: {batch}\n{lr}")
    (tmp_path / "good.yaml").write_text("base: bad.yaml\nbatch: {global: 64, slices: 1}\n")
    assert load(str(tmp_path / "good.yaml")).batch.global_ == 64
    assert load(str(tmp_path / "bad.yaml"), ["batch.global=64", "batch.slices=1"]).batch.global_ == 64


def test_the_batch_of_a_learning_rate_may_be_a_whole_number_in_any_form(tmp_path):
    (tmp_path / "base.yaml").write_text('batch: {global: "128.0"}\noptimizer: {lr: 1e-3}\n')
    (tmp_path / "own.yaml").write_text("base: base.yaml\nbatch: {global: 64}\n")
    assert load(str(tmp_path / "own.yaml")).lr_batch == 128


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(UserError, match="convnext_base_in1k"):
        load("convnext_bas_in1k")


UNREADABLE = {
    "missing": lambda path: None,
    "a directory": lambda path: path.mkdir(),
    "empty": lambda path: path.write_bytes(b""),
    "binary": lambda path: path.write_bytes(bytes(range(256))),
    "UTF-16": lambda path: path.write_bytes("model: {name: resnet50}".encode("utf-16")),
    "Latin-1": lambda path: path.write_bytes("name: café".encode("latin-1")),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_a_file_that_is_no_recipe_is_one_sentence_that_names_it(tmp_path, kind):
    UNREADABLE[kind](tmp_path / "bad.yaml")
    with pytest.raises(UserError, match="bad.yaml") as caught:
        load(str(tmp_path / "bad.yaml"))
    assert "\n" not in str(caught.value)


def test_a_message_shows_no_more_of_a_wrong_value_than_fits(tmp_path):
    """A few lines of YAML may stand for more than fits into memory: each list holds the one before it nine times."""
    value = "&x0 [a, a]"
    for level in range(1, 12):
        value = f"&x{level} [{value}{f', *x{level - 1}' * 8}]"
    (tmp_path / "large.yaml").write_text(f"base: demo\nmodel:\n  name: {value}\n")
    with pytest.raises(UserError, match=r"model.name=\[\[.*\.\.\..* is not valid: input should be a valid string"):
        load(str(tmp_path / "large.yaml"))
    with pytest.raises(UserError) as caught:
        load("demo", [f"batch.global={'x' * 10_000}"])
    assert len(str(caught.value)) < 500
