"""Everything that takes a path takes an object store's: on one in memory, and on real servers where the
environment names a place on them.

    LANDMARKS_TEST_S3=s3://bucket/folder    with AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY
    LANDMARKS_TEST_GS=gs://bucket/folder    with STORAGE_EMULATOR_HOST

tests/engines/s3.sh and gcs.sh start such servers.
"""

import io
import os
import signal
import subprocess
import sys
import threading
import time
import uuid

import numpy as np
import pyarrow as pa
import pytest
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions
from PIL import Image

from beam_pipeline import integrity, lock, main, outputs
from beam_pipeline.config import ConfigError
from tests.manifests import index_manifest
from tests.races import at_once, holders_of_lock
from transforms import images, patterns
from transforms.models import model_files, saved_model
from transforms.storage import files, object_stores, tables
from transforms.storage.feature_store import FeatureStore
from transforms.types import DecodedImage, Failure


class MemoryStore:
    """A Store in a dictionary, which outlasts it."""

    _objects: dict[str, bytes] = {}

    def __init__(self, options):
        self._lock = threading.Lock()

    def read(self, uri, offset=0, size=None):
        if uri not in self._objects:
            raise FileNotFoundError(2, "No such object", uri)
        return self._objects[uri][offset : None if size is None else offset + size]

    def write(self, uri, data):
        self._objects[uri] = data

    def swap(self, uri, old, new):
        with self._lock:
            if self._objects.get(uri) != old:
                return False
            self._objects[uri] = new
            return True

    def delete(self, uri):
        self._objects.pop(uri, None)

    def entry(self, uri):
        return object_stores.Entry(uri, len(self._objects[uri]), 1e9) if uri in self._objects else None

    def list(self, prefix, descend=True):
        for uri in sorted(self._objects):
            if uri.startswith(prefix) and (descend or "/" not in uri[len(prefix) :]):
                yield self.entry(uri)


@pytest.fixture(params=["mem", "s3", "gs"])
def root(request, monkeypatch):
    """An empty folder of a store, deleted afterwards."""
    if request.param == "mem":
        monkeypatch.setitem(object_stores._KINDS, "mem", MemoryStore)
        monkeypatch.setattr(object_stores, "_stores", {})
        place = "mem://bucket"
    else:
        variable = f"LANDMARKS_TEST_{request.param.upper()}"
        if variable not in os.environ:
            pytest.skip(f"{variable} names no folder on a server")
        place = os.environ[variable].rstrip("/")
    monkeypatch.setattr(FileSystems, "_pipeline_options", None)
    folder = f"{place}/{uuid.uuid4().hex}"
    yield folder
    for entry in list(files.remote_entries(folder)):
        files.delete(entry.uri)


@pytest.fixture
def server(root):
    """`root` on a real server."""
    if root.startswith("mem://"):
        pytest.skip("needs a server")
    return root


def photograph(seed=0):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (40, 60, 3), np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def test_a_file_is_written_read_listed_and_deleted(root):
    uri = files.join(root, "a", "file with a space, ä and #.bin")
    files.write_bytes(uri, bytes(range(100)))
    files.write_bytes(files.join(root, "empty.bin"), b"")
    assert (
        files.read_bytes(uri) == bytes(range(100)) and files.read_bytes(files.join(root, "empty.bin")) == b""
    )
    assert files.read_bytes(uri, 10, 5) == bytes(range(10, 15)) and files.read_bytes(uri, 98) == bytes(
        [98, 99]
    )
    for offset in (95, 200):
        with pytest.raises(EOFError, match=f"{offset + 10} expected"):
            files.read_bytes(uri, offset, 10)
    files.write_bytes(uri, b"new")
    assert files.read_bytes(uri) == b"new" and files.remote_entry(uri).size == 3
    assert files.file_sizes(files.join(root, "a"), ".bin") == {uri: 3} and files.list_files(root, ".bin") == [
        files.join(root, "empty.bin")
    ]
    assert files.list_files(files.join(root, "none"), "") == []
    assert not files.exists(uri[:-1]) and not files.exists(files.join(root, "a"))
    files.delete(uri), files.delete(uri)
    with pytest.raises(FileNotFoundError, match="file with a space"):
        files.read_bytes(uri)


def test_more_than_a_page_is_listed(root):
    store = object_stores.store_of(root)
    for i in range(1003):
        store.write(files.join(root, "many", f"{i:04}"), b"")
    assert len(files.list_files(files.join(root, "many"), "")) == 1003


def test_a_bucket_that_is_not_there_is_an_error_with_its_name(server):
    uri = server.split("://")[0] + "://landmarks-no-such-bucket/file"
    for call in (
        lambda: files.read_bytes(uri),
        lambda: files.write_bytes(uri, b""),
        lambda: files.list_files(uri, ""),
        lambda: lock.held(uri).__enter__(),
    ):
        with pytest.raises(FileNotFoundError, match="landmarks-no-such-bucket"):
            call()


def test_of_many_swaps_at_once_one_succeeds(root):
    uri, won = files.join(root, "file"), []
    for old in (None, b"first"):
        if old:
            files.write_bytes(uri, old)
        values = iter(range(8))

        def swap() -> None:
            value = b"%d" % next(values)
            if files.swap_remote(uri, old, value):
                won.append(value)

        at_once(swap)
        assert len(won) == 1 and files.read_bytes(uri) == won.pop()
    assert (
        not files.swap_remote(uri, None, b"x")
        and not files.swap_remote(uri, b"another", b"x")
        and files.read_bytes(uri) != b"x"
    )
    files.delete(uri)
    assert not files.swap_remote(uri, b"first", b"x") and not files.exists(uri)


@pytest.mark.parametrize("left_behind", [False, True], ids=["free", "of the dead"])
def test_of_many_at_once_only_one_gets_the_lock(root, left_behind):
    uri = files.join(root, lock.LOCK)
    if left_behind:
        dead = {**lock._identity(), "pid": 2**22 + 1, "token": "t", "since": 1e9, "renewed": time.time()}
        files.write_json(uri, dead)
    assert holders_of_lock(root) == [1] and not files.exists(uri)


def test_a_holder_renews_its_lock_and_does_not_take_it_back(root, monkeypatch):
    monkeypatch.setattr(lock, "_HEARTBEAT", 0.01)
    uri = files.join(root, lock.LOCK)
    with lock.held(root):
        first = files.read_json(uri)
        deadline = time.monotonic() + 60
        while (now := files.read_json(uri))["renewed"] == first["renewed"] and time.monotonic() < deadline:
            time.sleep(0.01)
        assert now["renewed"] > first["renewed"]
        files.write_json(uri, {**now, "token": "another's"})
        time.sleep(0.1)
    assert files.read_json(uri)["token"] == "another's"


_KILLED_WRITER = """
import os, signal, socket, sys
from transforms.storage import files

files.exists(sys.argv[1])  # connects
send, left = socket.socket.sendall, int(sys.argv[2]) // 2

def cut(self, data, *flags):
    global left
    send(self, memoryview(data)[:left], *flags)
    left -= len(data)
    if left <= 0:
        os.kill(os.getpid(), signal.SIGKILL)

socket.socket.sendall = cut
files.write_bytes(sys.argv[1], bytes(int(sys.argv[2])))
"""


@pytest.mark.parametrize("size", [1 << 20, 20 << 20], ids=["one request", "more than 8 MiB"])
def test_a_writer_killed_in_the_middle_of_an_upload_leaves_nothing(server, size):
    uri = files.join(server, "images", "shard.parquet")
    for before in (None, b"before"):
        if before:
            files.write_bytes(uri, before)
        assert (
            subprocess.run([sys.executable, "-c", _KILLED_WRITER, uri, str(size)]).returncode
            == -signal.SIGKILL
        )
        time.sleep(0.5)  # the server has seen the connection end
        if before:
            assert files.read_bytes(uri) == before
        else:
            assert not files.exists(uri) and FeatureStore(server).units() == []
    files.write_bytes(uri, bytes(size))
    assert files.read_bytes(uri) == bytes(size)


def test_photographs_are_matched_by_folder_glob_file_and_list(root):
    sizes = {}
    for name in ("a/one.jpg", "a/b/two.JPEG", "a/b/notes.txt", "c/three.png"):
        files.write_bytes(files.join(root, name), name.encode())
        sizes[name.split("/")[-1].split(".")[0]] = len(name)

    def matched(pattern):
        return [(ref.image_id, ref.size_bytes, ref.uri) for ref in patterns.match_images([pattern]).images]

    ids = ["one", "three", "two"]
    assert [m[0] for m in matched(root)] == [m[0] for m in matched(root + "/")] == ids
    assert (
        matched(root + "/*/*.jpg")
        == matched(root + "/a/one.jpg")
        == [("one", sizes["one"], root + "/a/one.jpg")]
    )
    assert [m[0] for m in matched(root + "/**/*.jpg")] == [m[0] for m in matched(root + "/a/*.*")] == ["one"]
    assert [m[0] for m in matched(root + "/**")] == [m[0] for m in matched(root + "/*/")] == ids
    assert matched(root + "/**/two.JPEG") == matched(root + "/a/**/*.JPEG") != []
    files.write_bytes(root + "/a[1].jpg", b""), files.write_bytes(root + "/a1.jpg", b"")
    assert [m[0] for m in matched(root + "/a[1].jpg")] == ["a[1]"]
    with pytest.raises(patterns.MatchError, match="no glob can stand for a bucket"):
        patterns.match_images([root.split("://")[0] + "://b*/a.jpg"])
    files.write_bytes(root + "/list.txt", f"a/one.jpg\n{root}/c/three.png\nmissing.jpg\n".encode())
    assert [m[:2] for m in matched("@" + root + "/list.txt")] == [
        ("missing", 0),
        ("one", sizes["one"]),
        ("three", sizes["three"]),
    ]
    for pattern in (root + "/none", root + "/none/*.jpg", root + "/none.jpg"):
        with pytest.raises(patterns.MatchError, match="no image matches"):
            patterns.match_images([pattern])


def test_sizes_of_a_few_in_a_large_folder_are_found_too(root, monkeypatch):
    monkeypatch.setattr(patterns, "_LISTED_PER_REQUEST", 2)
    uris = [files.join(root, f"{i}.jpg") for i in range(9)]
    for i, uri in enumerate(uris):
        files.write_bytes(uri, bytes(i))
    asked = [uris[1], uris[8], files.join(root, "none.jpg")]
    found = patterns._remote_entries(asked)
    assert {uri: entry.size for uri, entry in found.items()} == {uris[1]: 1, uris[8]: 8}


def test_photographs_are_read_in_order_and_what_is_missing_is_a_failure(root):
    for i in range(40):
        files.write_bytes(files.join(root, f"{i:02}.jpg"), photograph(i))
    refs = patterns.match_images([root]).images
    refs.insert(7, images.ImageRef("gone", files.join(root, "gone.jpg"), 0))
    found = list(images.read_images(refs, 60))
    assert [image.image_id if isinstance(image, Failure) else image.ref.image_id for image in found] == [
        ref.image_id for ref in refs
    ]
    assert [(f.stage, f.kind) for f in found if isinstance(f, Failure)] == [("read", "not_found")]
    assert all(image.pixels.shape == (40, 60, 3) for image in found if isinstance(image, DecodedImage))


def test_tables_are_read_and_written(root):
    uri = files.join(root, "labels.csv")
    files.write_bytes(uri, b"id,landmark_id\na,7\nb,8\n")
    assert tables.read_labels(uri).column("landmark_id").to_pylist() == ["7", "8"]
    files.write_bytes(uri, b"id,landmark_id\na,\n")
    with pytest.raises(tables.TableError, match=f"{uri}, line 2"):
        tables.read_labels(uri)
    predictions = pa.table({"image_id": ["b", "a"], "landmark_id": ["7", None], "score": [0.5, None]})
    tables.write_submission_csv(files.join(root, "submission.csv"), predictions)
    assert files.read_bytes(files.join(root, "submission.csv")) == b"id,landmarks\na,\nb,7 0.5\n"


def test_a_model_is_fetched_and_inspected(root, tmp_path, monkeypatch, capsys):
    from tests import tiny_models

    local = str(tmp_path / "model")
    tiny_models.build("delg_tf2", tmp_path / "model")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for folder, _, names in os.walk(local):
        for name in names:
            path = os.path.join(folder, name)
            with open(path, "rb") as f:
                files.write_bytes(files.join(root, "model", os.path.relpath(path, local)), f.read())
    assert saved_model.fingerprint(
        model_files.fetch_model(files.join(root, "model"))
    ) == saved_model.fingerprint(local)
    assert model_files.fetch_model(files.join(root, "model") + "/") == model_files.fetch_model(
        files.join(root, "model")
    )


def test_an_output_is_locked_resumed_overwritten_and_verified(root, capsys):
    settings, store, unit = {"command": "index"}, FeatureStore(root), f"000000-{'0' * 16}"
    with outputs.opened(root, settings) as work:
        assert work
        with pytest.raises(ConfigError, match="is being written by process"):
            with outputs.opened(root, settings):
                pass
        store.write_unit(unit, [], [Failure("read", "a", "x", "k", "m")], 8)
    with outputs.opened(root, settings) as work:
        assert work and store.units() == [unit]
        outputs.finish(root, index_manifest(shards=tuple(store.summaries([unit]))))
    with outputs.opened(root, settings) as work:
        assert not work
    assert main.main(["verify", root]) == 0 and "all as they were written" in capsys.readouterr().out
    shard = files.join(root, "images", f"{unit}.parquet")
    files.write_bytes(shard, files.read_bytes(shard)[:-1])
    assert main.main(["verify", root]) == 1 and "truncated" in capsys.readouterr().out
    assert integrity.discard_damaged(store, [unit]) and store.units() == []
    with pytest.raises(ConfigError, match="is an output of `landmarks index`"):
        with outputs.opened(root, {"command": "recognize"}, overwrite=True):
            pass
    files.write_bytes(files.join(root, "photos", "a.jpg"), b"mine")
    with outputs.opened(root, {"command": "index", "model": "other"}, overwrite=True):
        assert sorted(entry.uri for entry in files.remote_entries(root)) == [
            files.join(root, name) for name in (".lock.json", "photos/a.jpg", "settings.json")
        ]
    with pytest.raises(ConfigError, match="is not empty and was not made by landmarks"):
        with outputs.opened(files.join(root, "photos"), settings, overwrite=True):
            pass
    assert not files.exists(files.join(root, ".lock.json"))


def test_threads_share_a_client_and_new_options_bring_a_new_one(root):
    found = []
    at_once(lambda: found.append(object_stores.store_of(root)))
    assert len({id(store) for store in found}) == 1
    FileSystems.set_options(PipelineOptions([]))
    assert object_stores.store_of(root) is not found[0] and object_stores.store_of(
        root
    ) is object_stores.store_of(root)


def test_beams_options_reach_the_client_before_there_is_a_pipeline(server, monkeypatch, capsys):
    if server.startswith("gs://"):
        pytest.skip("STORAGE_EMULATOR_HOST is no option of Beam")
    names = {
        "AWS_ENDPOINT_URL": "--s3_endpoint_url",
        "AWS_ACCESS_KEY_ID": "--s3_access_key_id",
        "AWS_SECRET_ACCESS_KEY": "--s3_secret_access_key",
    }
    flags = [f"{option}={os.environ[variable]}" for variable, option in names.items()]
    with monkeypatch.context() as patch:  # what deletes the folder afterwards needs them again
        for variable in names:
            patch.delenv(variable)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        assert main.main(["verify", files.join(server, "none"), *flags]) == 2
    assert "is no output of `landmarks index`" in capsys.readouterr().err


def test_a_store_without_its_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "boto3", None)
    monkeypatch.setattr(object_stores, "_stores", {})
    with pytest.raises(
        ValueError, match=r"s3:// needs a package that is not installed \(pip install 'landmarks\[aws\]'\)"
    ):
        files.read_bytes("s3://bucket/file")
