"""Whatever the documentation points at exists: links and anchors, files, modules, recipe keys and recipes."""

import re

import pytest

from recipes.load import config_keys, recipe_names
from tests.docs.pages import PAGES, ROOT, anchors, blocks, inline_code, links, name

TOP = ("launcher", "data", "models", "recipes", "slurm", "tests", "docs")
SECTIONS = sorted({key.partition(".")[0] for key in config_keys() if "." in key})
# Backticked words that look like a recipe key or a path of ours and are something else.
NOT_OURS = {"model.safetensors", "data.py", "models.py", "run.json"}

each_page = pytest.mark.parametrize("page", PAGES, ids=name)


@each_page
def test_links_lead_somewhere(page):
    for target in links(page):
        if re.match(r"[a-z]+:", target):
            continue  # the network is not asked
        path, _, anchor = target.replace("\\", "").partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{target} does not exist"
        assert file.is_relative_to(ROOT), f"{target} leaves the repository"
        if anchor:
            assert anchor in anchors(file), f"{target}: no such heading in {name(file)}"


@each_page
def test_files_and_modules_that_are_named_exist(page):
    shell = "\n".join(block.text for block in blocks(page, "bash"))
    named = [*inline_code(page), *shell.split()]
    for path in (word for word in named if re.fullmatch(rf"({'|'.join(TOP)})/[\w./-]*", word)):
        assert (ROOT / path).exists(), f"{path} does not exist"
    for module in re.findall(rf"python -m ((?:{'|'.join(TOP)})[\w.]*)", f"{shell} {' '.join(inline_code(page))}"):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), f"there is no module {module}"


@each_page
def test_recipe_keys_that_are_named_exist(page):
    known = {*config_keys(), *(f"{section}.*" for section in SECTIONS)}
    for word in (word for code in inline_code(page) for word in code.split()):
        key = word.partition("=")[0].rstrip(",")
        if re.fullmatch(rf"({'|'.join(SECTIONS)})\.[\w*]+", key) and key not in NOT_OURS:
            assert key in known, f"there is no recipe key {key}"


@each_page
def test_recipes_that_are_named_exist(page):
    families = "convnext|resnet50|resnext50_32x4d|swin_tiny|roadmap"
    for recipe in re.findall(rf"\b(?:{families})_\w*(?:in1k|in22k|cifar10|cats_dogs)\w*\b", page.read_text()):
        assert recipe in recipe_names(), f"there is no recipe {recipe}"


def test_pages_that_the_code_names_exist():
    """Docstrings, comments and messages send a reader to the documentation too."""
    sources = [path for folder in TOP[:-1] for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".yaml")]
    found = 0
    for source in [*sources, ROOT / "slurm/clusters.example.toml", ROOT / "Makefile"]:
        for path, anchor in re.findall(r"\b(docs/[\w/-]+\.(?:md|sh))(?:#([\w-]+))?", source.read_text()):
            found += 1
            assert (ROOT / path).is_file(), f"{name(source)} names {path}, which does not exist"
            assert not anchor or anchor in anchors(ROOT / path), (
                f"{name(source)} names {path}#{anchor}: no such heading"
            )
    assert found > 5
