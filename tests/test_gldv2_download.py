"""Downloads from a server that misbehaves on purpose."""

import dataclasses
import errno
import functools
import hashlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import time

import numpy as np
import pyarrow.parquet as pq
import pytest

from beam_pipeline.budget import OutOfTimeError
from beam_pipeline.config import ConfigError, TimeBudget
from beam_pipeline.gldv2 import download, fetch, published
from beam_pipeline.gldv2.config import DownloadConfig
from beam_pipeline.gldv2.fetch import Patience
from beam_pipeline.main import main
from tests import gldv2_layout
from tests.web_server import Fault, serving

HASTY = Patience(attempts=4, first_wait=0.001, longest_wait=0.01, silence=5.0, pace=0.2, slow_bytes=300_000)

NAMES = [gldv2_layout.image_id(str(i)) for i in range(36)]
PHOTOGRAPHS = {name: np.random.default_rng(i).bytes(9_000 + 100 * i) for i, name in enumerate(NAMES)}
LISTED = sorted(NAMES)[::2]
CLEAN = "landmark_id,images\n7," + " ".join(LISTED[:10]) + "\n11," + " ".join(LISTED[10:]) + "\n"
SITE = {
    **gldv2_layout.archives("train", PHOTOGRAPHS, 3),
    **gldv2_layout.archives("test", PHOTOGRAPHS, 2),
    "/metadata/train_clean.csv": CLEAN.encode(),
    "/ground_truth/recognition_solution_v2.1.csv": b"id,landmarks,Usage\n",
    "/ground_truth/retrieval_solution_v2.1.csv": b"id,images,Usage\n",
}
ONE = published.archive_url("", "train", 1)
MD5 = published.checksum_url("", "train", 1)


@pytest.fixture
def server():
    with serving(SITE) as server:
        yield server


def fetched(server, output, part="train_clean", patience=HASTY, **changes):
    settings = {"archives": (0, 1, 2), **changes}
    return download.run(DownloadConfig(part, str(output), server.url + "/", **settings), patience)


def archive(output, number=1, part="train_clean"):
    return (output / part / published.archive_name(number)).read_bytes()


def members(output, number, part="train_clean"):
    return pq.read_table(output / part / f"{published.archive_name(number)}.members.parquet").to_pylist()


def test_a_part_arrives_whole_with_its_tables_and_the_places_of_its_photographs(server, tmp_path, capsys):
    assert fetched(server, tmp_path) == 0
    assert (tmp_path / "train_clean.csv").read_text() == CLEAN
    used = []
    for number in range(3):
        content = archive(tmp_path, number)
        assert content == SITE[published.archive_url("", "train", number)]
        for row in members(tmp_path, number):
            image_id = row["name"][-20:-4]
            assert content[row["offset"] : row["offset"] + row["size"]] == PHOTOGRAPHS[image_id]
            used.append(image_id)
    assert sorted(used) == LISTED
    assert f"3 of 3 archives are there, {len(LISTED)} photographs" in capsys.readouterr().out


@dataclasses.dataclass(frozen=True)
class Case:
    """Faults of the answers to GET an archive, or its checksum, and the bytes that are sent in vain."""

    faults: tuple[Fault, ...]
    path: str = ONE
    in_vain: int = 0


SIZE = len(SITE[ONE])
OTHER = gldv2_layout.tar_of((gldv2_layout.member_name(n), PHOTOGRAPHS[n]) for n in NAMES[:7])
CASES = {
    "short bodies": Case((Fault(cut=10_000), Fault(cut=50_000), Fault(cut=1))),
    "no bodies": Case((Fault(cut=0), Fault(cut=0))),
    "ranges ignored": Case(
        (Fault(cut=10_000), Fault(ignores_range=True, cut=30_000), Fault(ignores_range=True)), in_vain=40_000
    ),
    "503": Case((Fault(503), Fault(cut=10_000), Fault(503), Fault(500))),
    "429 with Retry-After": Case((Fault(429, (("Retry-After", "0"),)),)),
    "503 with a date": Case((Fault(503, (("Retry-After", "Wed, 21 Oct 2015 07:28:00 GMT"),)),)),
    "a wrong checksum once": Case((Fault(content=bytes(SIZE)),), in_vain=SIZE),
    "a short checksum file": Case((Fault(content=b"0123456789"), Fault(content=b"")), MD5),
    "416": Case((Fault(cut=10_000), Fault(416)), in_vain=10_000),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_after_a_fault_the_archive_is_whole_and_what_had_arrived_was_not_asked_for_again(
    case, server, tmp_path
):
    server.faults[case.path] = list(case.faults)
    assert fetched(server, tmp_path) == 0
    assert archive(tmp_path) == SITE[ONE]
    assert not server.faults[case.path]
    assert server.sent[ONE] - SIZE == case.in_vain
    assert all(server.sent[path] == len(SITE[path]) for path in SITE if "train/i" in path and path != ONE)


def test_a_slow_trickle_is_given_up_and_gone_on_from(server, tmp_path):
    server.faults[ONE] = [Fault(pause=0.005)]
    assert fetched(server, tmp_path) == 0
    assert archive(tmp_path) == SITE[ONE]
    first, second = server.gets(ONE)
    assert first is None and 0 < int(second.removeprefix("bytes=").rstrip("-")) < SIZE
    assert server.sent[ONE] - SIZE < 1_000  # on their way as the connection was given up


def test_a_redirect_is_followed_with_its_range(server, tmp_path):
    server.files["/elsewhere.tar"] = SITE[ONE]
    server.always[ONE] = Fault(302, (("Location", "/elsewhere.tar"),))
    server.faults["/elsewhere.tar"] = [Fault(cut=10_000)]
    assert fetched(server, tmp_path) == 0
    assert archive(tmp_path) == SITE[ONE]
    assert server.gets("/elsewhere.tar") == [None, "bytes=10000-"]


def test_an_archive_that_changes_between_two_requests_is_started_anew(server, tmp_path):
    server.faults[ONE] = [Fault(cut=10_000), Fault(becomes=OTHER)]
    server.files.update({MD5: gldv2_layout.archive("train", 1, OTHER)[MD5]})
    assert fetched(server, tmp_path) == 0
    assert archive(tmp_path) == OTHER
    assert server.sent[ONE] == 10_000 + len(OTHER)


def test_a_changed_archive_behind_a_server_without_if_range_is_started_anew(server, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch.Entity, "validator", property(lambda self: ""))
    server.faults[ONE] = [Fault(cut=10_000), Fault(becomes=OTHER, cut=0)]
    server.files.update({MD5: gldv2_layout.archive("train", 1, OTHER)[MD5]})
    assert fetched(server, tmp_path) == 0
    assert archive(tmp_path) == OTHER


def test_of_an_archive_without_a_size_what_arrives_is_counted(server, tmp_path, capsys):
    large = gldv2_layout.tar_of([(gldv2_layout.member_name(LISTED[0]), bytes(3_000_000))])
    server.files.update(gldv2_layout.archive("train", 1, large))
    server.always[ONE] = Fault(unsized=True)
    assert fetched(server, tmp_path) == 0
    assert archive(tmp_path) == large
    assert " 3 of at least 3 MB" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("path", "fault", "said"),
    [
        (ONE, Fault(content=bytes(SIZE)), "the checksum is wrong each time"),
        (ONE, Fault(503), "HTTP 503"),
        (ONE, Fault(404), "HTTP 404"),
        (ONE, Fault(302, (("Location", ONE),)), "redirects"),
        (ONE, Fault(cut=10_000, ignores_range=True), "IncompleteRead"),
        (MD5, Fault(content=b"0123456789"), "cut short"),
        (MD5, Fault(404), "HTTP 404"),
    ],
)
def test_a_fault_that_stays_is_named_and_the_others_are_there(path, fault, said, server, tmp_path, capsys):
    server.always[path] = fault
    assert fetched(server, tmp_path) == 1
    captured = capsys.readouterr()
    assert "error: 1 archives could not be had: images_001.tar" in captured.err and said in captured.err
    assert "2 of 3 archives are there" in captured.out
    assert not (tmp_path / "train_clean" / "images_001.tar").exists()
    del server.always[path]
    assert fetched(server, tmp_path) == 0
    assert archive(tmp_path) == SITE[ONE]


def test_what_is_no_table_does_not_get_the_place_of_one(server, tmp_path, capsys):
    table, page = "/metadata/train_clean.csv", Fault(content=b"<html>come back later</html>")
    server.faults[table] = [page]
    (tmp_path / "train_clean.csv").write_text("")
    assert fetched(server, tmp_path) == 0
    assert (tmp_path / "train_clean.csv").read_text() == CLEAN
    (tmp_path / "train_clean.csv").unlink()
    server.always[table] = page
    with pytest.raises(fetch.FetchError, match=r"train_clean\.csv: is no table .* begins b'<html>come"):
        fetched(server, tmp_path)
    assert not (tmp_path / "train_clean.csv").exists()
    del server.always[table]
    assert fetched(server, tmp_path) == 0


def test_an_archive_that_is_waited_for_does_not_keep_the_others_waiting(server, tmp_path, capsys):
    server.always[ONE] = Fault(429, (("Retry-After", "86400"),))
    assert fetched(server, tmp_path, budget=TimeBudget(2.0, time.time())) == 0
    captured = capsys.readouterr()
    assert "2 of 3 archives are there" in captured.out and "out of time" in captured.out
    assert f"{server.url}{ONE}: HTTP 429" in captured.err and "asked again in 3,600 s" in captured.err


def test_a_wrong_checksum_is_fetched_again_three_times(server, tmp_path):
    server.always[ONE] = Fault(content=bytes(SIZE))
    assert fetched(server, tmp_path) == 1
    assert len(server.gets(ONE)) == 3


def test_what_is_finished_is_not_asked_for_again(server, tmp_path):
    assert fetched(server, tmp_path) == 0
    before = list(server.asked)
    assert fetched(server, tmp_path) == 0
    assert server.asked == before
    (tmp_path / "train_clean" / "images_001.tar").unlink()
    assert fetched(server, tmp_path) == 0
    assert {path for _, path, _ in server.asked[len(before) :]} == {ONE, MD5}


def test_an_archive_that_came_by_other_means_is_checked_and_taken(server, tmp_path, capsys):
    (tmp_path / "train_clean").mkdir()
    (tmp_path / "train_clean" / "images_001.tar").write_bytes(SITE[ONE])
    (tmp_path / "train_clean" / "images_000.tar").write_bytes(b"half of it")
    assert fetched(server, tmp_path) == 1
    assert server.gets(ONE) == [] and len(members(tmp_path, 1)) == 6
    assert archive(tmp_path, 0) == b"half of it"
    assert "images_000.tar is not the published archive" in capsys.readouterr().err


@pytest.mark.parametrize("listed", [LISTED, LISTED[1:]])
def test_a_finished_archive_that_was_cut_short_is_named_and_the_others_are_there(
    listed, server, tmp_path, capsys
):
    assert fetched(server, tmp_path) == 0
    path = tmp_path / "train_clean" / "images_001.tar"
    os.truncate(path, 50_000)
    (tmp_path / "train_clean" / "images_000.tar").unlink()
    list_photographs(tmp_path, listed)
    capsys.readouterr()
    assert fetched(server, tmp_path) == 1
    captured = capsys.readouterr()
    assert f"{path} is not the published archive, its MD5 says: move it away, or delete it" in captured.err
    assert "error: 1 archives could not be had: images_001.tar" in captured.err
    assert "2 of 3 archives are there" in captured.out
    assert path.read_bytes() == SITE[ONE][:50_000]
    path.unlink()
    assert fetched(server, tmp_path) == 0
    assert archive(tmp_path) == SITE[ONE]
    assert sum(len(members(tmp_path, number)) for number in range(3)) == len(listed)


def test_a_killed_download_goes_on_from_the_bytes_that_it_had(server, tmp_path):
    server.faults[ONE] = [Fault(pause=0.01)]
    command = [sys.executable, "-m", "beam_pipeline", "gldv2", "download", "--part", "train_clean"]
    command += ["--output", str(tmp_path), "--base_url", server.url, "--archives", "0-2"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    part = tmp_path / ".gldv2" / "train_clean" / "images_001.tar.part"
    while process.poll() is None and not (part.exists() and part.stat().st_size > 5_000):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    had = part.stat().st_size
    assert 5_000 < had < SIZE
    assert fetched(server, tmp_path) == 0
    assert archive(tmp_path) == SITE[ONE]
    assert server.gets(ONE)[-1] == f"bytes={had}-"


def test_a_part_without_a_whole_word_of_its_server_is_started_anew(server, tmp_path):
    under_way = tmp_path / ".gldv2" / "train_clean"
    under_way.mkdir(parents=True)
    (under_way / "images_001.tar.part").write_bytes(b"x" * 1000)
    (under_way / "images_001.tar.part.json").write_text('{"size": 12')
    assert fetched(server, tmp_path) == 0
    assert archive(tmp_path) == SITE[ONE] and server.gets(ONE) == [None]


def test_out_of_time_it_stops_and_a_later_start_goes_on(server, tmp_path, capsys):
    server.always[ONE] = Fault(pause=0.05)
    patience = dataclasses.replace(HASTY, pace=60.0)
    assert fetched(server, tmp_path, patience=patience, budget=TimeBudget(1.5, time.time())) == 0
    assert "out of time; the same command goes on from here" in capsys.readouterr().out
    had = (tmp_path / ".gldv2" / "train_clean" / "images_001.tar.part").stat().st_size
    del server.always[ONE]
    assert fetched(server, tmp_path) == 0
    assert archive(tmp_path) == SITE[ONE] and server.gets(ONE)[-1] == f"bytes={had}-"


def test_a_budget_that_ends_before_there_is_anything_is_an_error(server, tmp_path):
    with pytest.raises(OutOfTimeError, match="the tables are not all there in time: the same command"):
        fetched(server, tmp_path, budget=TimeBudget(1.0, time.time() - 1.0))
    assert fetched(server, tmp_path, archives=(0,)) == 0
    server.always[ONE] = Fault(429, (("Retry-After", "86400"),))
    with pytest.raises(OutOfTimeError, match="none of 1 archives is there in time"):
        fetched(server, tmp_path, archives=(1,), budget=TimeBudget(1.0, time.time()))
    assert fetched(server, tmp_path, archives=(0, 1), budget=TimeBudget(1.0, time.time())) == 0


def test_photographs_as_files_and_only_those_listed(server, tmp_path, capsys):
    assert fetched(server, tmp_path, keep="files") == 0
    files = {path.stem: path for path in (tmp_path / "train_clean").rglob("*") if path.is_file()}
    assert sorted(files) == LISTED
    for name, path in files.items():
        assert path.read_bytes() == PHOTOGRAPHS[name]
        assert path == tmp_path / "train_clean" / name[0] / name[1] / name[2] / f"{name}.jpg"
    before = list(server.asked)
    assert fetched(server, tmp_path, keep="files") == 0 and server.asked == before
    assert fetched(server, tmp_path) == 0 and server.asked == before
    assert "what is there was kept as files, and stays so" in capsys.readouterr().err
    assert not list((tmp_path / ".gldv2").rglob("*.part*"))


def list_photographs(output, ids):
    (output / "train_clean.csv").write_text(f"landmark_id,images\n7,{' '.join(ids)}\n")


def photograph_files(output, part="train_clean"):
    """By id, with the times of their last change."""
    found = (output / part).rglob("*.jpg")
    return {path.stem: path.stat().st_mtime_ns for path in found}


def test_a_list_that_was_changed_after_unpacking_is_noticed_and_what_it_adds_is_fetched(
    server, tmp_path, capsys
):
    added = sorted(NAMES)[1]  # of the second archive
    list_photographs(tmp_path, LISTED[1:])
    assert fetched(server, tmp_path, keep="files") == 0
    before, asked = photograph_files(tmp_path), len(server.asked)
    list_photographs(tmp_path, [*LISTED[3:], *LISTED[1:3]])
    assert fetched(server, tmp_path, keep="files") == 0 and len(server.asked) == asked
    list_photographs(tmp_path, LISTED[2:])  # what it lacks stays
    assert fetched(server, tmp_path, keep="files") == 0 and len(server.asked) == asked
    assert photograph_files(tmp_path) == before
    list_photographs(tmp_path, [added, *LISTED[2:]])
    capsys.readouterr()
    assert fetched(server, tmp_path) == 0
    captured = capsys.readouterr()
    assert "train_clean.csv lists other photographs than it did: 1 archives are taken in" in captured.err
    assert f"3 of 3 archives are there, {len(LISTED)} photographs" in captured.out
    after = photograph_files(tmp_path)
    assert after.keys() - before.keys() == {added} and after.items() >= before.items()
    assert {path for _, path, _ in server.asked[asked:]} == {ONE, MD5}
    assert not list((tmp_path / "train_clean").rglob("*.tar"))
    list_photographs(tmp_path, NAMES)
    assert fetched(server, tmp_path, keep="files") == 0
    assert sorted(photograph_files(tmp_path)) == sorted(NAMES)


@pytest.mark.parametrize("part", ["train_clean", "test"])
def test_unpacked_photographs_that_are_gone_are_fetched_again(part, server, tmp_path, capsys):
    again = functools.partial(fetched, server, tmp_path, part, archives=(0, 1), keep="files")
    assert again() == 0
    before, asked = photograph_files(tmp_path, part), len(server.asked)
    (tmp_path / part / "0.jpg").write_bytes(b"")  # what is not ours
    assert again() == 0 and len(server.asked) == asked
    lost = sorted(before)[3]
    (found,) = (tmp_path / part).rglob(f"{lost}.jpg")
    found.unlink()
    capsys.readouterr()
    assert again() == 0
    captured = capsys.readouterr()
    assert f"{tmp_path / part}: photographs of 1 archives are gone: fetched again" in captured.err
    assert "1 of 2 archives are there" in captured.out and "lists other" not in captured.err
    after = photograph_files(tmp_path, part)
    assert after.keys() - {"0"} == before.keys() and found.read_bytes() == PHOTOGRAPHS[lost]
    assert {name for name in before if after[name] != before[name]} == {lost}  # the others stay as they are
    assert len({path for _, path, _ in server.asked[asked:]}) == 2  # an archive, and its checksum
    shutil.rmtree(tmp_path / part)
    assert again() == 0
    assert photograph_files(tmp_path, part).keys() == before.keys()
    assert f"2 of 2 archives are there, {len(before)} photographs" in capsys.readouterr().out
    shutil.rmtree(tmp_path / part)
    assert again(keep="tar") == 0  # of nothing that is there
    assert {path.name for path in (tmp_path / part).glob("*.tar")} == {"images_000.tar", "images_001.tar"}


def test_photographs_that_are_gone_and_listed_no_more_are_not_fetched(server, tmp_path):
    assert fetched(server, tmp_path, keep="files") == 0
    (found,) = (tmp_path / "train_clean").rglob(f"{LISTED[0]}.jpg")
    found.unlink()
    list_photographs(tmp_path, LISTED[1:])
    asked = len(server.asked)
    assert fetched(server, tmp_path, keep="files") == 0 and len(server.asked) == asked
    list_photographs(tmp_path, LISTED)
    assert fetched(server, tmp_path, keep="files") == 0
    assert sorted(photograph_files(tmp_path)) == LISTED


def killed_at(step, server, tmp_path, monkeypatch):
    """Fetches with files kept, until a method of the download is called."""
    with monkeypatch.context() as killed:
        killed.setattr(download._Download, step, lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            fetched(server, tmp_path, keep="files")


@pytest.mark.parametrize("step", ["_write_unpacked", "_sizes", "_unpack", "_write_word"])
def test_photographs_that_are_gone_are_fetched_though_the_first_try_was_killed(
    step, server, tmp_path, monkeypatch
):
    assert fetched(server, tmp_path, keep="files") == 0
    for lost in LISTED[:2]:
        next((tmp_path / "train_clean").rglob(f"{lost}.jpg")).unlink()
    killed_at(step, server, tmp_path, monkeypatch)
    assert fetched(server, tmp_path, keep="files") == 0
    assert sorted(photograph_files(tmp_path)) == LISTED


@pytest.mark.parametrize("step", ["_unpack", "_write_word"])
def test_what_a_changed_list_adds_is_there_though_the_first_try_was_killed(
    step, server, tmp_path, monkeypatch
):
    list_photographs(tmp_path, LISTED[:9])
    assert fetched(server, tmp_path, keep="files") == 0
    list_photographs(tmp_path, LISTED)
    killed_at(step, server, tmp_path, monkeypatch)
    assert fetched(server, tmp_path, keep="files") == 0
    assert sorted(photograph_files(tmp_path)) == LISTED
    under_way = tmp_path / ".gldv2" / "train_clean"
    words = [json.loads(path.read_text()) for path in under_way.glob("images_*.tar.json")]
    assert sum(word["photographs"] for word in words) == len(LISTED)
    assert not list(under_way.glob("*.part*"))


def test_a_list_that_was_changed_is_noticed_where_archives_stay_as_they_are(server, tmp_path, capsys):
    assert fetched(server, tmp_path) == 0
    asked = len(server.asked)
    list_photographs(tmp_path, sorted(NAMES)[:5])
    assert fetched(server, tmp_path, keep="files") == 0 and len(server.asked) == asked
    used = [row["name"][-20:-4] for number in range(3) for row in members(tmp_path, number)]
    assert sorted(used) == sorted(NAMES)[:5]
    assert "3 of 3 archives are there, 5 photographs" in capsys.readouterr().out


def test_an_archive_that_came_by_other_means_is_not_unpacked_beside_itself(server, tmp_path, capsys):
    (tmp_path / "train_clean").mkdir()
    (tmp_path / "train_clean" / "images_001.tar").write_bytes(SITE[ONE])
    assert fetched(server, tmp_path, keep="files") == 0
    assert len(members(tmp_path, 1)) == 6 and archive(tmp_path) == SITE[ONE]
    assert len(photograph_files(tmp_path)) == len(LISTED) - 6
    assert "images_001.tar: is there, and stays as it is" in capsys.readouterr().err


def test_queries_come_with_their_truth(server, tmp_path):
    assert fetched(server, tmp_path, "test", archives=(0, 1)) == 0
    assert (tmp_path / "recognition_solution_v2.1.csv").exists()
    assert sum(len(members(tmp_path, number, "test")) for number in (0, 1)) == len(NAMES)


def test_a_table_that_cannot_be_had_is_named_and_the_rest_is_there(server, tmp_path, capsys):
    table = "/ground_truth/retrieval_solution_v2.1.csv"
    server.always[table] = Fault(404)
    assert fetched(server, tmp_path, "test", archives=(0, 1)) == 1
    captured = capsys.readouterr()
    assert "2 of 2 archives are there" in captured.out
    assert f"{server.url}{table}: HTTP 404" in captured.err
    assert "error: 1 tables could not be had: retrieval_solution_v2.1.csv\n" in captured.err
    assert fetched(server, tmp_path, "metadata", archives=None) == 1  # this server has 2 of 12
    assert "error: 10 tables could not be had: index.csv, index_image" in capsys.readouterr().err
    there = {"train_clean.csv", "recognition_solution_v2.1.csv"}
    assert {path.name for path in tmp_path.glob("*.csv")} == there
    del server.always[table]
    assert fetched(server, tmp_path, "test", archives=(0, 1)) == 0
    assert (tmp_path / "retrieval_solution_v2.1.csv").read_bytes() == SITE[table]


def test_a_server_that_is_not_there_is_said_in_short_and_once_before_the_end(monkeypatch, tmp_path):
    said = []
    monkeypatch.setattr(fetch, "_LONG", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/images_000.tar"
    with pytest.raises(fetch.FetchError) as error:
        fetch.Fetcher(HASTY, say=said.append).fetch(url, str(tmp_path / "part"))
    code = errno.ECONNREFUSED
    refused = f"{url}: ConnectionRefusedError: [Errno {code}] {os.strerror(code)}"
    assert str(error.value) == f"{refused} (4 times in a row)"
    assert said == [f"{refused}; asked again in 0 s"]


def test_without_the_table_that_says_what_is_kept_no_archive_is_fetched(server, tmp_path):
    server.always["/metadata/train_clean.csv"] = Fault(404)
    with pytest.raises(fetch.FetchError, match=r"train_clean\.csv: HTTP 404"):
        fetched(server, tmp_path)
    assert server.gets(ONE) == []


def hostile():
    """An archive of which only two members are photographs."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.GNU_FORMAT) as tar:

        def add(name, data=b"photograph", **fields):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for field, value in fields.items():
                setattr(info, field, value)
            tar.addfile(info, io.BytesIO(data))

        good = gldv2_layout.member_name(LISTED[0])
        add(good)
        add(f"../../{LISTED[1]}.jpg")
        add(f"/tmp/{LISTED[1]}.jpg")
        add(f"a/../../{LISTED[1]}.jpg")
        add("C:\\0123456789abcdef.jpg")
        add(f"{LISTED[2]}.jpg", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add(f"{LISTED[3]}.jpg", b"", type=tarfile.LNKTYPE, linkname=good)
        add(f"{LISTED[4]}.jpg", b"", type=tarfile.CHRTYPE)
        add(f"{LISTED[5]}.jpg", b"", type=tarfile.FIFOTYPE)
        add(good)
        add(f"elsewhere/{LISTED[0]}.jpg")
        add("readme.txt")
        add("0123456789ABCDEF.jpg")
        add(f"{LISTED[6]}.jpg")
        info = tarfile.TarInfo(f"{LISTED[7]}.jpg")
        info.size = 1 << 40
        content.write(info.tobuf(tarfile.GNU_FORMAT))
    return content.getvalue()


@pytest.mark.parametrize("keep", ["tar", "files"])
def test_of_a_hostile_archive_only_photographs_are_used_and_nothing_lies_outside(
    keep, server, tmp_path, capsys
):
    server.files.update(gldv2_layout.archive("train", 1, hostile()))
    output = tmp_path / "inner" / "data"
    assert fetched(server, output, keep=keep, archives=(1,)) == 0
    if keep == "tar":
        assert [row["name"][-20:-4] for row in members(output, 1)] == [LISTED[0], LISTED[6]]
    else:
        found = [path.stem for path in (output / "train_clean").rglob("*.jpg")]
        assert sorted(found) == sorted([LISTED[0], LISTED[6]])
    lines = [line for line in capsys.readouterr().err.splitlines() if "images_001.tar: " in line]
    assert len(lines) == 14
    for problem in (
        "leads out of the archive",
        "is a link",
        "is no plain file",
        "stands there twice",
        "has an id that another member has",
        "is no <16 hex digits>.jpg",
        "beyond the archive's end",
        "damaged, or cut short",
    ):
        assert any(problem in line for line in lines), problem
    assert {path.name for path in tmp_path.iterdir()} == {"inner"}
    assert {path.name for path in (tmp_path / "inner").iterdir()} == {"data"}


def test_a_disk_without_room_is_found_before_the_first_byte(server, tmp_path, monkeypatch):
    full = type("Usage", (), {"free": 1_000_000_000 + 50_000})()
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: full)
    with pytest.raises(
        ConfigError, match=r"3 archives need about 0\.\d GB more, and 1\.0 GB are free, of which 1 GB is left"
    ):
        fetched(server, tmp_path)
    assert all(server.gets(path) == [] for path in SITE if path.startswith("/train/"))


def test_a_disk_that_fills_stops_the_download_and_keeps_what_has_arrived(server, tmp_path, monkeypatch):
    real = os.replace

    def full(source, target):
        if str(target).endswith("images_001.tar"):
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        fetched(server, tmp_path)
    monkeypatch.undo()
    assert fetched(server, tmp_path) == 0
    assert server.sent[ONE] == SIZE


def test_two_downloads_of_a_part_are_not_at_work_at_once(server, tmp_path):
    with download.lock.held(str(tmp_path / ".gldv2" / "train_clean")):
        with pytest.raises(ConfigError, match="is being written by process"):
            fetched(server, tmp_path)
        assert fetched(server, tmp_path, "test", archives=(0,)) == 0


def test_options_that_make_no_sense(tmp_path, capsys):
    def run(*flags):
        code = main(["gldv2", "download", "--output", str(tmp_path), *flags])
        return code, capsys.readouterr().err

    assert run("--part", "test", "--archives", "18-21") == (
        2,
        "landmarks: error: --archives: test has archives 0 to 19, not 20\n",
    )
    assert "has no archives" in run("--part", "metadata", "--archives", "0")[1]
    assert "no list of numbers" in run("--part", "test", "--archives", "3-1")[1]
    assert "no http:// or https:// address" in run("--part", "test", "--base_url", "ftp://x")[1]
    assert "unknown option '--runner'" in run("--part", "test", "--runner", "x")[1]


def test_checksums_are_the_first_word_of_their_file():
    digest = hashlib.md5(b"").hexdigest()
    assert published.checksum(f"{digest}  images_000.tar\n".encode()) == digest
    assert published.checksum(f"{digest.upper()} *images_000.tar".encode()) == digest
    assert published.checksum(digest[:-1].encode()) is None
    assert published.checksum(b"") is None and published.checksum(b"<html>") is None
