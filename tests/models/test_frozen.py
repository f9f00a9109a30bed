"""`model.train`: what it names trains, and everything else computes and stays as in evaluation."""

import pytest
import timm
import torch
from torch import nn

from models.frozen import classifier_layers, freeze
from models.parameter_groups import parameter_groups
from models.prepared import prepare_model
from recipes.errors import UserError
from recipes.load import load


def trained(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def frozen(name, train, **options):
    model = timm.create_model(name, num_classes=10, **options)
    freeze(model, train)
    return model


@pytest.mark.parametrize(
    "name, train, begins",
    [
        ("test_convnext", "head", ("head.fc.",)),
        ("test_convnext", "last:1", ("head.", "stages.3.blocks.1.")),
        ("test_convnext", "last:2", ("head.", "stages.3.")),
        ("test_resnet", "head", ("fc.",)),
        ("test_resnet", "last:1", ("fc.", "layer4.0.")),
        ("test_efficientnet", "last:1", ("classifier.", "blocks.4.0.", "conv_head.", "bn2.")),
        ("test_vit", "last:1", ("head.", "norm.", "blocks.5.")),
        ("levit_128s", "head", ("head.", "head_dist.")),
    ],
)
def test_what_trains_is_the_head_and_the_last_blocks(name, train, begins):
    model = frozen(name, train)
    names = trained(model)
    assert names == {parameter for parameter, _ in model.named_parameters() if parameter.startswith(begins)}
    assert all(any(one.startswith(begin) for one in names) for begin in begins)


def test_frozen_layers_compute_as_in_evaluation_and_never_change():
    """BatchNorm's running statistics, stochastic depth and dropout; also after `train()` of a wrapper."""
    model = frozen("test_resnet", "last:1", drop_path_rate=0.5)
    wrapped = nn.Sequential(model)
    wrapped.eval()
    assert not any(module.training for module in wrapped.modules())
    wrapped.train()
    assert model.training and model.layer4.training and model.fc.training
    assert not any(module.training for part in (model.bn1, model.layer1, model.layer3) for module in part.modules())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model(torch.randn(4, 3, 64, 64)).sum().backward()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) or name.startswith("layer4"), name
    assert all((parameter.grad is None) == (not parameter.requires_grad) for parameter in model.parameters())


def test_frozen_batch_norm_needs_no_statistics_batch():
    """So the micro-batch is free again, and one image is enough."""
    changes = ["model.layer_scale=null", "batch.global=8", "batch.slices=8", "model.drop_path=0.3"]
    head = prepare_model(load("demo", ["model.name=test_resnet", "model.train=head", *changes]), 10)
    assert not head.has_batch_norm and not head.drop_path.branches
    changes = ["batch.slices=2", *changes[:2], changes[3]]
    blocks = prepare_model(load("demo", ["model.name=test_resnet", "model.train=last:1", *changes]), 10)
    assert len(blocks.bn_stats.layers) == 3 and len(blocks.drop_path.branches) == 1


def test_batch_norm_in_evaluation_mode_keeps_its_statistics_while_its_scale_and_shift_train():
    """`model.norm_eval`: also after `train()` of a wrapper, for layers that a freeze leaves to train."""
    for train in ("all", "last:1"):
        model = timm.create_model("test_resnet", num_classes=10, drop_path_rate=0.5)
        freeze(model, train, norm_eval=True)
        nn.Sequential(model).train()
        norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        assert model.training and model.layer4.training and model.layer4[0].drop_path.training
        assert norms and not any(norm.training for norm in norms)
        before = {name: value.clone() for name, value in model.named_buffers()}
        model(torch.randn(4, 3, 64, 64)).sum().backward()
        assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
        assert all(norm.weight.grad is not None for norm in model.layer4.modules() if norm in norms)
        assert trained(model) == trained(frozen("test_resnet", train))


def test_batch_norm_in_evaluation_mode_needs_no_statistics_batch():
    changes = ["model.name=test_resnet", "model.layer_scale=null", "batch.global=8", "batch.slices=8"]
    prepared = prepare_model(load("demo", [*changes, "model.norm_eval=true", "model.weights=timm"]), 10)
    assert not prepared.has_batch_norm


def test_statistics_of_a_run_from_scratch_cannot_be_kept():
    with pytest.raises(UserError, match="set model.weights or model.norm_eval=false") as caught:
        load("demo", ["model.norm_eval=true"])
    assert "\n" not in str(caught.value)


def test_the_optimizer_has_trained_parameters_only_and_layer_decay_counts_from_the_same_end():
    recipe = load("demo", ["model.train=last:1", "model.name=test_convnext", "optimizer.layer_decay=0.5"])
    model = frozen("test_convnext", "last:1")
    groups = parameter_groups(model, recipe.optimizer)
    assert {name for group in groups for name in group.names} == trained(model)
    assert {group.lr_scale for group in groups} == {1.0, 0.5}


def test_everything_trains_by_default():
    model = frozen("test_convnext", "all")
    assert trained(model) == {name for name, _ in model.named_parameters()} and "train" not in vars(model)


def test_what_cannot_be_trained_alone_is_refused_with_what_to_do():
    with pytest.raises(UserError, match="has 10 groups of layers before its head: use model.train=last:9 at most"):
        frozen("test_convnext", "last:10")
    with pytest.raises(UserError, match="no classifier to train alone"):
        freeze(timm.create_model("test_convnext", num_classes=0), "head")
    model = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(UserError, match="does not say what its blocks are"):
        freeze(model, "last:1")
    for wrong in ("last:0", "last", "tail"):
        with pytest.raises(UserError, match="model.train") as caught:
            load("demo", [f"model.train={wrong}"])
        assert "\n" not in str(caught.value) and "all, head or last:N" in str(caught.value)


def test_distilled_models_have_two_classifier_layers():
    assert len(classifier_layers(timm.create_model("levit_128s"))) == 2
    assert len(classifier_layers(timm.create_model("test_vit"))) == 1
