"""timm's pretrained weights: the source is named first, and without internet access the start fails within seconds."""

import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save

from models import pretrained
from models.pretrained import timm_pretrained
from recipes.errors import UserError

NAME = "test_convnext.r160_in1k"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Points the hub's client to another server and to an empty cache; returns the function that names the server."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.file_download.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(pretrained, "_TIMEOUT", 0.5)

    def use(port: int) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", constants.ENDPOINT + "/{repo_id}/resolve/{revision}/{filename}"
        )

    return use


def left_behind(folder):
    """Files in the caches, but for the one that marks a folder as a cache."""
    return [path for path in folder.rglob("*") if path.is_file() and path.name != "CACHEDIR.TAG"]


@pytest.mark.parametrize("answer", ["refused", "silent"])
def test_without_internet_it_fails_within_seconds_and_says_what_to_do(hub, tmp_path, answer):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if answer == "silent":
            server.listen()
        hub(server.getsockname()[1])
        began, said = time.monotonic(), []
        with pytest.raises(UserError) as caught:
            timm_pretrained(NAME, said.append)
        assert time.monotonic() - began < 10
    message = str(caught.value)
    assert "http://127.0.0.1" in message and "test_convnext.r160_in1k" in message and "model.safetensors" in message
    assert "model.weights=FILE" in message and "model.weights=null" in message and "\n" not in message
    assert not said and not left_behind(tmp_path)


class Hub(BaseHTTPRequestHandler):
    """Serves one safetensors file, or breaks off in its middle."""

    content = b""
    breaks_off = False

    def do_HEAD(self):
        self.send_response(200)
        for key, value in {
            "ETag": '"abc"',
            "X-Repo-Commit": "c" * 40,
            "Content-Length": str(len(self.content)),
        }.items():
            self.send_header(key, value)
        self.end_headers()

    def do_GET(self):
        self.do_HEAD()
        self.wfile.write(self.content[: len(self.content) // 2] if self.breaks_off else self.content)

    def log_message(self, *_):
        pass


@pytest.fixture
def served(hub):
    model = timm.create_model(NAME)
    Hub.content, Hub.breaks_off = save({name: value + 1 for name, value in model.state_dict().items()}), False
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub(server.server_port)
    yield model.state_dict()
    server.shutdown()
    server.server_close()


def test_the_source_is_named_before_the_download_and_the_cache_serves_without_internet(served, hub):
    said = []
    weights = timm_pretrained(NAME, said.append)
    assert weights.keys() == served.keys()
    assert len(said) == 1 and "downloading" in said[0] and "http://127.0.0.1" in said[0] and "MB" in said[0]
    hub(9)  # nobody listens there
    began = time.monotonic()
    again = timm_pretrained(NAME, said.append)
    assert len(said) == 1 and time.monotonic() - began < 5
    assert all(torch.equal(weights[name], value) for name, value in again.items())


def test_a_download_that_breaks_off_leaves_nothing_behind(served, tmp_path, monkeypatch):
    Hub.breaks_off = True
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.5)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(UserError, match="cannot be downloaded from http://127.0.0.1"):
        timm_pretrained(NAME, lambda text: None)
    assert not left_behind(tmp_path)


def test_a_model_without_pretrained_weights_is_one_sentence():
    with pytest.raises(UserError, match="no pretrained weights of roadmap_00_resnet50: add model.weights=null"):
        timm_pretrained("roadmap_00_resnet50")
