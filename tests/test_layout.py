"""Which files are an output's own, and that no others are touched."""

import os

import pytest

from beam_pipeline import layout, lock, outputs
from beam_pipeline.config import ConfigError, EvaluateConfig, RecognizeConfig
from transforms.storage import files

UNIT = f"000012-{'0a' * 8}"
TEMPORARY = "0" * 32 + ".tmp"

INDEX = {
    "settings.json",
    "manifest.json",
    f"images/{UNIT}.parquet",
    f"local_features/{UNIT}.bin",
    f"summaries/{UNIT}.json",
    f"failures/{UNIT}.parquet",
    f"failures/no_label-{UNIT}.parquet",
    "failures/out_of_time.parquet",
    "plan/000000.parquet",
    f"appended/{'0a' * 8}/settings.json",
    f"appended/{'0a' * 8}/plan/000000.parquet",
}
FOREIGN = {
    "labels.csv",
    "photos/a.jpg",
    "images/a.jpg",
    "images/mine.parquet",
    f"images/deeper/{UNIT}.parquet",
    "failures/why.txt",
    f"appended/{'0a' * 8}/notes.txt",
    "run/manifest.json",
    "run/settings.json",
    f"run/queries/images/{UNIT}.parquet",
    f"queries/images/{UNIT}.parquet",
    ".git/config",
    "photos/.a.jpg." + TEMPORARY,
    ".a.jpg." + TEMPORARY,
    ".x.tmp",
}


def below(root):
    return {os.path.relpath(os.path.join(f, n), root) for f, _, names in os.walk(root) for n in names}


def write(root, paths):
    for path in paths:
        files.write_bytes(os.path.join(root, path), path.encode())


def test_only_what_the_command_wrote_is_deleted(tmp_path):
    root = str(tmp_path / "out")
    write(root, INDEX | FOREIGN)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / f"{UNIT}.bin").write_bytes(b"precious")
    os.symlink(tmp_path / "elsewhere", os.path.join(root, "images", "link"))
    assert set(layout.own_files(root, "index")) == INDEX
    layout.delete(root, "index", keep=("settings.json",))
    assert below(root) == FOREIGN | {"settings.json"}
    assert (tmp_path / "elsewhere" / f"{UNIT}.bin").exists()
    assert not os.path.exists(os.path.join(root, "plan"))


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("made_by, asked", [("index", "recognize"), ("recognize", "index")])
def test_the_output_of_another_command_is_never_touched_nor_is_that_proposed(
    tmp_path, made_by, asked, overwrite
):
    root = str(tmp_path)
    with outputs.opened(root, {"command": made_by}):
        write(root, INDEX - {"settings.json"})
    before = below(root)
    with pytest.raises(ConfigError, match=f"is an output of `landmarks {made_by}`.*name another") as error:
        with outputs.opened(root, {"command": asked}, overwrite):
            pass
    assert "--overwrite" not in str(error.value) and below(root) == before


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("content", [b"{}", b"[]", b"// VS Code", b'{"command": "build"}'])
def test_settings_of_another_program_are_not_ours(tmp_path, content, overwrite):
    (tmp_path / "settings.json").write_bytes(content)
    (tmp_path / "manifest.json").write_bytes(b"{}")
    with pytest.raises(ConfigError, match="was not made by landmarks") as error:
        with outputs.opened(str(tmp_path), {"command": "index"}, overwrite):
            pass
    assert "--overwrite" not in str(error.value) and below(tmp_path) == {"settings.json", "manifest.json"}


def test_an_output_is_a_folder(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match="file is a file; name a folder"):
        with outputs.opened(str(tmp_path / "file"), {"command": "index"}):
            pass


def test_only_temporaries_of_an_output_itself_are_cleared(tmp_path):
    root = str(tmp_path)
    ours = {
        f".manifest.json.{TEMPORARY}",
        f"..lock.json.{TEMPORARY}",
        f"images/.{UNIT}.parquet.{TEMPORARY}",
        f"queries/images/.{UNIT}.parquet.{TEMPORARY}",
        f"appended/{'0a' * 8}/plan/.000000.parquet.{TEMPORARY}",
    }
    of_others = {f"run/.manifest.json.{TEMPORARY}", f"run/images/.{UNIT}.parquet.{TEMPORARY}"}
    write(root, ours | of_others | FOREIGN)
    with lock.held(root):
        assert below(root) == of_others | FOREIGN | {lock.LOCK}


@pytest.mark.parametrize("root, link", [("out", "link"), ("out/", "link"), ("./out", "out"), ("link", "out")])
def test_an_input_that_the_job_would_write_over_is_refused(tmp_path, monkeypatch, root, link):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out" / "plan").mkdir(parents=True)
    (tmp_path / "link").symlink_to("out")
    for own in ("submission.csv", "metrics.json", "plan/000000.parquet"):
        with pytest.raises(ConfigError, match=f"--truth .*{own} has the name of a file that the job writes"):
            outputs.check_inputs(root, "recognize", [("--truth", f"{link}/{own}")])
    outputs.check_inputs(root, "recognize", [("--truth", f"{link}/truth.csv"), ("--truth", "submission.csv")])
    outputs.check_inputs("gs://b/out", "recognize", [("--truth", "gs://b/output/submission.csv")])
    with pytest.raises(ConfigError, match="has the name of a file"):
        outputs.check_inputs("gs://b/out/", "recognize", [("--truth", "gs://b/out/submission.csv")])


def test_a_query_store_is_no_output(tmp_path):
    with outputs.opened(str(tmp_path / "index"), {"command": "index"}):
        pass
    with pytest.raises(ConfigError, match="is an output of `landmarks index`; keep"):
        outputs.check_store(str(tmp_path / "index"))
    outputs.check_store(str(tmp_path / "index" / "store"))
    with pytest.raises(ConfigError, match="--query_store run/ is the output ./run; name another folder"):
        RecognizeConfig(("q",), "index", "./run", query_store="run/")


@pytest.mark.parametrize("output", ["truth.csv", "./truth.csv", "run"])
def test_metrics_are_not_written_over_what_they_are_made_of(output):
    with pytest.raises(ConfigError, match=f"--output {output} is or holds what --"):
        EvaluateConfig("run", "truth.csv", output)
