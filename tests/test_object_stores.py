"""Everything that takes a path takes an object store's: on servers in this process (object_server.py), and on
real ones where the environment names a place on them.

    LANDMARKS_TEST_S3=s3://bucket/folder    with AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY
    LANDMARKS_TEST_GS=gs://bucket/folder    with STORAGE_EMULATOR_HOST

tests/engines/s3.sh and gcs.sh start such servers.
"""

import os
import signal
import subprocess
import sys
import time
import urllib.parse
import uuid
from concurrent.futures import ThreadPoolExecutor

import boto3
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions

from beam_pipeline import extraction, integrity, lock, main, outputs
from beam_pipeline.config import ConfigError
from tests import gldv2_layout, object_server, pictures
from tests.manifests import index_manifest
from tests.races import at_once, holders_of_lock
from transforms import images, patterns
from transforms.models import model_files, saved_model
from transforms.storage import files, object_stores, tables
from transforms.storage.feature_store import FeatureStore
from transforms.storage.machine import MachineError, is_of_machine
from transforms.types import DecodedImage, Failure


@pytest.fixture(scope="module")
def servers():
    """By scheme, servers in this process where the environment names no real ones."""
    with object_server.serving(google=False) as s3, object_server.serving(google=True) as gs:
        yield {"s3": s3, "gs": gs}


@pytest.fixture
def own(servers, monkeypatch):
    """The servers in this process, whose addresses and keys the environment then tells."""
    for name, value in (
        ("AWS_ENDPOINT_URL", servers["s3"].url),
        ("AWS_ACCESS_KEY_ID", object_server.ACCESS_KEY),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
        ("AWS_REGION", "us-east-1"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
        ("STORAGE_EMULATOR_HOST", servers["gs"].url),
    ):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(FileSystems, "_pipeline_options", None)
    monkeypatch.setattr(object_stores, "_stores", {})
    return servers


@pytest.fixture(params=["s3", "gs"])
def scheme(request, monkeypatch):
    """The scheme of a store that can be reached."""
    if f"LANDMARKS_TEST_{request.param.upper()}" not in os.environ:
        request.getfixturevalue("own")
    monkeypatch.setattr(FileSystems, "_pipeline_options", None)
    return request.param


@pytest.fixture
def root(scheme):
    """An empty folder of a store, deleted afterwards."""
    place = os.environ.get(f"LANDMARKS_TEST_{scheme.upper()}", f"{scheme}://{object_server.BUCKET}")
    folder = f"{place.rstrip('/')}/{uuid.uuid4().hex}"
    yield folder
    for entry in list(files.remote_entries(folder)):
        files.delete(entry.uri)


def photograph(seed=0):
    return pictures.encoded(np.random.default_rng(seed).integers(0, 255, (40, 60, 3), np.uint8), "JPEG")


def test_a_file_is_written_read_listed_and_deleted(root):
    uri = files.join(root, "a", "file with a space, ä and #.bin")
    files.write_bytes(uri, bytes(range(100)))
    files.write_bytes(files.join(root, "empty.bin"), b"")
    odd = files.join(root, "odd ä #%20[1]+&", "x.bin")
    files.write_bytes(odd, b"")
    assert files.list_files(files.join(root, "odd ä #%20[1]+&"), "") == [odd] and files.exists(odd)
    assert [e.uri for e in files.remote_entries(files.join(root, "odd ä #%20[1]+&"))] == [odd]
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
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: store.write(files.join(root, "many", f"{i:04}"), b""), range(1003)))
    assert len(files.list_files(files.join(root, "many"), "")) == 1003


def test_a_bucket_that_is_not_there_is_an_error_with_its_name(root):
    uri = root.split("://")[0] + "://landmarks-no-such-bucket/file"
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


def test_a_writer_killed_in_the_middle_of_an_upload_leaves_nothing(root):
    size = 20 << 20
    uri = files.join(root, "images", "shard.parquet")
    name = "AWS_ENDPOINT_URL" if root.startswith("s3") else "STORAGE_EMULATOR_HOST"
    address = urllib.parse.urlsplit(os.environ[name])
    code = (
        "import sys; from transforms.storage import files; "
        "files.write_bytes(sys.argv[1], bytes(int(sys.argv[2])))"
    )
    for before in (None, b"before"):
        if before:
            files.write_bytes(uri, before)
        with object_server.cutting((address.hostname, address.port), size // 2, lambda: writer.kill()) as way:
            writer = subprocess.Popen(
                [sys.executable, "-c", code, uri, str(size)], env={**os.environ, name: way}
            )
            assert writer.wait(120) == -signal.SIGKILL
        time.sleep(0.5)  # the server has seen the connection end
        if before:
            assert files.read_bytes(uri) == before
        else:
            assert not files.exists(uri) and FeatureStore(root).units() == []
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


def test_a_command_in_a_process_of_its_own_finds_a_store(root):
    command = [sys.executable, "-m", "beam_pipeline", "verify", files.join(root, "none")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "is no output of `landmarks index`" in done.stderr


@pytest.mark.parametrize("scheme", ["s3"], indirect=True)
def test_beams_options_reach_the_client_before_there_is_a_pipeline(root, monkeypatch, capsys):
    names = {
        "AWS_ENDPOINT_URL": "--s3_endpoint_url",
        "AWS_ACCESS_KEY_ID": "--s3_access_key_id",
        "AWS_SECRET_ACCESS_KEY": "--s3_secret_access_key",
    }
    flags = [f"{option}={os.environ[variable]}" for variable, option in names.items()]
    with monkeypatch.context() as patch:  # what deletes the folder afterwards needs them again
        for variable in names:
            patch.delenv(variable)
        assert main.main(["verify", files.join(root, "none"), *flags]) == 2
    assert "is no output of `landmarks index`" in capsys.readouterr().err


def test_keys_and_address_of_a_profile_are_those_that_boto3_finds(own, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    uri = f"s3://{object_server.BUCKET}/profile"
    with pytest.raises(PermissionError, match="finds no credentials"):
        files.read_bytes(uri)
    (tmp_path / "config").write_text(
        f"[profile mine]\nendpoint_url = {own['s3'].url}\naws_access_key_id = {object_server.ACCESS_KEY}\n"
        "aws_secret_access_key = secret\n"
    )
    monkeypatch.setenv("AWS_PROFILE", "mine")
    files.write_bytes(uri, b"x")
    assert files.read_bytes(uri) == b"x"
    monkeypatch.setenv("AWS_PROFILE", "another")
    object_stores._stores.clear()
    with pytest.raises(PermissionError, match="profile .another. could not be found"):
        files.read_bytes(uri)


def test_wrong_keys_are_an_error_of_permission_for_every_request(own, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "another")
    uri = f"s3://{object_server.BUCKET}/file"
    for call in (
        lambda: files.read_bytes(uri),
        lambda: files.write_bytes(uri, b""),
        lambda: files.exists(uri),
        lambda: files.delete(uri),
        lambda: files.list_files(uri, ""),
        lambda: list(files.remote_entries(uri)),
        lambda: files.swap_remote(uri, None, b""),
        lambda: files.swap_remote(uri, b"", b"x"),
    ):
        with pytest.raises(PermissionError, match=uri):
            call()


def test_a_buckets_own_region_is_asked_for(own):
    client = boto3.client("s3")
    assert object_stores.bucket_region(client, object_server.BUCKET) == object_server.REGION
    assert object_stores.bucket_region(client, "another") == "us-east-1"


def test_a_name_that_no_client_can_ask_for_is_an_error_that_names_it(root):
    for name in ("a//b.jpg", "a/../b.jpg", "a\tb.jpg"):
        with pytest.raises(OSError, match="a(//|/../|.t)b.jpg"):
            files.read_bytes(files.join(root, name))


@pytest.mark.parametrize("kind", ["s3", "gs"])
def test_a_server_that_fails_for_a_moment_is_asked_again(own, kind):
    uri = f"{kind}://{object_server.BUCKET}/moment"
    files.write_bytes(uri, b"x")
    for status in (500, 503, 429):
        own[kind].failing[:] = [status] * 2
        assert files.read_bytes(uri) == b"x" and not own[kind].failing


def test_a_swap_whose_answer_was_lost_has_succeeded(root):
    uri = files.join(root, "file")
    for old, new in ((None, b"a"), (b"a", b"b")):
        assert files.swap_remote(uri, old, new) and files.swap_remote(uri, old, new)


def test_a_store_without_its_package_is_named(monkeypatch):
    monkeypatch.setattr(object_stores, "_stores", {})
    for scheme, package, extra in (("s3", "boto3", "aws"), ("gs", "google.auth.transport.requests", "gcp")):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            with pytest.raises(
                ValueError,
                match=rf"{scheme}:// needs a package that is not installed \(pip .* 'landmarks\[{extra}\]'\)",
            ):
                files.read_bytes(f"{scheme}://bucket/file")


def test_photographs_in_a_tar_file_are_read_by_range(root):
    photographs = {f"{seed:016x}": photograph(seed) for seed in range(9)}
    content = gldv2_layout.tar_of((f"a/{name}.jpg", data) for name, data in photographs.items())
    archive = f"{root}/images_000.tar"
    files.write_bytes(archive, content)
    refs = patterns.match_images([root]).images
    assert [ref.image_id for ref in refs] == sorted(photographs)
    assert {ref.image_id: files.read_bytes(ref.uri) for ref in refs} == photographs
    assert files.exists(archive + ".members.parquet")
    assert patterns.match_images([f"{root}/images_*.tar"]).images == refs
    files.write_bytes(f"{root}/list.txt", "\n".join(ref.uri for ref in refs).encode())
    assert patterns.match_images([f"@{root}/list.txt"]).images == refs


class TestForbidden:
    """Who is let in nowhere gets no failure row for each photograph; a single forbidden object is one."""

    @pytest.fixture
    def photographs(self, own, scheme, monkeypatch):
        """Six of them in a store where nothing was read yet."""
        monkeypatch.setattr(object_stores, "_readable", {})
        folder = f"{scheme}://{object_server.BUCKET}/{uuid.uuid4().hex}"
        for n in range(6):
            files.write_bytes(f"{folder}/{n}.jpg", photograph(n))
        return folder

    @pytest.fixture
    def forbid(self, photographs, scheme, monkeypatch):
        """Forbids to read what ends in a text."""
        kind = object_stores._KINDS[scheme]
        read = kind.read

        def forbid(end):
            def refuse(self, uri, *part):
                if uri.endswith(end):
                    raise PermissionError(13, "AccessDenied", uri)
                return read(self, uri, *part)

            monkeypatch.setattr(kind, "read", refuse)

        return forbid

    def test_one_object_is_a_row(self, photographs, forbid):
        forbid("2.jpg")
        results = list(images.read_images(extraction.match([photographs]).images, 100))
        assert [r.kind for r in results if isinstance(r, Failure)] == ["unreadable"] and len(results) == 6

    def test_a_store_that_lets_nothing_be_read_stops_the_job_before_it_begins(self, photographs, forbid):
        forbid(".jpg")
        with pytest.raises(ConfigError, match="0.jpg may be listed but not read, nor may 5 others"):
            extraction.match([photographs])

    def test_access_that_is_lost_meanwhile_stops_the_job(self, photographs, forbid):
        found = extraction.match([photographs]).images
        assert isinstance(images.read_image(found[1], 100), DecodedImage)
        forbid(".jpg")
        with pytest.raises(MachineError, match="the machine failed at .*/2.jpg.*AccessDenied"):
            images.read_image(found[2], 100)

    def test_keys_that_are_no_longer_taken_stop_the_job(self, own, scheme, photographs, monkeypatch):
        (ref, *_) = extraction.match([photographs]).images
        if scheme == "s3":
            monkeypatch.setenv("AWS_ACCESS_KEY_ID", "another")
            object_stores._stores.clear()
        else:
            own[scheme].failing[:] = [401] * 2
        with pytest.raises(MachineError, match=rf"{scheme}://landmarks does not take the credentials"):
            images.read_image(ref, 100)

    @pytest.mark.parametrize("status", [400, 403])
    @pytest.mark.parametrize("code", ["ExpiredToken", "SignatureDoesNotMatch", "RequestTimeTooSkewed"])
    def test_what_stores_say_of_credentials_is_not_said_of_an_object(self, status, code):
        error = object_stores._error("s3://b/a.jpg", f"<Code>{code}</Code>", status)
        assert isinstance(error, object_stores.CredentialsError) and is_of_machine(error)
        error = object_stores._error("s3://b/a.jpg", "<Code>AccessDenied</Code>", 403)
        assert type(error) is PermissionError and not is_of_machine(error)
