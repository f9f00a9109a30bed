"""Which room may import which: every import, lazy ones too, points downward, and none closes a circle."""

import ast
from itertools import accumulate
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("bigbatch", "recipes", "models", "data", "slurm", "launcher")

# From top to bottom. A module imports its own room and lower ones. Rooms on one line do not import each other.
FLOORS = [
    ["launcher.__main__", "launcher.train", "launcher.job", "bigbatch"],
    ["launcher.cli"],
    ["launcher.jobs"],
    ["launcher.experiments"],
    ["launcher.training"],
    ["launcher.evaluation", "launcher.planning"],
    ["launcher.engines"],
    ["launcher.checkpoints", "launcher.runs"],
    ["launcher.cut", "launcher.processes", "launcher.recipe_shards", "launcher.workers"],
    ["launcher.world", "launcher"],
    ["slurm"],
    ["data.writing"],
    ["data.sources"],
    ["data.loader", "data.on_device", "data.prefetch"],
    ["data.feature_batches"],
    ["data.batches"],
    ["data.epoch_order", "data.input_digest"],
    ["data.images", "data.reading", "data.mixing", "data.block_order"],
    ["data.order", "data.parallel", "data.shared_slots", "data.feature_store"],
    ["data.worker_processes"],
    ["data.atomic_io", "data.cpus", "data.exit_codes", "data.image_formats", "data.progress", "data"],
    ["data.printable_text"],
    ["models"],
    ["recipes"],
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}

# The packages whose `__init__` is more than a docstring, and why. Importing one of their modules runs that code first.
WITH_CODE = {
    "bigbatch": "it is the public interface, so its names are imported from the package itself",
    "launcher": "`python -m launcher.train` must find our other packages before any module of launcher imports them",
}


def modules() -> dict[str, Path]:
    """Return every module of our packages by its dotted name; a package has the name of its folder."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports_of(name: str) -> set[str]:
    """Return our modules that a module imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports by a relative path"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {one if one in MODULES else str(node.module) for one in inner}
    return {one for one in found if one in MODULES} - {name}


IMPORTS = {name: imports_of(name) for name in MODULES}


def room_of(module: str) -> str:
    """Return the innermost room that a module lies in."""
    parts = module.split(".")
    return next(".".join(parts[:count]) for count in range(len(parts), 0, -1) if ".".join(parts[:count]) in FLOOR)


def packages_run_for(module: str) -> set[str]:
    """Return the packages with code that Python imports because a module imports what it does.

    A package that the module lies in does not count: Python began to import it before the module.
    """
    parents = {str(name) for one in IMPORTS[module] for name in accumulate(one.split("."), "{}.{}".format)}
    return {package for package in parents & WITH_CODE.keys() if not f"{module}.".startswith(f"{package}.")}


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_its_own_room_and_lower_ones_only(module):
    own = room_of(module)
    climbing = [other for other in IMPORTS[module] if room_of(other) != own and FLOOR[room_of(other)] <= FLOOR[own]]
    assert not climbing, f"{module} imports {', '.join(climbing)}, which FLOORS does not put below {own}"


def test_an_init_only_has_a_docstring():
    """So importing a module runs no other module of its package. The exceptions are listed with their reasons."""
    found = set()
    for package, path in MODULES.items():
        if path.stem == "__init__":
            tree = ast.parse(path.read_text())
            assert ast.get_docstring(tree), f"{package} has no docstring"
            found |= {package} if len(tree.body) > 1 else set()
    assert found == WITH_CODE.keys()


def test_no_circle_of_imports():
    """Importing a module counts as importing its package only where the `__init__` has code (`WITH_CODE`)."""
    state: dict[str, int] = {}

    def visit(module: str, path: tuple[str, ...]) -> None:
        if state.get(module) == 2:
            return
        assert module not in path, " → ".join([*path[path.index(module) :], module])
        for other in sorted(IMPORTS[module] | packages_run_for(module)):
            visit(other, (*path, module))
        state[module] = 2

    for module in MODULES:
        visit(module, ())


def test_no_top_level_import_of_torch_where_the_command_line_must_be_fast():
    """Importing torch takes seconds, so `recipes` and the help of every command do without it."""
    for module in MODULES:
        if not module.startswith(("recipes", "launcher.cli")):
            continue
        for node in ast.parse(MODULES[module].read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.partition(".")[0] in ("torch", "timm", "accelerate") for name in names), module
