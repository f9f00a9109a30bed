"""The commands in the documentation are real: every command and option exists, and the blocks marked `run` run.

A block's info string says how it is tested. ``bash run`` runs line by line inside this process, ``bash run slow`` in a
shell whose `bigbatch` is this code. Both start in an empty folder with images in `photos/`, and in a folder for each
class in `my-photos/`. The demo is trained for one epoch instead of 14, in a shell with a tiny model. The fine-tuning of
photos begins with random weights of a tiny model. The commands must print the lines of a block ``text output``, except
for the numbers in them.
"""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from PIL import Image
from typer.main import get_command

from launcher.cli.main import app
from recipes.load import load
from slurm.cluster import load_cluster
from tests.command_line import environment_with_program, run_command
from tests.docs.pages import PAGES, ROOT, blocks, inline_code, name
from tests.preloaded import training_server

PROGRAM = get_command(app)
COMMANDS = PROGRAM.commands
OPTIONS = {option for parameter in PROGRAM.params for option in parameter.opts} | {"--help"}  # before a command
SMALL_DEMO = ["schedule.epochs=1", "schedule.warmup_epochs=0"]
TINY_MODEL = ["model.name=test_efficientnet", "model.layer_scale=null", "optimizer.layer_decay=null", "input.size=32"]
FROM_SCRATCH = ["model.weights=null", "model.norm_eval=false"]
LAUNCHED = re.compile(r"-m launcher\.train |--module launcher\.train |\"\$\(which bigbatch\)\" train ")

each_page = pytest.mark.parametrize("page", PAGES, ids=name)


def lines(text: str) -> list[str]:
    """The command lines of a shell block; a line that ends with a backslash goes with the next."""
    joined = text.replace("\\\n", " ")
    return [line for line in (line.strip() for line in joined.splitlines()) if line and not line.startswith("#")]


def named_commands(page: Path) -> list[list[str]]:
    """The arguments of every `bigbatch` in a page, in blocks and in backticks."""
    found = []
    texts = [line for block in blocks(page, "bash") for line in lines(block.text)] + inline_code(page)
    for text in texts:
        text = LAUNCHED.sub("; bigbatch train ", text)
        for part in re.split(r"[;|]| do |\$\(", text):
            if re.match(r"\s*bigbatch( |$)", part):
                found.append(shlex.split(part.replace("[", " ").replace("]", " "), comments=True)[1:])
    return found


def shape(line: str) -> str:
    """Return a line of output with every number replaced by #."""
    return re.sub(r"[0-9][0-9.,]*", "#", line.strip())


@each_page
def test_commands_and_options_exist(page):
    for arguments in named_commands(page):
        if not arguments or arguments[0] in {"COMMAND"} | OPTIONS:
            continue
        command, *rest = arguments
        assert command in COMMANDS, f"there is no command bigbatch {command}"
        known = {option for parameter in COMMANDS[command].params for option in parameter.opts} | {"--help"}
        for option in (word.partition("=")[0] for word in rest if re.match(r"--?[a-z]", word)):
            assert option in known, f"bigbatch {command} has no option {option}"


@each_page
def test_options_that_are_named_alone_exist(page):
    known = {option for command in COMMANDS.values() for parameter in command.params for option in parameter.opts}
    foreign = {
        "--constraint",
        "--help",
        "--version",
        "--amp",
        "--aug-repeats",
        "--bce-sum",
        "--bce-target-thresh",
        "--channels-last",
        "--torchcompile",
        "--cleanenv",
        "--containall",
        "--check",
        "--minutes",
        "--python-version",
        "--shards",
        "--small",
    }
    for option in (code.split()[0] for code in inline_code(page) if code.startswith("--")):
        assert option in known | foreign, f"no command has an option {option}"


@each_page
def test_make_targets_exist(page):
    makefile = (ROOT / "Makefile").read_text()
    texts = [line for block in blocks(page, "bash") for line in lines(block.text)] + inline_code(page)
    for target in (match[1] for match in (re.match(r"make ([\w./-]+)", text) for text in texts) if match):
        assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), f"there is no target {target}"


@each_page
def test_recipes_in_pages_are_valid(page, tmp_path):
    for block in blocks(page, "yaml"):
        if "recipe" in block.info:
            file = tmp_path / "my.yaml"
            file.write_text(block.text)
            load(str(file))


@each_page
def test_cluster_profiles_in_pages_are_valid(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for block in blocks(page, "toml"):
        if "cluster" in block.info:
            Path("clusters.toml").write_text(block.text)
            load_cluster(None)


@pytest.fixture
def sandbox(tmp_path, monkeypatch) -> Path:
    """The empty folder that a page's commands run in, as the working directory."""
    (tmp_path / "photos").mkdir()
    for number in range(3):
        Image.new("RGB", (40, 30), (80 * number,) * 3).save(tmp_path / "photos" / f"{number}.png")
    for number in range(40):
        photo = tmp_path / "my-photos" / ("cat" if number % 2 else "dog") / f"{number}.jpg"
        photo.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (6 * number, 0, 0)).save(photo)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path


def run_here(arguments: list[str], monkeypatch) -> None:
    """Run one `bigbatch` command in this process, from a fresh state of Accelerate's."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    if arguments[:2] == ["train", "demo"]:
        arguments = [*arguments, *SMALL_DEMO, "--workers", "0"]
    code = run_command(monkeypatch, *arguments)
    AcceleratorState._reset_state(reset_partial_state=True)
    assert not code, f"bigbatch {shlex.join(arguments)} ended with {code}"


def to_run(slow: bool) -> list[Path]:
    def runs(page: Path) -> bool:
        found = blocks(page, "bash") + blocks(page, "python")
        return any("run" in block.info and ("slow" in block.info) == slow for block in found)

    return [page for page in PAGES if runs(page)]


@pytest.mark.parametrize("page", to_run(slow=False), ids=name)
def test_short_blocks_run(page, sandbox, monkeypatch):
    for block in blocks(page, "bash"):
        if "run" in block.info and "slow" not in block.info:
            for line in lines(block.text):
                words = shlex.split(line, comments=True)
                assert words[0] == "bigbatch", "mark a block of other commands `slow`: a shell runs it"
                run_here(words[1:], monkeypatch)
    for block in blocks(page, "python"):
        if "run" in block.info:
            exec(compile(block.text, str(page), "exec"), {})


@pytest.mark.slow
@pytest.mark.parametrize("page", to_run(slow=True), ids=name)
def test_long_blocks_run(page, sandbox):
    changes = {
        "train demo": [*SMALL_DEMO, "model.name=test_convnext"],
        "train finetune_small": [*SMALL_DEMO, *TINY_MODEL, *FROM_SCRATCH],
    }
    environment = environment_with_program(sandbox / "bin", training_server().python, changes)
    printed = ""
    for block in blocks(page, "bash"):
        if "run" in block.info and "slow" in block.info:
            done = subprocess.run(
                ["bash", "-eu", "-o", "pipefail", "-c", block.text], env=environment, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stdout + done.stderr
            printed += done.stdout + done.stderr
    for block in blocks(page, "text"):
        if "output" in block.info:
            missing = {shape(line) for line in lines(block.text)} - {shape(line) for line in printed.splitlines()}
            assert not missing, f"the commands of {name(page)} print no such lines: {missing}\n{printed}"
