"""A real object store on this machine: moto's S3 server, reached through a line that can be counted, cut and closed."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BUCKET = "pictures"


class Line:
    """Forwards TCP connections to a port of this machine.

    Attributes:
        port: where it listens.
        received: bytes that came back from the server.
        cuts: connections still to be cut once `cut_after` bytes of their answer went through.
        closed: new connections are refused and answers stop.
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
    try:
        connection.shutdown(socket.SHUT_RDWR)  # close alone waits for the thread that still reads
    except OSError:
        pass
    connection.close()


@contextmanager
def object_store() -> Iterator[tuple[Line, dict[str, str]]]:
    """Start a store; yield the line to it and the environment in which S3 clients use that line."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    line = Line(port)
    keys = {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any", "AWS_DEFAULT_REGION": "us-east-1"}
    keys["AWS_MAX_ATTEMPTS"] = "1"  # what is tried again is ours alone
    try:
        yield line, {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{line.port}", **keys}
    finally:
        line.closed = True
        server.stop()


def upload(folder: Path, name: str) -> str:
    """Put a data set into the store that the environment names, for everybody to read; return its URL."""
    import fsspec

    files = fsspec.filesystem("s3")
    files.mkdirs(BUCKET, exist_ok=True)
    for path in folder.iterdir():
        files.put_file(str(path), f"{BUCKET}/{name}/{path.name}", ACL="public-read")
    return f"s3://{BUCKET}/{name}"
