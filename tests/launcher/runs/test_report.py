"""The report: one page that stands alone, shows what the run's files say, and nothing else."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from launcher.runs.history import History
from launcher.runs.metadata import RunMetadata
from launcher.runs.report import write_report
from launcher.runs.run_directory import RunDirectory
from recipes.errors import UserError
from recipes.load import load

VOID = {"meta", "path", "circle", "wbr", "br", "img"}


class Page(HTMLParser):
    """Text, tags and addresses of a page; fails where tags are not closed in order."""

    def __init__(self, html: str):
        super().__init__()
        self.words, self.open, self.seen, self.addresses = [], [], [], []
        self.feed(html)
        assert self.open == []

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        self.seen.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.words.append(data)


def make_run(folder: Path, *overrides: str, steps: int = 40, classes=("cat", "dog"), evaluated: bool = True) -> Path:
    """A run directory as training leaves it, with a curve that is known."""
    recipe = load("convnext_atto_cats_dogs", list(overrides))
    run = RunDirectory(folder)
    folder.mkdir(parents=True)
    dataset = {
        "name": "cats-vs-dogs",
        "digest": "d" * 64,
        "train_images": 320,
        "val_images": 50,
        "classes": list(classes),
    }
    metadata = {"name": recipe.name, "recipe": recipe.name, "identity": recipe.identity(), "dataset": dataset}
    metadata |= {
        "model": {"name": recipe.model.name, "parameters": 3_375_000},
        "steps_per_epoch": 10,
        "total_steps": 40,
    }
    run.write(recipe, RunMetadata(**metadata, versions={"torch": "2.14.1"}))
    run.metrics.append(
        "start",
        step=0,
        cut="32 = 1 process × 32 × 1 accumulation step",
        engine="DDP",
        device="CPU",
        precision="float32",
    )
    for step in range(1, steps + 1):
        run.metrics.append(
            "step", step=step, epoch=step / 10, loss=1 / step, lr=1e-3, images_per_second=100.0, data_wait=0.1
        )
        if evaluated and step % 10 == 0:
            run.metrics.append(
                "evaluation",
                step=step,
                epoch=step / 10,
                images=50,
                top1=0.5 + step / 100,
                top5=None,
                loss=0.6,
                ema_top1=0.61,
                ema_top5=None,
            )
    return folder


@pytest.fixture
def run(tmp_path) -> Path:
    return make_run(tmp_path / "first")


def page_of(runs: list[Path], out: Path) -> Page:
    return Page(write_report(runs, out).read_text())


def test_the_page_needs_nothing_from_outside(run, tmp_path):
    """No address but its own anchors, no script: it opens offline and from a mail."""
    page = page_of([run, make_run(tmp_path / "second", "seed=1")], tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text()
    assert all(address.startswith("#") for address in page.addresses)
    assert not {"script", "link", "img", "iframe"} & set(page.seen)
    assert "url(" not in html and "@import" not in html
    assert "@media print" in html


def test_the_figures_are_those_of_the_run(run, tmp_path):
    page = page_of([run], tmp_path / "page.html")
    assert "90.00%" in page.text  # the last evaluation
    assert "best 61.00% at epoch 1" in page.text  # of the averaged weights, first reached
    assert "100 images per second" in page.text and "no restart" in page.text
    assert "32 = 1 process × 32 × 1 accumulation step DDP CPU float32" in page.text
    assert "3.4 M" in page.text and "320" in page.text


def test_every_key_of_the_recipe_is_shown_and_what_differs_is_marked(run, tmp_path):
    page = page_of([run], tmp_path / "page.html")
    for section, values in load("convnext_atto_cats_dogs").to_dict().items():
        for name in values if isinstance(values, dict) else []:
            assert name in page.text.replace("_ ", "_"), (section, name)
    html = (tmp_path / "page.html").read_text()
    marked = {re.sub("<.*?>", "", row) for row in re.findall(r'class="differs">\s*<th[^>]*>(.*?)</th>', html)}
    assert {"global", "size", "randaugment"} <= marked
    assert "betas" not in marked
    assert "<td>convnext_<wbr>atto</td>" in html  # long values break where their words end
    assert "modules none" in page.text


def test_several_runs_are_compared(run, tmp_path):
    """The table `model | data set | accuracy`, and only the keys that differ."""
    page = page_of([run, make_run(tmp_path / "second", "optimizer.lr=1e-4")], tmp_path / "page.html")
    rows = re.findall(r"<tr>\s*<th scope=\"row\">.*?</tr>", (tmp_path / "page.html").read_text(), flags=re.S)
    first = " ".join(re.sub("<.*?>", " ", rows[0].replace("<wbr>", "")).split())
    assert first.startswith("first convnext_atto cats-vs-dogs 90.00% 78.6–95.7% 61.00% 47.2–73.3% 90.00% 78.6–95.7%")
    differences = re.search(r"What differs between the recipes (.*?) finished", page.text)[1]
    assert "optimizer.lr" in differences and "batch.global" not in differences


def test_a_run_that_is_not_finished_and_not_evaluated_is_shown_as_such(tmp_path):
    page = page_of([make_run(tmp_path / "young", steps=3, evaluated=False)], tmp_path / "page.html")
    assert "step 3 of 40" in page.text and "not evaluated yet" in page.text


def test_names_are_text_never_markup(tmp_path):
    """Class and folder names come from data sets that others made."""
    hostile = "<script>alert(1)</script>"
    page = page_of([make_run(tmp_path / "run", classes=(hostile, "dog"))], tmp_path / "page.html")
    assert "script" not in page.seen and hostile in page.text


def test_a_restart_is_counted_and_what_it_did_again_is_not_shown_twice(run, tmp_path):
    directory = RunDirectory(run)
    directory.metrics.truncate_after(20)
    directory.metrics.append(
        "start",
        step=20,
        cut="32 = 2 processes × 16 × 1 accumulation step",
        engine="DDP",
        device="CPU",
        precision="float32",
    )
    for step in range(21, 41):
        directory.metrics.append(
            "step", step=step, epoch=step / 10, loss=1 / step, lr=1e-3, images_per_second=100.0, data_wait=0.1
        )
    history = History(run)
    assert [event["step"] for event in history.steps] == list(range(1, 41))
    assert len(history.restarts) == 1
    assert "1 restart" in page_of([run], tmp_path / "page.html").text


def test_a_metrics_line_torn_by_a_kill_is_left_out(run, tmp_path):
    with RunDirectory(run).metrics.path.open("a") as file:
        file.write('{"event": "step", "st')
    assert History(run).step == 40


@pytest.mark.parametrize(
    "mistake, part",
    [
        (lambda run: [run / "none"], "not a run directory"),
        (lambda run: [], "name at least one"),
        (lambda run: [without_steps(run)], "no finished step"),
    ],
)
def test_what_cannot_be_reported_is_said_in_one_sentence(run, tmp_path, mistake, part):
    with pytest.raises(UserError, match=part):
        write_report(mistake(run), tmp_path / "page.html")


def without_steps(run: Path) -> Path:
    copy = run.with_name("without steps")
    shutil.copytree(run, copy)
    events = [event for event in RunDirectory(copy).metrics.events() if event["event"] == "start"]
    RunDirectory(copy).metrics.path.write_text("".join(json.dumps(event) + "\n" for event in events))
    return copy


def test_a_page_that_cannot_be_written_is_said_in_one_sentence(run, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--out"):
        write_report([run], tmp_path / "file" / "page.html")


def test_a_run_with_a_noise_scale_shows_it_and_what_other_batch_sizes_would_cost(run, tmp_path):
    assert "noise scale" not in page_of([run], tmp_path / "without.html").text  # as in runs of 0.1.0
    RunDirectory(run).metrics.append("step", step=41, loss=0.1, lr=1e-3, images_per_second=100.0, data_wait=0.1,
                                     gradient_norm=2.0, noise_scale=640.0)  # fmt: skip
    text = page_of([run], tmp_path / "page.html").text
    assert "Norm of the gradient, before clipping" in text and "Gradient noise scale in images" in text
    assert "A prediction from the noise scale at the end of the run, 640 images, where both lines cross." in text
    assert "Steps and images to the same loss" in text and "This run's batch is 32." in text
