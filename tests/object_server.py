"""An object store in memory that speaks as much HTTP of S3's and of Google Cloud Storage's XML API as its
client needs.

Conditions are those of their documentation: If-None-Match and If-Match with an ETag at the one (S3,
"Conditional writes"), x-goog-if-generation-match at the other (Cloud Storage, XML API, "HTTP headers"); each
ignores the other's.
"""

import contextlib
import hashlib
import itertools
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

BUCKET = "landmarks"
ACCESS_KEY = "key"
REGION = "eu-test-1"

_PAGE = 100


class _Object(NamedTuple):
    data: bytes
    generation: int

    @property
    def tag(self) -> str:
        return f'"{hashlib.md5(self.data).hexdigest()}"'


class ObjectServer(ThreadingHTTPServer):
    """Serves one bucket, BUCKET, on a port of this machine; `google` says whose conditions hold.

    Attributes:
      requests: method and status of each request that was answered.
      failing: statuses that the next requests get.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, google: bool) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.google = google
        self.objects: dict[str, _Object] = {}
        self.lock = threading.Lock()
        self.generations = itertools.count(1)
        self.requests: list[tuple[str, int]] = []
        self.failing: list[int] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextlib.contextmanager
def serving(google: bool) -> Iterator[ObjectServer]:
    """A server while the block runs."""
    with ObjectServer(google) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield server
        server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: ObjectServer

    def log_message(self, *args: object) -> None:
        pass

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.server.requests.append((self.command, status))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _place(self) -> str | None:
        """The key that is asked for; None where the request was answered already."""
        bucket, _, key = unquote(urlsplit(self.path).path[1:]).partition("/")
        if self.server.failing:
            self._answer(self.server.failing.pop(0))
        elif not self.server.google and f"Credential={ACCESS_KEY}/" not in self.headers["Authorization"]:
            self._answer(403, b"<Error><Code>InvalidAccessKeyId</Code></Error>")
        elif bucket != BUCKET:
            self._answer(404, f"<Error><Code>NoSuchBucket</Code>{bucket}</Error>".encode())
        else:
            return key
        return None

    def _headers(self, found: _Object) -> dict[str, str]:
        return {
            "ETag": found.tag,
            "Last_Modified": self.date_time_string(1_600_000_000),
            **({"x_goog_generation": str(found.generation)} if self.server.google else {}),
        }

    def do_HEAD(self) -> None:
        key = self._place()
        if key == "":
            self._answer(200, x_amz_bucket_region=REGION)
        elif key is not None and (found := self.server.objects.get(key)):
            self._answer(200, **self._headers(found), Content_Length=str(len(found.data)))
        elif key is not None:
            self._answer(404)

    def do_GET(self) -> None:
        key = self._place()
        if key == "":
            self._list({name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()})
        elif key is not None and (found := self.server.objects.get(key)):
            part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers["Range"] or "")
            if part is None:
                self._answer(200, found.data, **self._headers(found))
                return
            first, size = int(part[1]), len(found.data)
            last = min(int(part[2] or size), size - 1)
            if first >= size:
                self._answer(416)
                return
            place = {"Content_Range": f"bytes {first}-{last}/{size}"}
            self._answer(206, found.data[first : last + 1], **self._headers(found), **place)
        elif key is not None:
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")

    def do_PUT(self) -> None:
        size = int(self.headers["Content-Length"])
        data = self.rfile.read(size)
        if len(data) < size:  # the writer died
            self.close_connection = True
            return
        key = self._place()
        if key is None:
            return
        with self.server.lock:
            before = self.server.objects.get(key)
            if self.server.google:
                wanted = self.headers["x-goog-if-generation-match"]
                refused = wanted is not None and int(wanted) != (before.generation if before else 0)
            elif wanted := self.headers["If-Match"]:
                refused = before is None or wanted != before.tag
            else:
                refused = self.headers["If-None-Match"] == "*" and before is not None
            if not refused:
                self.server.objects[key] = _Object(data, next(self.server.generations))
        if refused:
            self._answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
        else:
            self._answer(200, **self._headers(self.server.objects[key]))

    def do_DELETE(self) -> None:
        key = self._place()
        if key is not None:
            there = self.server.objects.pop(key, None)
            self._answer(404 if there is None and self.server.google else 204)

    def _list(self, asked: dict[str, str]) -> None:
        prefix, after = asked.get("prefix", ""), asked.get("continuation-token", asked.get("start-after", ""))
        items: list[str] = []
        folders: set[str] = set()
        last = None
        for key, found in sorted(self.server.objects.items()):
            folder = prefix + key[len(prefix) :].partition("/")[0] + "/"
            if (
                not key.startswith(prefix)
                or key <= after
                or (after.startswith(folder) and "delimiter" in asked)
            ):
                continue
            if len(items) + len(folders) == _PAGE:
                break
            last = key
            if "delimiter" in asked and key.startswith(folder):
                folders.add(folder)
                continue
            time_ = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(1_600_000_000))
            items.append(
                f"<Contents><Key>{escape(key)}</Key><LastModified>{time_}</LastModified>"
                f"<ETag>{escape(found.tag)}</ETag><Size>{len(found.data)}</Size></Contents>"
            )
        else:
            last = None
        body = "".join(
            [
                "<ListBucketResult>",
                *items,
                *(f"<CommonPrefixes><Prefix>{escape(f)}</Prefix></CommonPrefixes>" for f in sorted(folders)),
                f"<NextContinuationToken>{escape(last)}</NextContinuationToken>" if last else "",
                "</ListBucketResult>",
            ]
        )
        self._answer(200, body.encode())


@contextlib.contextmanager
def cutting(address: tuple[str, int], after: int, cut: Callable[[], None]) -> Iterator[str]:
    """Gives the URL of a way to the server at `address` that calls `cut` and ends once it has passed on
    `after` bytes.
    """
    with socket.create_server(("127.0.0.1", 0)) as door:

        def pass_on(client: socket.socket) -> None:
            left = after
            with client, socket.create_connection(address) as server:
                threading.Thread(target=give_back, args=(server, client), daemon=True).start()
                while left > 0 and (data := client.recv(min(left, 1 << 16))):
                    server.sendall(data)
                    left -= len(data)
                if left <= 0:
                    cut()

        def give_back(server: socket.socket, client: socket.socket) -> None:
            with contextlib.suppress(OSError):
                while data := server.recv(1 << 16):
                    client.sendall(data)

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    threading.Thread(target=pass_on, args=(door.accept()[0],), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{door.getsockname()[1]}"
