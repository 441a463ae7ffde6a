"""What happens on the way does not change the end: kills, faults of the storage, and jobs that are added to.

The long versions: tests/survival/kill.py and tests/survival/mutate.py.
"""

import argparse
import contextlib
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import tempfile
import time

import pandas as pd
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from PIL import Image

from beam_pipeline import flags, index, integrity, lock, outputs
from beam_pipeline.main import build_parser
from beam_pipeline.manifest import IndexManifest
from tests import tiny_models
from tests.command_line import run_in as run
from tests.survival import kill
from transforms import images, patterns
from transforms.storage import files

NOBODY = 65534


@pytest.fixture(autouse=True)
def no_hang():
    """Ends a test that waits for ever, as one that opens a pipe does."""

    def end(number, frame):
        raise TimeoutError("the test hangs")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(400)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def reference(tmp_path_factory, demo_set):
    """An undisturbed round of the commands."""
    folder = tmp_path_factory.mktemp("reference")
    kill.write_inputs(folder, kill.find_photographs(None, demo_set[0]), (16, 8, 16))
    for command in COMMANDS:
        assert run(folder, *command.arguments) == 0
        kill.record(command, folder)
    return folder


COMMANDS = INDEX, APPEND, RECOGNIZE = kill.INDEX, kill.APPEND, kill.RECOGNIZE


@pytest.fixture
def folder(reference, tmp_path):
    """A new folder with the inputs of a round."""
    for name in kill.INPUTS:
        shutil.copy(reference / name, tmp_path)
    return tmp_path


def same_as(reference, command, folder):
    expected = json.loads((reference / f"{command.name}.json").read_text())
    return kill.differences(expected, kill.contents(folder / command.output)) == []


def test_killed_jobs_end_with_the_same_bytes(reference, tmp_path):
    def finish(command, folder, mode):
        given_up = time.monotonic() + 60
        # What was killed still holds its lock until the system has taken its memory back.
        while (code := run(folder, *command.arguments, *mode)) == 2 and time.monotonic() < given_up:
            time.sleep(0.2)
        assert code == 0

    seconds = {command.name: 6.0 for command in COMMANDS}
    kills, differing = kill.attempt(
        tmp_path, reference, seconds, random.Random(27), iter([1, 1, 2]), finish, COMMANDS
    )
    assert len(kills) == 4 and differing == []


def test_what_is_killed_while_it_cleans_has_something_to_clean(reference, folder):
    shutil.copytree(reference / "index", folder / "index")
    counts = []
    for command in kill.CLEANING:
        before = kill.contents(folder / "index")
        assert kill.stage(command, folder, before) == "start"
        assert run(folder, *command.arguments) == 0
        assert kill.stage(command, folder, before) == "end"
        counts.append(json.loads((folder / "index" / "manifest.json").read_text())["counts"]["indexed"])
    assert counts == [24, 15, 15, 15]
    images = pd.read_parquet(folder / "index" / "images").set_index("image_id")
    assert (images.uri.str.contains("/changed/")).any()
    assert len(list((folder / "index" / "images").glob("*.c*"))) >= 1


# Adding to an index


def label_more(folder):
    """Gives all that is to be added one label."""
    stems = [pathlib.Path(line).stem for line in (folder / "more.txt").read_text().splitlines()]
    (folder / "labels.csv").write_text("id,landmark_id\n" + "".join(f"{stem},1\n" for stem in stems))


def test_an_index_that_was_added_to_predicts_as_one_made_at_once(reference, folder):
    with open(folder / "images.txt", "a", encoding="utf-8") as f:
        f.write((folder / "more.txt").read_text())
    assert run(folder, *INDEX.arguments) == 0 and run(folder, *RECOGNIZE.arguments) == 0
    assert (folder / "run" / "submission.csv").read_bytes() == (
        reference / "run" / "submission.csv"
    ).read_bytes()
    at_once, added = (
        json.loads((root / "index" / "manifest.json").read_text()) for root in (folder, reference)
    )
    for manifest in (
        at_once,
        added,
    ):  # what a table names beside the photographs is counted with its own alone
        del manifest["counts"]["labels_without_image"]
    assert at_once["counts"] == added["counts"] and added["counts"]["indexed"] == 24


def test_an_index_stays_readable_while_it_is_added_to(reference, folder, monkeypatch):
    assert run(folder, *INDEX.arguments) == 0
    before, seen = outputs.read_manifest(str(folder / "index"), IndexManifest), []

    class Looks(FnApiRunner):
        """Looks at the index when the work is done, and the manifest not yet written."""

        def run_pipeline(self, pipeline, options):
            result = super().run_pipeline(pipeline, options)
            seen.append(outputs.read_manifest("index", IndexManifest))
            assert integrity.find_problems("index", seen[0])[1] == {}
            with pytest.raises(outputs.ConfigError, match="is being written by process"):
                with lock.held("index"):
                    pass
            return result

    args, rest = build_parser().parse_known_args(APPEND.arguments, argparse.Namespace(started=time.time()))
    monkeypatch.chdir(folder)
    assert index.run(flags.index_config(args), PipelineOptions(rest), Looks()) == 0
    assert seen == [before] and same_as(reference, APPEND, folder)


def test_what_an_index_has_is_not_added_again(reference, folder, capsys):
    shutil.copytree(reference / "index", folder / "index")
    assert (
        run(folder, *APPEND.arguments) == 0
        and "has these images and labels already" in capsys.readouterr().out
    )
    assert run(folder, *INDEX.arguments) == 0 and "nothing to do" in capsys.readouterr().out
    (folder / "more.txt").write_text(
        (folder / "queries.txt").read_text() + (folder / "images.txt").read_text().splitlines()[0]
    )
    label_more(folder)
    assert run(folder, *APPEND.arguments) == 2
    said = capsys.readouterr().err
    assert "1 of 17 images are in index already, and since then 1 label changed" in said
    assert same_as(reference, APPEND, folder)


def test_of_a_folder_that_has_grown_what_is_new_is_added(tmp_path, capsys):
    for name in "abcdu":
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(tiny_models.textured(90, 80, ord(name))).save(tmp_path / "images" / f"{name}.png")
    late = [(tmp_path / "images" / f"{name}.png").rename(tmp_path / f"{name}.png") for name in "cd"]
    (tmp_path / "labels.csv").write_text("id,landmark_id\na,1\nb,2\nc,2\nd,1\n")
    common = ["index", "--images", "images", "--labels", "labels.csv", "--model", "rootsift-vlad"]
    common += ["--output", "index", "--direct_num_workers", "1"]
    assert run(tmp_path, *common) == 0
    for path in late:
        path.rename(tmp_path / "images" / path.name)
    assert run(tmp_path, *common, "--append") == 0
    assert "2 of 4 images are in index already; 2 are new" in capsys.readouterr().out
    images = pd.read_parquet(tmp_path / "index" / "images").set_index("image_id").landmark_id
    assert images.sort_index().to_dict() == {"a": "1", "b": "2", "c": "2", "d": "1"}
    counts = json.loads((tmp_path / "index" / "manifest.json").read_text())["counts"]
    assert counts["matched"] == 5 and counts["indexed"] == 4 and counts["without_label"] == 1
    assert run(tmp_path, *common, "--append") == 0
    assert "has these images and labels already" in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--max_image_side", "400"], "--max_image_side 400 differs from the index's 320"),
        (["--no-exif_orientation"], "--no-exif_orientation differs from the index's --exif_orientation"),
        (["--overwrite"], "--overwrite and --append do not go together"),
        (["--preset", "host"], "--preset and --append do not go together"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_an_index_is_added_to_with_its_own_settings(reference, folder, flags, message, capsys):
    shutil.copytree(reference / "index", folder / "index")
    with open(folder / "more.txt", "w", encoding="utf-8") as f:
        f.write((folder / "queries.txt").read_text())
    label_more(folder)
    assert run(folder, *APPEND.arguments, *flags) == 2
    assert message in capsys.readouterr().err and same_as(reference, APPEND, folder)


def test_limits_may_differ_whenever_a_job_is_started(tmp_path, capsys):
    for name, sides in (("a", (90, 80)), ("b", (300, 280)), ("c", (310, 290)), ("q", (305, 285))):
        folder = tmp_path / {"c": "more", "q": "queries"}.get(name, "images")
        folder.mkdir(exist_ok=True)
        Image.fromarray(tiny_models.textured(*sides, 0)).save(folder / f"{name}.png")
    (tmp_path / "labels.csv").write_text("id,landmark_id\na,1\nb,2\nc,2\n")
    common = ["--model", "rootsift-vlad", "--max_failure_rate", "1", "--direct_num_workers", "1"]
    index = ["index", "--labels", "labels.csv", "--output", "index", *common]
    recognize = ["recognize", "--images", "queries", "--index", "index", "--output", "run", *common]
    small, large = ["--max_image_pixels", "10000"], ["--max_image_memory", "400"]
    assert run(tmp_path, *index, "--images", "images", *small) == 0
    (row,) = pd.read_parquet(tmp_path / "index" / "failures").to_dict("records")
    assert row["image_id"] == "b" and "--max_image_pixels allows more" in row["message"]
    assert run(tmp_path, *index, "--images", "more", "--append", *large) == 0
    assert run(tmp_path, *recognize, *large) == 0 and run(tmp_path, *recognize) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert len(pd.read_parquet(tmp_path / "index" / "images")) == 2
    # Looking at what has features asks for no limit.
    manifest = tmp_path / "index" / "manifest.json"
    manifest.write_text(manifest.read_text().replace("100000000", "10000"))
    assert run(tmp_path, "matches", "--run", "run", "--image_id", "q", "--output", "q.png") == 0


# Storage that fails


@contextlib.contextmanager
def mounted(folder, options):
    """A small file system in memory at `folder`; skips the test where that is not allowed."""
    folder.mkdir(exist_ok=True)
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "none", folder], capture_output=True
    ).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def remount(folder, options):
    subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)


def test_a_full_disk_stops_the_job_and_a_later_start_goes_on(reference, folder, capsys):
    features = [p for part in ("local_features", "images") for p in (reference / "index" / part).iterdir()]
    unit = sum(path.stat().st_size for path in features) / 3  # units of 8 photographs, the added one too
    with mounted(folder / "index", f"size={round(1.5 * unit / 1024)}k"):
        assert run(folder, *INDEX.arguments) == 1
        error = capsys.readouterr().err
        assert re.search(r"^landmarks: error: index/\S+: no space left on device; the same", error, re.M)
        assert "Traceback" not in error and len(error.splitlines()) < 4
        assert not (folder / "index" / "manifest.json").exists()
        assert not [
            path for path in (folder / "index").rglob(".*") if path.is_file()
        ]  # neither a lock nor half a file
        remount(folder / "index", "size=64m")
        there = list((folder / "index" / "images").glob("*"))
        assert len(there) == 1
        written = there[0].stat().st_mtime_ns
        assert run(folder, *INDEX.arguments) == 0
        assert there[0].stat().st_mtime_ns == written and same_as(reference, INDEX, folder)


def test_a_read_only_folder_can_be_read_and_is_an_error_to_write_to(reference, folder, capsys):
    with mounted(folder / "index", "size=64m"):
        remount(folder / "index", "ro")
        assert run(folder, *INDEX.arguments) == 1
        assert "read-only file system" in capsys.readouterr().err
        remount(folder / "index", "rw")
        shutil.copytree(reference / "index", folder / "index", dirs_exist_ok=True)
        remount(folder / "index", "ro")
        assert run(folder, *INDEX.arguments) == 0 and "nothing to do" in capsys.readouterr().out
        assert run(folder, *RECOGNIZE.arguments) == 0 and same_as(reference, RECOGNIZE, folder)


def test_a_truncated_shard_is_named_before_it_is_used(reference, folder, capsys):
    shutil.copytree(reference / "index", folder / "index")
    shard = sorted((folder / "index" / "images").iterdir())[1]
    os.truncate(shard, 1000)
    assert run(folder, *RECOGNIZE.arguments) == 1
    error = capsys.readouterr().err
    assert f"index is damaged: index/images/{shard.name} is truncated: 1,000 bytes" in error
    assert not (folder / "run" / "predictions").exists()
    shutil.copy(reference / "index" / "images" / shard.name, shard)
    assert run(folder, *RECOGNIZE.arguments) == 0 and same_as(reference, RECOGNIZE, folder)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_shard_that_vanishes_on_the_way_stops_the_job_and_a_later_start_goes_on(
    reference, folder, workers, capsys, monkeypatch
):
    shutil.copytree(reference / "index", folder / "index")
    shard = sorted((folder / "index" / "local_features").iterdir())[0]

    def vanish(*arguments):
        shard.rename(folder / "elsewhere")

    with monkeypatch.context() as patched:
        patched.setattr(integrity, "check_sizes", vanish)
        assert run(folder, *RECOGNIZE.arguments, f"--direct_num_workers={workers}") == 1
    assert (
        f"landmarks: error: index/local_features/{shard.name}: no such file or directory; the same command "
        "goes on from here" in capsys.readouterr().err
    )
    assert run(folder, *RECOGNIZE.arguments) == 1
    assert f"index/local_features/{shard.name} is missing" in capsys.readouterr().err
    (folder / "elsewhere").rename(shard)
    assert run(folder, *RECOGNIZE.arguments) == 0 and same_as(reference, RECOGNIZE, folder)


def test_a_shared_query_store_is_locked_only_while_it_is_filled(reference, folder, capsys):
    shutil.copytree(reference / "index", folder / "index")
    with lock.held(str(folder / "queries")):
        assert run(folder, *RECOGNIZE.arguments, "--query_store", "queries") == 2
        assert "queries is being written by process" in capsys.readouterr().err
    shutil.copytree(reference / "run" / "queries", folder / "queries", dirs_exist_ok=True)
    with lock.held(str(folder / "queries")):
        assert run(folder, *RECOGNIZE.arguments, "--query_store", "queries") == 0


def test_odd_objects_among_the_photographs_are_rows_and_never_hang(reference, folder, capsys):
    photos = folder / "photos"
    photos.mkdir()
    for line in (folder / "images.txt").read_text().splitlines():
        shutil.copy(line, photos)
    os.mkfifo(photos / "pipe.jpg")
    (photos / "dangling.jpg").symlink_to("nothing")
    (photos / "loop.jpg").symlink_to("loop.jpg")
    (photos / "again").symlink_to(photos)
    (photos / "folder.jpg").mkdir()
    names = [str(photos / name) for name in ("pipe.jpg", "never_was.jpg")]
    (folder / "odd.txt").write_text("\n".join(names))
    with open(folder / "labels.csv", "a", encoding="utf-8") as f:
        f.writelines(f"{name},1\n" for name in ("pipe", "dangling", "loop", "folder", "never_was"))
    arguments = ["--labels", "labels.csv", "--output", "index", "--max_image_side", "320"]
    arguments += ["--images", "photos", "@odd.txt"]
    assert run(folder, "index", *arguments) == 1
    error = capsys.readouterr().err
    assert "4 of 20 images failed (20.0%), more than --max_failure_rate 0.05" in error
    rows = pd.read_parquet(folder / "index" / "failures").set_index("image_id")
    assert dict(rows.kind) == {
        "dangling": "not_found",
        "loop": "unreadable",
        "never_was": "not_found",
        "pipe": "unreadable",
    }
    assert set(rows.stage) == {"read"} and "not a regular file" in rows.message["pipe"]
    # All else is written, and stays judged.
    assert len(pd.read_parquet(folder / "index" / "images")) == 16
    assert run(folder, "index", *arguments) == 1
    assert run(folder, "index", *arguments, "--max_failure_rate", "0.2") == 0


def as_nobody(call):
    """Runs `call` in a process that is not root, to whom permissions mean something; returns whether it gave
    true.
    """
    child = os.fork()
    if child == 0:
        code = 2
        try:
            if os.getuid() == 0:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            code = 0 if call() else 1
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.fixture
def closed_folder():
    """A folder for another user to look into; those of pytest are closed to others."""
    folder = pathlib.Path(tempfile.mkdtemp())
    yield folder
    os.chmod(folder, 0o755)
    shutil.rmtree(folder)


def test_permission_denied_is_a_row_for_a_photograph_and_an_error_for_a_shard(closed_folder):
    photo, shard = closed_folder / "a.jpg", closed_folder / "shard"
    photo.write_bytes(b"content")
    os.chmod(photo, 0)
    os.chmod(closed_folder, 0o555)

    def refused():
        failure = images.read_image(images.ImageRef("a", str(photo), 1), 320)
        assert (failure.stage, failure.kind) == (
            "read",
            "unreadable",
        ) and "permission denied" in failure.message
        with pytest.raises(PermissionError):
            files.write_bytes(str(shard), b"content")
        return True

    assert as_nobody(refused)
    assert os.listdir(closed_folder) == ["a.jpg"]


def test_a_shard_that_may_not_be_read_is_named_before_the_work(closed_folder):
    shard = closed_folder / "images" / "a.parquet"
    shard.parent.mkdir()
    shard.write_bytes(b"content")
    os.chmod(shard, 0)
    for folder in (closed_folder, shard.parent):
        os.chmod(folder, 0o755)

    class OfOneFile:
        def records(self, root):
            return {str(shard): files.content_record(b"content")}

    def refused():
        with pytest.raises(integrity.DamagedError, match="a.parquet may not be read by this user"):
            integrity.check_sizes(str(closed_folder), OfOneFile())
        return True

    assert as_nobody(refused)


def test_a_folder_that_cannot_be_listed_is_an_error_and_not_left_out(closed_folder):
    (closed_folder / "a.jpg").write_bytes(b"content")
    (closed_folder / "secret").mkdir(0)
    os.chmod(closed_folder, 0o755)

    def refused():
        with pytest.raises(PermissionError, match="secret"):
            patterns.match_images([str(closed_folder)])
        return True

    assert as_nobody(refused)
