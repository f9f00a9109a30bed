"""The table of parameters and GFLOPs in docs/models.md is what the models have, and what was published."""

from pathlib import Path

import pytest
import timm
import torch

from models.cost import multiply_adds
from models.roadmap import ROAD

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
# The rows of the two tables whose second column is the number of parameters.
TABLES = [table for table in PAGE.read_text().split("\n\n") if table.startswith("| model | parameters |")]
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for table in TABLES for line in table.splitlines()[2:]]

# Published: ConvNeXt paper (C = 96 ... 256), torchvision and Swin.
KNOWN = {
    "convnext_tiny": 28.6, "convnext_small": 50.2, "convnext_base": 88.6, "convnext_large": 197.8,
    "convnext_xlarge": 350.2,
    "resnet50": 25.6, "resnet152": 60.2, "resnext50_32x4d": 25.0, "swin_tiny_patch4_window7_224": 28.3,
}  # fmt: skip


@pytest.mark.parametrize("name, parameters, counted, published", [row[:4] for row in ROWS])
def test_a_row_of_the_table_is_what_the_model_has(name, parameters, counted, published):
    with torch.device("meta"):
        model = timm.create_model(name)
    actual = sum(parameter.numel() for parameter in model.parameters())
    assert f"{actual:,}" == parameters
    assert name not in KNOWN or round(actual / 1e6, 1) == KNOWN[name]
    gflops = multiply_adds(model, 224) / 1e9
    assert f"{gflops:.2f}" == counted
    last_digit = 10.0 ** -len(published.partition(".")[2])  # figure 2 rounds 4.1456 to 4.2, by way of 4.15
    assert gflops == pytest.approx(float(published), rel=0.01, abs=last_digit)


def test_the_table_has_every_step_and_family():
    names = [row[0] for row in ROWS]
    assert [name for name in names if name in ROAD] == list(ROAD)
    assert KNOWN.keys() <= set(names) and len(names) == len(set(names)) == 36


def test_counting_leaves_the_model_as_it_was():
    with torch.device("meta"):
        model = timm.create_model("test_resnet").train()
    assert multiply_adds(model, 64) > 0 and model.training
