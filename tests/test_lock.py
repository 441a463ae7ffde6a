"""The lock of an output: one holder at a time, and none that is dead."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time

import pytest

from beam_pipeline import lock
from beam_pipeline.config import ConfigError
from tests.races import holders_of_lock
from transforms.storage import files


def held_by_another(root, **changes):
    """Leaves the lock of a process that still runs on this machine, with `changes`."""
    holder = {
        **lock._identity(),
        "pid": 1,
        "started": lock._started(1),
        "token": "t",
        "since": 1e9,
        "renewed": time.time(),
        **changes,
    }
    files.write_json(files.join(root, lock.LOCK), holder)


def test_the_second_is_told_who_holds_it_and_the_third_finds_it_free(tmp_path):
    root = str(tmp_path / "out")
    with lock.held(root):
        with pytest.raises(
            ConfigError, match=rf"being written by process {os.getpid()} on .* since 20\d\d-.* UTC"
        ):
            with lock.held(root):
                pass
        assert os.listdir(root) == [lock.LOCK]
    assert os.listdir(root) == []
    with lock.held(root):
        pass


def test_a_failed_holder_lets_go(tmp_path):
    with pytest.raises(ZeroDivisionError):
        with lock.held(str(tmp_path)):
            1 / 0
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "holder, alive",
    [
        (dict(), True),
        (dict(pid=2**22 + 1), False),
        (dict(started=5), False),
        (dict(machine="another"), True),
        (dict(machine=None), True),
        (dict(machine="another", renewed=time.time() - 3600), False),
    ],
    ids=[
        "runs",
        "gone",
        "pid given anew",
        "elsewhere, renewed",
        "unknown, renewed",
        "elsewhere, long not renewed",
    ],
)
def test_only_a_living_holder_blocks(tmp_path, holder, alive):
    held_by_another(str(tmp_path), **holder)
    try:
        with lock.held(str(tmp_path)):
            taken = True
    except ConfigError as e:
        taken = False
        assert "since 2001-09-09 01:46:40 UTC" in str(e)
    assert taken != alive


def test_a_killed_process_does_not_block_even_while_its_parent_has_not_noticed(tmp_path):
    code = (
        f"from beam_pipeline import lock\nwith lock.held({str(tmp_path)!r}):\n    print(1, flush=True)\n  "
        "  input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        child.stdout.readline()
        with pytest.raises(ConfigError, match=f"process {child.pid} "):
            with lock.held(str(tmp_path)):
                pass
        child.kill()
        child.stdout.read()  # ends with the process, which now waits for its parent as a zombie
        deadline = time.monotonic() + 60
        while lock._started(child.pid) is not None and time.monotonic() < deadline:
            time.sleep(0.01)
        with lock.held(str(tmp_path)):
            pass


LEFT_BEHIND = {
    "nothing": lambda root: None,
    "a lock of the dead": lambda root: held_by_another(root, pid=2**22 + 1),
    "an empty lock": lambda root: files.write_bytes(files.join(root, lock.LOCK), b""),
    "half a lock": lambda root: files.write_bytes(files.join(root, lock.LOCK), b'{"host": "h'),
}


@pytest.mark.parametrize("left_behind", list(LEFT_BEHIND))
def test_of_many_at_once_only_one_gets_it(tmp_path, monkeypatch, left_behind):
    monkeypatch.setattr(lock, "_WRITING", 0.1)
    root = str(tmp_path)
    LEFT_BEHIND[left_behind](root)
    assert holders_of_lock(root) == [1] and os.listdir(root) == []


@pytest.mark.parametrize("left_behind", list(LEFT_BEHIND))
@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS], ids=errno.errorcode.get)
def test_a_file_system_without_links_has_locks(tmp_path, monkeypatch, code, left_behind):
    def refuse(*arguments, **keywords):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(os, "symlink", refuse)
    test_of_many_at_once_only_one_gets_it(tmp_path, monkeypatch, left_behind)


def test_a_lock_that_cannot_be_written_is_not_left_behind(tmp_path, monkeypatch):
    files.write_bytes(str(tmp_path / "shard"), b"")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))  # as on a full disk, no byte can be written
        with pytest.raises(OSError, match="File too large"):
            with lock.held(str(tmp_path)):
                pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert os.listdir(tmp_path) == ["shard"]


def test_a_taker_that_was_held_up_does_not_believe_in_a_lock_that_another_has(tmp_path, monkeypatch):
    root, mine = str(tmp_path), {**lock._identity(), "token": "mine", "since": 1.0}
    create = lock._create

    def slowly(uri, data):
        created = create(uri, data)
        held_by_another(root)  # took the empty file for one of the dead
        return created

    monkeypatch.setattr(lock, "_create", slowly)
    assert not lock._take(files.join(root, lock.LOCK), mine, None)


def test_a_holder_renews_its_lock_and_clears_temporaries(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_HEARTBEAT", 0.01)
    left = tmp_path / f".manifest.json.{'0' * 32}.tmp"
    left.write_bytes(b"half")
    with lock.held(str(tmp_path)):
        assert not left.exists()
        first = json.loads((tmp_path / lock.LOCK).read_text())
        deadline = time.monotonic() + 60
        while (now := json.loads((tmp_path / lock.LOCK).read_text()))["renewed"] == first[
            "renewed"
        ] and time.monotonic() < deadline:
            time.sleep(0.01)
        assert now["renewed"] > first["renewed"] and now["since"] == first["since"]
