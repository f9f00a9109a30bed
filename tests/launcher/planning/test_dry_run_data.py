"""`bigbatch train --dry-run` repeats what is unusual about the classes of the shards."""

from data.writing.sharding import shard
from launcher.planning.dry_run import print_dry_run
from recipes.load import load
from tests.data.pictures import encoded


def test_a_class_without_training_images_is_said_again(tmp_path, capsys):
    for split, names in (("train", "ab"), ("val", "abd")):
        for name in names:
            (tmp_path / f"tree/{split}/{name}").mkdir(parents=True)
            for i in range(8):
                (tmp_path / f"tree/{split}/{name}/{i}.jpg").write_bytes(encoded(f"{name}{i}"))
    shard(str(tmp_path / "tree"), tmp_path / "shards", progress=False)
    changes = [
        "batch.global=8",
        "batch.slices=1",
        "model.name=test_convnext",
        "data.classes=3",
        f"data.path={tmp_path / 'shards'}",
    ]
    print_dry_run(load("demo", changes), 1, 8)
    assert "data: 1 class (d) without training images" in capsys.readouterr().out
