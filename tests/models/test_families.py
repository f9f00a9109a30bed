"""One model of each of timm's families trains with the same result at any cut, and exports under timm's names."""

import os

import pytest
import timm

from tests.models.families import TRAINS, check, family_names, rows

# A model for each way in which families differ: plain and tiny, BatchNorm with activation, BatchNorm of tokens,
# relative positions, a distilled head, windows, squeeze-and-excitation with BatchNorm, dropout of its own.
FAST = ["resnet", "convnext", "efficientnet", "byobnet", "mambaout", "vision_transformer"]
SLOW = ["levit", "swin_transformer", "regnet", "rexnet", "densenet", "ghostnet", "senet", "mobilenetv3", "efficientvim"]
EVERY = os.environ.get("BIGBATCH_EVERY_FAMILY")  # all rows of the table; minutes


def test_the_table_has_every_family_of_timm():
    assert [row.name for row in rows()] == family_names()
    assert all(row.example in timm.list_models(module=row.name) for row in rows())


@pytest.mark.parametrize("family", FAST)
def test_a_tiny_model_trains_and_exports(family):
    row = {row.name: row for row in rows()}[family]
    assert row.example.startswith("test_")
    check(row.example, row.size)


@pytest.mark.slow
@pytest.mark.parametrize("row", [row for row in rows() if EVERY or row.name in SLOW], ids=lambda row: row.name)
def test_the_smallest_model_of_a_family_does_what_the_table_says(row):
    assert row.outcome == TRAINS
    check(row.example, row.size)
