"""A web server on this machine that misbehaves on purpose."""

import contextlib
import dataclasses
import hashlib
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclasses.dataclass(frozen=True)
class Fault:
    """What is wrong with one answer.

    Attributes:
      status: in place of the file; None for the file.
      headers: more of them.
      cut: bytes of the body after which the connection is closed; None for all.
      content: in place of the file's.
      ignores_range: all of the file whatever is asked for.
      unsized: without a Content-Length, of HEAD too where it stands for ever.
      pause: seconds before each 100 bytes of the body.
      waits: for this, before the answer.
      becomes: the file becomes this one from now on.
    """

    status: int | None = None
    headers: tuple[tuple[str, str], ...] = ()
    cut: int | None = None
    content: bytes | None = None
    ignores_range: bool = False
    unsized: bool = False
    pause: float = 0.0
    waits: threading.Event | None = None
    becomes: bytes | None = None


class WebServer:
    """Files by path, and the faults of their next answers.

    Attributes:
      files: contents by path.
      faults: by path, for one answer to GET each, in order; of one that stands in `always`, for every answer.
      sent: bytes of bodies sent, by path.
      asked: (method, path, Range) of every request.
    """

    def __init__(self, files: dict[str, bytes]):
        self.files = dict(files)
        self.faults: dict[str, list[Fault]] = defaultdict(list)
        self.always: dict[str, Fault] = {}
        self.sent: dict[str, int] = defaultdict(int)
        self.asked: list[tuple[str, str, str | None]] = []
        self.lock = threading.Lock()
        self.url = ""

    def next_fault(self, path: str) -> Fault:
        with self.lock:
            if path in self.always:
                return self.always[path]
            return self.faults[path].pop(0) if self.faults[path] else Fault()

    def gets(self, path: str) -> list[str | None]:
        """The Range of every GET of a file."""
        return [part for method, asked, part in self.asked if method == "GET" and asked == path]


@contextlib.contextmanager
def serving(files: dict[str, bytes]) -> Iterator[WebServer]:
    """Runs a server of `files` during the block."""
    server = WebServer(files)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            fault = server.always.get(self.path, Fault())
            self._answer(fault if fault.status or fault.unsized else Fault())

        def do_GET(self) -> None:
            self._answer(server.next_fault(self.path))

        def _answer(self, fault: Fault) -> None:
            if fault.waits is not None:
                fault.waits.wait()
            asked = self.headers.get("Range")
            with server.lock:
                server.asked.append((self.command, self.path, asked))
                if fault.becomes is not None:
                    server.files[self.path] = fault.becomes
            content = server.files.get(self.path) if fault.content is None else fault.content
            if fault.status is not None or content is None:
                self._refuse(fault.status or 404, fault)
                return
            etag = '"' + hashlib.md5(content).hexdigest() + '"'
            start = 0
            if asked and not fault.ignores_range and self.headers.get("If-Range", etag) == etag:
                start = int(asked.removeprefix("bytes=").rstrip("-"))
                if start >= len(content):
                    self._refuse(416, fault)
                    return
            self.send_response(206 if start else 200)
            self.send_header("ETag", etag)
            if fault.unsized:
                self.send_header("Connection", "close")  # which also ends the answer
            else:
                self.send_header("Content-Length", str(len(content) - start))
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.end_headers()
            if self.command == "GET":
                self._send(
                    content[start:] if fault.cut is None else content[start : start + fault.cut], fault
                )

        def _send(self, body: bytes, fault: Fault) -> None:
            step = 100 if fault.pause else len(body) or 1
            with contextlib.suppress(OSError):  # who asked has gone
                for at in range(0, len(body), step):
                    time.sleep(fault.pause)
                    self.wfile.write(body[at : at + step])
                    with server.lock:
                        server.sent[self.path] += len(body[at : at + step])
            if fault.cut is not None:
                self.close_connection = True

        def _refuse(self, status: int, fault: Fault) -> None:
            self.send_response(status)
            for name, value in fault.headers:
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server.url = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
