"""The shell completes commands, recipe names, recipe keys and run directories."""

import pytest

from launcher.cli.main import app


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("fing", ["fingerprint"]),
        ("train convnext_tiny_in22k_", ["convnext_tiny_in22k_in1k", "convnext_tiny_in22k_in1k_384"]),
        ("train demo optimizer.l", ["optimizer.lr=", "optimizer.lr_at_batch=", "optimizer.layer_decay="]),
        ("submit demo ema.", ["ema.decay=", "ema.warmup="]),
        ("submit dem", ["demo"]),
        ("logs runs/", ["runs/demo", "runs/demo-optimizer.lr/optimizer.lr=1e-3"]),
        ("predict runs/demo-", ["runs/demo-optimizer.lr/optimizer.lr=1e-3"]),
        ("report runs/demo runs/demo", ["runs/demo", "runs/demo-optimizer.lr/optimizer.lr=1e-3"]),
        ("train my.yam", []),  # the shell completes files
    ],
)
def test_tab_completes(typed, expected, tmp_path, monkeypatch, capsys):
    for run in ("demo", "demo-optimizer.lr/optimizer.lr=1e-3"):
        (tmp_path / "runs" / run).mkdir(parents=True)
        (tmp_path / "runs" / run / "recipe.yaml").touch()
    monkeypatch.chdir(tmp_path)
    words = ["bigbatch", *typed.split()]
    monkeypatch.setenv("_BIGBATCH_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", " ".join(words))
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
    with pytest.raises(SystemExit) as ended:
        app(prog_name="bigbatch")
    output, errors = capsys.readouterr()
    assert (ended.value.code or 0, output.split(), errors) == (0, expected, "")
