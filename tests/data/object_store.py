"""A real object store on this machine: moto's S3 server behind a TCP proxy that counts bytes and cuts connections."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

BUCKET = "pictures"


class Line:
    """Forwards TCP connections to a port of this machine.

    Attributes:
        port: where it listens.
        received: bytes that the server has sent.
        cuts: number of connections still to cut, each after `cut_after` bytes of an answer.
        closed: whether new connections are refused and answers stop.
    """

    def __init__(self, to_port: int):
        self.to_port, self.received, self.cuts, self.cut_after, self.closed = to_port, 0, 0, 400, False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            near, _ = self._listener.accept()
            try:
                far = None if self.closed else socket.create_connection(("127.0.0.1", self.to_port))
            except OSError:
                far = None
            if far is None:
                near.close()
                continue
            threading.Thread(target=self._forward, args=(near, far), daemon=True).start()
            threading.Thread(target=self._answer, args=(far, near), daemon=True).start()

    def _forward(self, near: socket.socket, far: socket.socket) -> None:
        try:
            while data := near.recv(65536):
                far.sendall(data)
        except OSError:
            pass
        finally:
            _hang_up(far)

    def _answer(self, far: socket.socket, near: socket.socket) -> None:
        try:
            while data := far.recv(65536):
                if self.closed:
                    break
                self.received += len(data)
                if self.cuts and len(data) > self.cut_after:
                    self.cuts -= 1
                    near.sendall(data[: self.cut_after])
                    break
                near.sendall(data)
        except OSError:
            pass
        finally:
            _hang_up(near)
            _hang_up(far)


def _hang_up(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)  # close alone waits for the thread that still reads
    connection.close()


@contextlib.contextmanager
def object_store() -> Iterator[tuple[Line, dict[str, str]]]:
    """Start a store; yield the proxy and the environment variables with which S3 clients go through it."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    line = Line(port)
    keys = {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any", "AWS_DEFAULT_REGION": "us-east-1"}
    keys["AWS_MAX_ATTEMPTS"] = "1"  # the client must not retry: our own retries are tested
    try:
        yield line, {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{line.port}", **keys}
    finally:
        line.closed = True
        server.stop()


def upload(folder: Path, name: str) -> str:
    """Upload a data set to the store that the environment names, readable without credentials, and return its URL."""
    import fsspec

    files = fsspec.filesystem("s3")
    files.mkdirs(BUCKET, exist_ok=True)
    for path in folder.iterdir():
        files.put_file(str(path), f"{BUCKET}/{name}/{path.name}", ACL="public-read")
    return f"s3://{BUCKET}/{name}"
