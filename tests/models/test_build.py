"""A model is built from the recipe alone, or it is said in one sentence which key of the recipe it cannot have."""

import pytest
import timm
import torch
import torch.distributed
from torch.nn.parallel import DistributedDataParallel

from models import batch_norm, stochastic_depth
from models.build import build, compile_blocks, scale_head
from models.parameter_groups import parameter_groups
from models.prepared import prepare_model
from models.weights import fit_weights
from recipes.errors import UserError
from recipes.load import load


def recipe(*changes):
    return load("convnext_tiny_in1k", ["model.layer_scale=null", "model.drop_path=0", *changes])


def meta(*changes):
    with torch.device("meta"):
        return build(recipe(*changes), 10)


@pytest.mark.parametrize(
    "changes, part",
    [
        (["model.name=vgg11", "model.drop_path=0.1"], "model.drop_path=0"),
        (["model.name=resnet18", "model.layer_scale=1e-6"], "model.layer_scale=null"),
        (
            ["model.name=vgg11", "model.drop_path=0.1", "model.layer_scale=1e-6", "optimizer.layer_decay=0.8"],
            "no layer scale and no stochastic depth and no layer-wise learning rates: "
            "add model.layer_scale=null model.drop_path=0 optimizer.layer_decay=null",
        ),
        (["model.name=roadmap_02_patchfy"], "'roadmap_02_patchify'"),
    ],
)
def test_what_a_model_cannot_have_is_refused_with_the_key_to_change(changes, part):
    with pytest.raises(UserError, match=part) as caught:
        meta(*changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["test_vit", "vgg11", "levit_128s", "test_resnet"])
def test_the_advice_for_a_models_missing_options_works_at_once(name):
    """A fine-tuning recipe of ConvNeXt with another model; then with the advice of the sentence, and nothing else."""
    changes = [
        "model.layer_scale=1e-6",
        "model.drop_path=0.1",
        "model.head_init_scale=0.001",
        "optimizer.layer_decay=0.8",
    ]
    with pytest.raises(UserError) as caught:
        meta(f"model.name={name}", *changes)
    message = str(caught.value)
    assert "choose another" not in message
    advice = message.rpartition(": add ")[2].split()
    model = meta(f"model.name={name}", *changes, *advice)
    asked = recipe(f"model.name={name}", *changes, *advice)
    parameter_groups(model, asked.optimizer)
    if asked.model.head_init_scale is not None:
        scale_head(build(asked, 10), asked.model.head_init_scale)


def test_models_without_stochastic_depth_or_layer_scale_are_built_where_none_is_asked_for():
    assert meta("model.name=vgg11").num_classes == 10


def test_a_size_for_evaluation_that_the_model_cannot_take_is_refused_before_training():
    changes = ["model.name=halonet_h1", "model.layer_scale=null", "model.drop_path=0", "input.size=256"]
    with torch.device("meta"), pytest.raises(UserError, match="cannot evaluate images of 200 .* input.eval_size=null"):
        prepare_model(load("demo", [*changes, "input.eval_size=200"]), 10)


def test_an_encoder_without_a_classifier_is_refused():
    with pytest.raises(UserError, match="gemma4_vit_167m_enc has no classifier"):
        meta("model.name=gemma4_vit_167m_enc")


def test_a_drop_path_of_zero_turns_off_what_a_model_has_by_default():
    assert timm.create_model("swin_tiny_patch4_window7_224").layers[-1].blocks[
        -1
    ].drop_path1.drop_prob == pytest.approx(0.1)
    model = meta("model.name=swin_tiny_patch4_window7_224", "model.drop_path=0")
    assert not stochastic_depth.attach(model, seed=0).rates


def test_swin_is_built_for_the_recipes_size():
    assert meta("model.name=swin_tiny_patch4_window7_224", "input.size=64").patch_embed.img_size == (64, 64)


def test_a_head_of_several_layers_is_not_scaled():
    with pytest.raises(UserError, match="head_init_scale=null"):
        scale_head(meta("model.name=levit_128s"), 0.001)


def test_weights_in_the_names_of_convnexts_own_code_load_into_the_last_step_of_the_road():
    """The files that ConvNeXt's code publishes."""
    theirs = timm.create_model("test_convnext", num_classes=10)
    ours = timm.create_model("test_convnext", num_classes=10)
    assert not fit_weights(ours, {_convnexts_name(n): v for n, v in theirs.state_dict().items()}, "file")
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters()))
    step = build(recipe("model.name=roadmap_15_convnext_tiny"), 10)
    published = {_convnexts_name(name): value + 1 for name, value in step.state_dict().items()}
    assert not fit_weights(step, published, "file")
    assert all(torch.equal(published[_convnexts_name(name)], value) for name, value in step.state_dict().items())


def _convnexts_name(name: str) -> str:
    for stage in range(1, 4):
        name = name.replace(f"stages.{stage}.downsample.", f"downsample_layers.{stage}.")
    for ours, theirs in [
        ("stem.", "downsample_layers.0."), ("blocks.", ""), ("conv_dw.", "dwconv."), ("mlp.fc", "pwconv"),
        ("head.fc.", "head."), ("head.norm.", "norm."),
    ]:  # fmt: skip
        name = name.replace(ours, theirs)
    return name


@pytest.mark.slow
@pytest.mark.parametrize("name, blocks", [("test_convnext", "ConvNeXtBlock"), ("test_resnet", "BasicBlock")])
def test_blocks_are_compiled_once_and_compute_the_same(name, blocks):
    """Blocks of one shape share their code, and no later step compiles again (aot_eager needs no C++ compiler)."""
    outputs = []
    for compiled in (False, True):
        torch.manual_seed(0)
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        model = timm.create_model(name, num_classes=10, drop_path_rate=0.3).train()
        depth, statistics = stochastic_depth.attach(model, 0), batch_norm.attach(model, 4)
        names = list(model.state_dict())
        if compiled:
            found = compile_blocks(model, backend="aot_eager")
            assert {type(block).__name__ for block in found} == {blocks} and list(model.state_dict()) == names
        graphs, outputs_now = [], []
        for step in range(3):
            depth.draw(step, torch.arange(8))
            outputs_now.append(model(torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(step))))
            outputs_now[-1].sum().backward()
            if statistics:
                statistics.add(2)
                statistics.update(lambda total: total)
            graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
        outputs.append([*outputs_now, *(buffer for buffer in model.buffers())])
    assert graphs[0] == graphs[-1] and 0 < graphs[0] <= len(found)
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_compiled_block_stays_one_graph_under_ddp(single_process_group):
    """torch would cut a block's graph at every bucket of gradients that ends in it."""
    counts = []
    for wrap in (lambda model: model, lambda model: DistributedDataParallel(model, bucket_cap_mb=0.001)):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        model = timm.create_model("test_convnext", num_classes=10).train()
        compile_blocks(model, backend="aot_eager")
        wrap(model)(torch.randn(2, 3, 32, 32)).sum().backward()
        counts.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert counts[0] == counts[1] > 0


@pytest.fixture
def single_process_group():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()
