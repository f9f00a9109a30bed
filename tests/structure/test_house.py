"""What keeps the code findable: few modules at the top, short files, and one meaning for each name."""

import ast
from collections import defaultdict

from tests.structure.test_imports import MODULES, ROOT

# Commands are functions named as the command; each calls a function of the same meaning in a room below.
COMMANDS = tuple(
    f"launcher.cli.{name}" for name in ("main", "data", "training", "results", "experiments", "planning", "jobs")
)


def test_the_top_of_the_launcher_holds_entry_points_and_what_all_rooms_share():
    top = sorted(path.stem for path in (ROOT / "launcher").glob("*.py") if path.stem != "__init__")
    assert top == ["__main__", "cut", "job", "processes", "recipe_shards", "train", "workers", "world"]


def test_no_file_is_longer_than_300_lines():
    files = [*MODULES.values(), *(ROOT / "tests").rglob("*.py")]
    assert not [path for path in files if len(path.read_text().splitlines()) >= 300]


def test_no_two_public_classes_or_functions_share_a_name():
    homes = defaultdict(list)
    for module, path in MODULES.items():
        if module in COMMANDS:
            continue
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                homes[node.name].append(module)
    # `attach` belongs to models.batch_norm and to models.stochastic_depth; callers write the module's name before it.
    shared = {name: found for name, found in homes.items() if len(found) > 1 and name not in ("attach", "main")}
    assert not shared


def test_tests_mirror_the_rooms():
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        folder = path.relative_to(ROOT / "tests").parent
        if folder.parts[0] in ("benchmarks", "structure", "compatibility", "protocols", "cuda_stand_in", "preloaded"):
            continue
        assert (ROOT / folder).is_dir(), f"{path.relative_to(ROOT)} has no room {folder}"
    assert not list((ROOT / "launcher").rglob("utils.py"))
