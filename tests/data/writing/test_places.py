"""Where data sets are written to and read from: URLs, home folders, folders of other users, servers without ranges."""

import functools
import http.server
import os
import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner

from data.reading.block_cache import BlockCache
from data.reading.shards import ShardSet
from data.writing.sharding import shard
from data.writing.verify import verify
from launcher.cli.main import app
from recipes.errors import UserError
from tests.data.pictures import write_tree


@pytest.fixture
def shards(tmp_path) -> Path:
    shard(str(write_tree(tmp_path / "tree")), tmp_path / "shards", progress=False)
    return tmp_path / "shards"


@pytest.mark.parametrize("url", ["s3://my-bucket/shards", "file:///tmp/x", "https://example.org/x"])
def test_shards_are_not_written_to_a_url_nor_to_a_folder_of_its_name(tmp_path, monkeypatch, url):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["shard", "digits", url])
    assert isinstance(done.exception, UserError) and f"not to {url}" in str(done.exception)
    assert list(tmp_path.iterdir()) == []


def test_a_source_that_is_a_url_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="s3://b/images is a URL: download it first"):
        shard("s3://b/images", tmp_path / "out")


def test_verify_reads_a_url(shards):
    assert verify(f"file://{shards}", progress=False) == []
    tar = shards / "val-000000.tar"
    damaged = bytearray(tar.read_bytes())
    damaged[700] ^= 255
    tar.write_bytes(damaged)
    (shards / "train-000000.tar").unlink()
    problems = verify(f"file://{shards}", progress=False)
    assert any("val-000000.tar changed since" in problem for problem in problems)
    assert any("train-000000.tar cannot be read" in problem for problem in problems)


def test_a_server_without_ranges_is_called_that(shards):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    pytest.importorskip("aiohttp")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(shards))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        opened = ShardSet.open(f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(UserError, match="does not answer ranged reads"):
            opened.check_sampled_checksums()
        server.shutdown()


def test_the_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    write_tree(tmp_path / "tree")
    shard("~/tree", "~/shards", progress=False)
    assert (tmp_path / "shards/manifest.json").exists() and not (tmp_path / "~").exists()
    assert len(ShardSet.open("~/shards").split("train")) == 27 and verify("~/shards", progress=False) == []


def test_a_cache_of_another_user_is_one_sentence(tmp_path):
    BlockCache(tmp_path / "cache", 2**30, "v")
    if os.geteuid() == 0:
        (tmp_path / "cache/locks/used").unlink()
        (tmp_path / "cache/locks/used").mkdir()  # stands in for a file that may not be written: root may write all
    else:
        (tmp_path / "cache/locks/used").chmod(0o444)
    with pytest.raises(UserError, match="cannot be written .*another user's: choose another data.cache"):
        BlockCache(tmp_path / "cache", 2**30, "v")
