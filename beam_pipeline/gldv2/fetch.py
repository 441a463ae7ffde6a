"""Files from a web server that may fail in any way, fetched by ranges: what has arrived stays.

Beside the part that has arrived (<path>) lies what the server said of the file (<path>.json): where it says
something else later, the file has changed and is started anew.
"""

import contextlib
import dataclasses
import email.utils
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import requests
import urllib3

from beam_pipeline import __version__

_CHUNK = 1 << 20
_LONG = 30  # seconds, of a wait that a user is told of

T = TypeVar("T")


class FetchError(OSError):
    """A file that cannot be had; the text names it and says why."""


class StoppedError(Exception):
    """The time is over, or another thread failed."""


class _PassingError(Exception):
    """What may be better next time; not before `wait` seconds, where the server says so."""

    def __init__(self, text: str, wait: float = 0.0):
        super().__init__(text)
        self.wait = wait


@dataclasses.dataclass(frozen=True)
class Patience:
    """How much is borne with, times in seconds.

    Attributes:
      attempts: in a row that bring not a byte.
      first_wait: before the second attempt; doubled before each one after.
      longest_wait: by itself; a server's Retry-After may ask for up to `longest_asked`.
      silence: without an answer or a byte.
      pace, slow_bytes: a connection that brings fewer bytes than `slow_bytes` in `pace` is given up.
    """

    attempts: int = 8
    first_wait: float = 1.0
    longest_wait: float = 120.0
    longest_asked: float = 3600.0
    silence: float = 60.0
    pace: float = 60.0
    slow_bytes: int = 60_000


@dataclasses.dataclass(frozen=True)
class Entity:
    """What a server says of a file as it is now.

    Attributes:
      size: in bytes; None where it does not say.
      etag, modified: "" where it does not say.
    """

    size: int | None
    etag: str
    modified: str

    @property
    def validator(self) -> str:
        """For If-Range, which takes no weak ETag."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.modified


class Fetcher:
    """Fetches files, from several threads at once.

    Args:
      ends: as time.time() tells it; nothing is begun or gone on with after that.
      say: takes a line about a long wait.
    """

    def __init__(
        self,
        patience: Patience = Patience(),
        ends: float = float("inf"),
        say: Callable[[str], None] = lambda line: None,
    ):
        self._patience, self._ends, self._say = patience, ends, say
        self._stop = threading.Event()
        self._local = threading.local()

    def stop(self) -> None:
        """Makes every thread that fetches raise StoppedError, soon."""
        self._stop.set()

    def size(self, url: str) -> int | None:
        """Of a file, in bytes; None where the server does not say so at once.

        Raises:
          StoppedError: the time is over.
        """
        with contextlib.suppress(FetchError, _PassingError), self._answer("HEAD", url, {}) as answer:
            if answer.status_code == 200:
                return _entity(answer).size
        return None

    def read(self, url: str, parse: Callable[[bytes], T | None]) -> T:
        """What `parse` makes of a small file; it is fetched again where that is None.

        Raises:
          FetchError, StoppedError: it cannot be had.
        """

        def ask() -> T:
            with self._answer("GET", url, {}) as answer:
                _check(answer, (200,))
                data = b"".join(self._chunks(answer))
            if (size := _entity(answer).size) is not None and len(data) != size:
                raise _PassingError(f"{len(data)} of {size} bytes")
            if (found := parse(data)) is None:
                raise _PassingError(f"it is cut short, or no such file: {data[:60]!r}")
            return found

        return self._retried(url, ask)

    def fetch(self, url: str, path: str) -> None:
        """Fetches a file to the local `path`, or what of it is missing there; `put` or `forget` comes next.

        Raises:
          FetchError, StoppedError: it is not whole; what has arrived stays for the next call.
          OSError: `path` cannot be written to.
        """
        self._retried(url, lambda: self._fetch(url, path), lambda: _size(path))

    def _fetch(self, url: str, path: str) -> None:
        known = _read_entity(path)
        have = _size(path) if known else 0
        if known and known.size == have:
            return
        headers = {}
        if known and have:
            headers["Range"] = f"bytes={have}-"
            if known.validator:
                headers["If-Range"] = known.validator
        with self._answer("GET", url, headers) as answer:
            if answer.status_code == 416 and have:
                forget(path)
                raise _PassingError(f"it has no byte {have:,}: started anew")
            _check(answer, (200, 206) if have else (200,))
            entity, skip = _entity(answer), 0
            if answer.status_code == 206 and (entity != known or _first_byte(answer) != have):
                forget(path)
                raise _PassingError("it changed between two requests: started anew")
            if answer.status_code == 200 and entity == known:
                skip = have  # the server ignores ranges
            elif answer.status_code == 200:
                forget(path)
                _write_entity(path, entity)
            self._append(answer, path, skip)
        if entity.size is not None and (have := _size(path)) != entity.size:
            raise _PassingError(f"the answer ended at byte {have:,} of {entity.size:,}")

    def _append(self, answer: requests.Response, path: str, skip: int) -> None:
        with open(path, "ab", buffering=0) as f:
            for chunk in self._chunks(answer):
                skipped = chunk[:skip]
                skip -= len(skipped)
                try:
                    f.write(memoryview(chunk)[len(skipped) :])
                except OSError as e:
                    raise OSError(e.errno, f"{e.strerror}; what has arrived stays", path) from e

    def _chunks(self, answer: requests.Response) -> Iterator[bytes]:
        """An answer's bytes as they come, so that what has come is never lost."""
        since, arrived = time.monotonic(), 0
        while True:
            self._check_time()
            try:
                chunk = answer.raw.read1(_CHUNK, decode_content=False)
            except (urllib3.exceptions.HTTPError, OSError) as e:
                raise _PassingError(f"{type(e).__name__}: {e}") from e
            if not chunk:
                return
            yield chunk
            arrived += len(chunk)
            if (now := time.monotonic()) - since >= self._patience.pace:
                if arrived < self._patience.slow_bytes:
                    raise _PassingError(f"only {arrived:,} bytes in {now - since:.0f} s")
                since, arrived = now, 0

    @contextlib.contextmanager
    def _answer(self, method: str, url: str, headers: dict[str, str]) -> Iterator[requests.Response]:
        if not hasattr(self._local, "session"):
            self._local.session = requests.Session()
            self._local.session.headers.update(
                {"Accept-Encoding": "identity", "User-Agent": f"landmarks/{__version__}"}
            )
        self._check_time()
        try:
            answer = self._local.session.request(
                method,
                url,
                headers=headers,
                stream=True,
                timeout=self._patience.silence,
                allow_redirects=True,
            )
        except (
            requests.exceptions.InvalidURL,
            requests.exceptions.InvalidSchema,
            requests.exceptions.TooManyRedirects,
        ) as e:
            raise FetchError(f"{url}: {e}") from e
        except (requests.RequestException, urllib3.exceptions.HTTPError) as e:
            raise _PassingError(_innermost(e)) from e
        with answer:
            yield answer

    def _retried(self, url: str, attempt: Callable[[], T], arrived: Callable[[], int] = lambda: 0) -> T:
        """What `attempt` returns; after what may pass it is called again, as long as bytes arrive or patience
        lasts.
        """
        fruitless, most, said = 0, arrived(), ""
        while True:
            try:
                return attempt()
            except _PassingError as e:
                now = arrived()
                fruitless = 1 if now > most else fruitless + 1
                most = max(most, now)  # what is started anew has got on only where it gets further
                if fruitless >= self._patience.attempts:
                    raise FetchError(f"{url}: {e} ({fruitless} times in a row)") from e
                wait = self._patience.first_wait * 2 ** (fruitless - 1)
                asked = min(e.wait, self._patience.longest_asked)
                wait = max(asked, min(wait, self._patience.longest_wait))
                if wait >= _LONG and str(e) != said:
                    said = str(e)
                    self._say(f"{url}: {said}; asked again in {wait:,.0f} s")
                self._wait(wait)

    def _wait(self, seconds: float) -> None:
        if self._stop.wait(max(0.0, min(seconds, self._ends - time.time(), threading.TIMEOUT_MAX))):
            raise StoppedError
        self._check_time()

    def _check_time(self) -> None:
        if self._stop.is_set() or time.time() >= self._ends:
            raise StoppedError


def _innermost(error: BaseException) -> str:
    """What an error of a connection is at bottom: those around it repeat the address, and each other."""
    while inner := error.__cause__ or error.__context__:
        error = inner
    return f"{type(error).__name__}: {error}"


def _check(answer: requests.Response, wanted: tuple[int, ...]) -> None:
    """Raises for an answer that is none of `wanted`."""
    status = answer.status_code
    if status in wanted:
        return
    said = f"HTTP {status} {answer.reason}"
    if status in (408, 425, 429) or status >= 500 or status in (200, 206, 416):
        raise _PassingError(said, _retry_after(answer.headers.get("Retry-After", "")))
    raise FetchError(f"{answer.url}: {said}")


def _retry_after(text: str) -> float:
    """Seconds of a Retry-After, which names a number of them or a date; 0 where it is neither."""
    if text.strip().isdecimal():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return 0.0


def _entity(answer: requests.Response) -> Entity:
    size = answer.headers.get("Content-Length", "")
    if answer.status_code == 206:
        size = answer.headers.get("Content-Range", "").rpartition("/")[2]
    headers = answer.headers
    return Entity(
        int(size) if size.isdecimal() else None, headers.get("ETag", ""), headers.get("Last-Modified", "")
    )


def _first_byte(answer: requests.Response) -> int | None:
    match = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
    return int(match[1]) if match else None


def _size(path: str) -> int:
    return os.path.getsize(path) if os.path.exists(path) else 0


def put(path: str, place: str) -> None:
    """Moves a whole file from the `path` that it was fetched to."""
    os.replace(path, place)
    forget(path)


def forget(path: str) -> None:
    """Deletes what was fetched to `path`."""
    for name in (path + ".json", path):  # in this order: a part without a word of its server is not used
        with contextlib.suppress(FileNotFoundError):
            os.remove(name)


def _read_entity(path: str) -> Entity | None:
    try:
        with open(path + ".json", encoding="utf-8") as f:
            return Entity(**json.load(f))
    except (FileNotFoundError, ValueError, TypeError):  # a killed process may leave half of it
        forget(path)
        return None


def _write_entity(path: str, entity: Entity) -> None:
    with open(path + ".json", "w", encoding="utf-8") as f:
        json.dump(dataclasses.asdict(entity), f)
