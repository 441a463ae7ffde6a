"""`landmarks gldv2 download`: the archives of a part, whole and checked, and the tables beside them.

    DATA/<part>/images_000.tar               as published; with --keep files a/b/c/<id>.jpg in its place
    DATA/<part>/images_000.tar.members.parquet   which of its photographs are used, and where they lie
    DATA/*.csv                               tables
    DATA/.gldv2/<part>/                      what is under way, and a word of each finished archive: how it
                                             was kept, and by which list; of unpacked ones which photographs

What stands under its own name is whole: archives arrive in .gldv2 and are renamed.
"""

import contextlib
import functools
import hashlib
import json
import os
import shutil
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from beam_pipeline import lock, runner
from beam_pipeline.budget import OutOfTimeError
from beam_pipeline.config import ConfigError
from beam_pipeline.gldv2 import fetch, published
from beam_pipeline.gldv2.config import DownloadConfig
from beam_pipeline.gldv2.fetch import Fetcher, FetchError, Patience, StoppedError
from beam_pipeline.gldv2.published import Part
from transforms.patterns import image_id_of
from transforms.storage import files, tables, tar_files
from transforms.storage.tar_files import Contents

_ATTEMPTS = 3  # at a file that is whole, and not what is published
_MAX_PHOTOGRAPH = 100_000_000  # bytes; the largest published ones have some MB
_SPARE = 1_000_000_000  # bytes left free on the disk


def run(config: DownloadConfig, patience: Patience | None = None) -> int:
    """Fetches what is missing of a part; returns the exit code.

    Args:
      config: what is asked for.
      patience: with the server; None for the usual one.

    Raises:
      ConfigError: another download is at work on it, or the disk has no room.
      OutOfTimeError: the time budget ended before a single archive, or the tables, were there.
      FetchError, TableError, OSError: train_clean.csv, which says what is kept, cannot be had or read, or the
        disk cannot be written to.
    """
    with lock.held(os.path.join(config.output, ".gldv2", config.part)):
        fetcher = Fetcher(patience or Patience(), config.budget.ends if config.budget else float("inf"), _say)
        return _Download(config, fetcher).run()


class _Download:
    """A download at work.

    Args:
      config: what is asked for.
      fetcher: how.
    """

    def __init__(self, config: DownloadConfig, fetcher: Fetcher):
        self._config, self._fetcher = config, fetcher
        self._part: Part = published.PARTS[config.part]
        self._folder = os.path.join(config.output, config.part)
        self._under_way = os.path.join(config.output, ".gldv2", config.part)
        self._listed: pa.Array | None = None  # ids of what is used; None for all
        self._list = ""  # a digest of these

    def run(self) -> int:
        try:
            lacking = self._fetch_tables()
            if self._config.part == "train_clean":
                self._listed = tables.read_labels(self._table(published.CLEAN_LABELS))[
                    "image_id"
                ].combine_chunks()
                self._list = _digest(self._listed)
            code = self._fetch_archives() if self._part.archives else 0
        except StoppedError as e:
            raise self._out_of_time("the tables are not all") from e
        return 1 if _name("tables", lacking) else code

    def _fetch_tables(self) -> list[str]:
        """Fetches the part's tables; those that cannot be had."""
        lacking = []
        for table in self._part.tables:
            try:
                self._fetch_table(table)
            except FetchError as e:
                if self._part.archives and table == published.CLEAN_LABELS:  # it decides what is kept
                    raise
                lacking.append(os.path.basename(table))
                _say(str(e))
        return lacking

    def _fetch_archives(self) -> int:
        numbers = self._config.numbers
        gone = self._note_gone([number for number in numbers if self._is_there(number)])
        there = [number for number in numbers if self._is_there(number)]
        self._renew(there)
        missing = [number for number in numbers if not self._is_finished(number)]
        print(f"{self._folder}: {len(numbers) - len(missing):,} of {len(numbers):,} archives are there")
        kept = {self._read_word(number)["keep"] for number in there}
        if other := sorted(kept - {self._config.keep}):
            _say(f"{self._folder}: what is there was kept as {other[0]}, and stays so")
        if lost := len({*missing} & gone):
            _say(f"{self._folder}: photographs of {lost:,} archives are gone: fetched again")
        if again := len({*missing}.intersection(there) - gone):
            table = self._table(published.CLEAN_LABELS)
            _say(f"{table} lists other photographs than it did: {again:,} archives are taken in again")
        if not missing:
            return 0
        os.makedirs(self._folder, exist_ok=True)
        sizes = self._sizes(missing)
        self._check_room(sizes)
        problems, stopped = [], False
        done = functools.partial(self._megabytes, missing)
        known = [size for size in sizes.values() if size is not None]
        total, at_least = sum(known) // 1_000_000, len(known) < len(sizes)
        phase = runner.Phase("download", total, done, " MB", at_least)
        with runner.progress([phase]), ThreadPoolExecutor(self._config.parallel, "download") as pool:
            waiting = {pool.submit(self._take, number): number for number in missing}
            try:
                for future in as_completed(waiting):
                    try:
                        future.result()
                    except StoppedError:
                        stopped = True
                    except (FetchError, tar_files.TarError) as e:
                        problems.append(published.archive_name(waiting[future]))
                        _say(str(e))
            except BaseException:  # the disk: no other archive will do better
                self._fetcher.stop()
                pool.shutdown(cancel_futures=True)
                raise
        return self._conclude(numbers, problems, stopped)

    def _out_of_time(self, what: str) -> OutOfTimeError:
        return OutOfTimeError(
            f"{self._config.output}: {what} there in time: the same command goes on from here, given more of "
            "it"
        )

    def _conclude(self, numbers: Sequence[int], problems: Sequence[str], stopped: bool) -> int:
        there = sum(map(self._is_finished, numbers))
        why = "out of time; " if stopped else ""
        rest = f"; {why}the same command goes on from here" if there < len(numbers) else ""
        print(
            f"{self._folder}: {there:,} of {len(numbers):,} archives are there, "
            f"{self._photographs(numbers):,} photographs{rest}"
        )
        if _name("archives", problems):
            return 1
        if stopped and not there:
            raise self._out_of_time(f"none of {len(numbers):,} archives is")
        return 0

    def _take(self, number: int) -> None:
        """Fetches an archive, checks it, and puts it in its place."""
        url = published.archive_url(self._config.base_url, self._part.split, number)
        path = self._path(number)
        if os.path.exists(path):  # it is never deleted
            if not self._is_there(number):  # by other means
                if self._checksum(number) != _md5(path):
                    raise FetchError(
                        f"{path} is not the published archive, its MD5 says: move it away, or delete it"
                    )
                if self._config.keep == "files":
                    _say(f"{path}: is there, and stays as it is")
            self._finish(number, path)
            return
        part = self._arriving(number)
        for attempt in self._attempts(url, part):
            found, wanted = _md5(part), self._checksum(number)
            if found == wanted:
                self._finish(number, part)
                return
            again = "; fetched again" if attempt < _ATTEMPTS else f", {attempt} times in a row"
            _say(f"{url}: its MD5 is {found}, {wanted} is published{again}")
        raise FetchError(f"{url}: the checksum is wrong each time")

    def _attempts(self, url: str, part: str) -> Iterator[int]:
        """Fetches a file to `part`, again where the one before did not do: the number of each attempt."""
        for attempt in range(1, _ATTEMPTS + 1):
            self._fetcher.fetch(url, part)
            yield attempt
            fetch.forget(part)

    def _checksum(self, number: int) -> str:
        url = published.checksum_url(self._config.base_url, self._part.split, number)
        return self._fetcher.read(url, published.checksum)

    def _finish(self, number: int, path: str) -> None:
        """Puts a checked archive, or its photographs, in their place; of one that was unpacked before, what
        was left out.
        """
        size, place = os.path.getsize(path), self._path(number)
        found = _usable(tar_files.scan(path, size), path, place)
        for line in found.refused:
            _say(line)
        ids = _ids(found.members)
        used = self._are_used(ids)
        unpacked = self._is_there(number) and self._read_word(number)["keep"] == "files"
        keep = "tar" if path == place else "files" if unpacked else self._config.keep
        if keep == "tar":  # the list before anybody sees the archive
            tar_files.write_list(place, size, Contents(found.members.filter(used), found.refused))
            if path != place:
                fetch.put(path, place)
        else:
            left_out = self._left_out(number) if unpacked else None
            lacking = pc.is_in(ids, value_set=ids if left_out is None else left_out)
            self._unpack(path, found.members.filter(pc.and_(used, lacking)))
            os.sync()
            used = pc.or_(used, pc.invert(lacking))
            self._write_unpacked(number, ids, used)
        word = {"keep": keep, "list": self._list, "bytes": size, "members": len(ids)}
        self._write_word(number, {**word, "refused": len(found.refused)}, pc.sum(used).as_py() or 0)
        if keep == "files":
            fetch.forget(path)

    def _are_used(self, ids: pa.Array) -> pa.Array:
        """Which photographs of an archive are used, bool [N]."""
        if self._listed is None:
            return pa.repeat(True, len(ids))
        # The few are looked for among the million, since what is looked for in is made a hash table of.
        listed = self._listed.filter(pc.is_in(self._listed, value_set=ids))
        return pc.is_in(ids, value_set=listed)

    def _note_gone(self, numbers: Sequence[int]) -> set[int]:
        """Those of archives that were unpacked of which photographs are there no more. These count as left
        out from then on, and an archive that has lost them all as not there.
        """
        known = {
            number: files.read_parquet(self._unpacked_path(number))
            for number in numbers
            if self._read_word(number)["keep"] == "files" and os.path.exists(self._unpacked_path(number))
        }
        if not known:
            return set()
        everything = pa.concat_tables(known.values()).combine_chunks()
        ids, unpacked = (everything[column].combine_chunks() for column in ("image_id", "unpacked"))
        here = pc.and_(unpacked, pc.is_in(ids, value_set=self._found(ids.filter(unpacked))))
        gone, start = set(), 0
        for number, table in known.items():
            part = slice(start, start + len(table))
            start = part.stop
            left = pc.sum(here[part]).as_py() or 0
            if left == (pc.sum(unpacked[part]).as_py() or 0):
                continue
            gone.add(number)
            if left:  # the word first: where the other file is not written any more, they are missed again
                self._write_word(number, {**self._read_word(number), "list": None}, left)
                self._write_unpacked(number, ids[part], here[part])
            else:
                os.remove(self._word(number))
        return gone

    def _found(self, ids: pa.Array) -> pa.Array:
        """Ids of the photographs in the folders of `ids`, by their names alone."""
        names = []
        for folder in pc.unique(pc.utf8_slice_codeunits(ids, 0, 3)).to_pylist():
            with contextlib.suppress(FileNotFoundError):
                names.append(
                    pa.array(os.listdir(os.fsencode(os.path.join(self._folder, *folder))), pa.binary())
                )
        photographs = pa.chunked_array(names, pa.binary()).combine_chunks()
        photographs = photographs.filter(pc.match_substring_regex(photographs, r"^[0-9a-f]{16}\.jpg$"))
        return pc.binary_slice(photographs, 0, 16).cast(pa.string())

    def _renew(self, numbers: Sequence[int]) -> None:
        """Takes archives that were unpacked by another list for taken in by this one, where all that it lists
        of them is there.
        """
        for number in numbers:
            word = self._read_word(number)
            if not self._is_finished(number) and word["keep"] == "files":
                left_out = self._left_out(number)
                if left_out is not None and not pc.any(self._are_used(left_out)).as_py():
                    photographs = word["members"] - len(left_out)
                    self._write_word(number, {**word, "list": self._list}, photographs)
            if self._is_finished(number):  # by a start that was killed at its end
                fetch.forget(self._arriving(number))

    def _unpack(self, archive: str, photographs: pa.Table) -> None:
        """Writes photographs, each whole, to a/b/c/<id>.jpg, places that are made of their ids alone."""
        scratch = archive + ".photograph"
        with open(archive, "rb") as f:
            for row in photographs.to_pylist():
                image_id = image_id_of(row["name"])
                folder = os.path.join(self._folder, *image_id[:3])
                os.makedirs(folder, exist_ok=True)
                f.seek(row["offset"])
                with open(scratch, "wb") as out:
                    out.write(f.read(row["size"]))
                os.replace(scratch, os.path.join(folder, f"{image_id}.jpg"))

    def _fetch_table(self, name: str) -> None:
        path, url = self._table(name), f"{self._config.base_url}/{name}"
        if os.path.exists(path) and published.is_table(_start(path)):
            return
        part = os.path.join(self._under_way, os.path.basename(name) + ".part")
        for _ in self._attempts(url, part):
            start = _start(part)
            if published.is_table(start):
                fetch.put(part, path)
                print(f"{path}: {os.path.getsize(path):,} bytes")
                return
        raise FetchError(
            f"{url}: is no table of the data set, {_ATTEMPTS} times in a row: it begins {start!r}"
        )

    def _sizes(self, missing: Sequence[int]) -> dict[int, int | None]:
        """Bytes of archives, as the server says; None where it does not."""

        def ask(number: int) -> int | None:
            if os.path.exists(path := self._path(number)):
                return os.path.getsize(path)
            return self._fetcher.size(published.archive_url(self._config.base_url, self._part.split, number))

        with ThreadPoolExecutor(self._config.parallel, "sizes") as pool:
            return dict(zip(missing, pool.map(ask, missing)))

    def _check_room(self, sizes: dict[int, int | None]) -> None:
        about = sorted(self._part.archive_bytes if size is None else size for size in sizes.values())
        needed = sum(about)
        if self._config.keep == "files":  # what is used of them, and those under way
            under_way = sum(about[-self._config.parallel :])
            needed = min(needed, needed * self._part.kept // self._part.images) + under_way
        needed -= sum(map(self._arrived, sizes))
        free = shutil.disk_usage(self._config.output).free
        if needed + _SPARE > free:
            hint = "--keep files keeps only what train_clean.csv lists; " if self._listed is not None else ""
            raise ConfigError(
                f"{self._config.output}: {len(sizes):,} archives need about {needed / 1e9:,.1f} GB more, and "
                f"{free / 1e9:,.1f} GB are free, of which {_SPARE / 1e9:,.0f} GB is left so: {hint}"
                "--archives 0-9 takes some of them"
            )

    def _megabytes(self, numbers: Sequence[int]) -> int:
        """What has arrived of archives."""
        arrived = (
            self._read_word(number)["bytes"] if self._is_finished(number) else self._arrived(number)
            for number in numbers
        )
        return sum(arrived) // 1_000_000

    def _arrived(self, number: int) -> int:
        for path in (self._path(number), self._arriving(number)):
            with contextlib.suppress(FileNotFoundError):
                return os.path.getsize(path)
        return 0

    def _is_finished(self, number: int) -> bool:
        """Whether an archive is there, taken in by the list as it is now."""
        return self._is_there(number) and self._read_word(number).get("list", self._list) == self._list

    def _is_there(self, number: int) -> bool:
        """Whether an archive is there with the size that it had, or was unpacked, by whatever list."""
        if not os.path.exists(self._word(number)):
            return False
        word, path = self._read_word(number), self._path(number)
        return word["keep"] == "files" or (os.path.exists(path) and os.path.getsize(path) == word["bytes"])

    def _left_out(self, number: int) -> pa.Array | None:
        """The ids of an archive's photographs that were not unpacked; None where that is not known."""
        if not os.path.exists(path := self._unpacked_path(number)):
            return None
        table = files.read_parquet(path)
        return table["image_id"].filter(pc.invert(table["unpacked"])).combine_chunks()

    def _write_unpacked(self, number: int, ids: pa.Array, unpacked: pa.Array) -> None:
        """Writes which of an archive's photographs were unpacked."""
        files.write_parquet(self._unpacked_path(number), pa.table({"image_id": ids, "unpacked": unpacked}))

    def _photographs(self, numbers: Sequence[int]) -> int:
        return sum(self._read_word(number)["photographs"] for number in numbers if self._is_finished(number))

    def _read_word(self, number: int) -> dict[str, Any]:
        with open(self._word(number), encoding="utf-8") as f:
            return json.load(f)

    def _write_word(self, number: int, word: dict[str, Any], photographs: int) -> None:
        files.write_json(self._word(number), {**word, "photographs": photographs})

    def _path(self, number: int) -> str:
        return os.path.join(self._folder, published.archive_name(number))

    def _arriving(self, number: int) -> str:
        return os.path.join(self._under_way, f"{published.archive_name(number)}.part")

    def _word(self, number: int) -> str:
        return os.path.join(self._under_way, f"{published.archive_name(number)}.json")

    def _unpacked_path(self, number: int) -> str:
        return os.path.join(self._under_way, f"{published.archive_name(number)}.unpacked.parquet")

    def _table(self, name: str) -> str:
        return os.path.join(self._config.output, os.path.basename(name))


_SAID = threading.Lock()


def _say(line: str) -> None:
    with _SAID:
        print(line, file=sys.stderr, flush=True)


def _name(what: str, lacking: Sequence[str]) -> bool:
    """Names what could not be had; whether there is any."""
    if lacking:
        _say(f"landmarks: error: {len(lacking):,} {what} could not be had: {', '.join(sorted(lacking))}")
    return bool(lacking)


def _usable(found: Contents, path: str, name: str) -> Contents:
    """Of an archive's members the photographs, and a line for each that is odd."""
    refused = [line.replace(path, name, 1) for line in found.refused]
    keep, known = [], set()
    columns = (found.members[column].to_pylist() for column in ("name", "size"))
    for row, (member, size) in enumerate(zip(*columns)):
        image_id = image_id_of(member)
        problem = ""
        if not published.IMAGE_ID.fullmatch(image_id) or not member.endswith(".jpg"):
            problem = "is no <16 hex digits>.jpg"
        elif image_id in known:
            problem = "has an id that another member has; the first is used"
        elif size > _MAX_PHOTOGRAPH:
            problem = f"has {size:,} bytes, more than any photograph"
        if problem:
            refused.append(f"{name}: {member!r} {problem}")
        else:
            keep.append(row)
        known.add(image_id)
    return Contents(found.members.take(pa.array(keep, pa.int64())), tuple(refused))


def _ids(members: pa.Table) -> pa.Array:
    """The ids of members, string [N]."""
    return pa.array([image_id_of(name) for name in members["name"].to_pylist()], pa.string())


def _digest(ids: pa.Array) -> str:
    """Of a set of ids, a million and more."""
    each = pc.unique(ids).sort()
    lines = pc.binary_join(pa.ListArray.from_arrays(pa.array([0, len(each)], pa.int32()), each), "\n")
    return hashlib.sha256(lines[0].as_buffer()).hexdigest()


def _start(path: str) -> bytes:
    with open(path, "rb") as f:
        return f.read(60)


def _md5(path: str) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
