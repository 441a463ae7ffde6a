"""A finished index that is cleaned: photographs removed, labels corrected, changed photographs replaced,
shards rewritten. What it predicts is what an index made anew of the cleaned data predicts.
"""

import itertools
import json
import os
import pathlib
import shutil
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
from PIL import Image

from beam_pipeline import cleaning, index_parts, info, outputs
from beam_pipeline.manifest import IndexManifest
from tests import tiny_models
from tests.command_line import run_in as run
from tests.survival import kill
from transforms.storage import files, overlays
from transforms.storage.feature_store import FeatureStore
from transforms.types import FeatureLocation

LANDMARKS = 4
LABELS = {f"p{n:02d}": f"landmark{n % LANDMARKS}" for n in range(20)}
RECOGNIZE = ("recognize", "--images", "q", "--augmented_weight", "2", "--query_store", "store", "--overwrite")


def photograph(folder, name, seed, noise=0):
    path = folder / name[0] / f"{name}.png"
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(tiny_models.textured(96, 96, seed) ^ (noise & 7)).save(path, compress_level=0)


def write_labels(folder, labels, name="labels.csv"):
    (folder / name).write_text("id,landmark_id\n" + "".join(f"{k},{v}\n" for k, v in labels.items()))


def index(output, *more, images="all.txt", labels="labels.csv"):
    given = ("--images", f"@{images}", "--labels", labels, "--output", output)
    return ("index", *given, "--model", "rootsift-vlad", *more)


def make(folder):
    """Photographs of four landmarks, five of each, queries, and an index with a part that was added."""
    for n in range(20):
        photograph(folder, f"p{n:02d}", n % LANDMARKS, n)
    for n in range(LANDMARKS):
        photograph(folder, f"q{n}", n)
    write_labels(folder, LABELS)
    paths = [f"{folder}/p/{name}.png\n" for name in LABELS]
    (folder / "first.txt").write_text("".join(paths[:16]))
    (folder / "all.txt").write_text("".join(paths))
    assert run(folder, *index("index", images="first.txt")) == 0
    assert run(folder, *index("index", "--append")) == 0


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    make(folder)
    return folder


@pytest.fixture
def folder(made, tmp_path):
    """A copy of the index, of the same photographs."""
    shutil.copytree(made / "index", tmp_path / "index")
    for name in ("labels.csv", "all.txt"):
        shutil.copy(made / name, tmp_path)
    (tmp_path / "q").symlink_to(made / "q")
    return tmp_path


@pytest.fixture
def own(tmp_path):
    """An index of photographs that may be changed."""
    make(tmp_path)
    return tmp_path


def manifest(folder, root="index"):
    return json.loads((folder / root / "manifest.json").read_text())


def predictions(folder, root):
    """The bytes of what a run predicts by an index."""
    assert run(folder, *RECOGNIZE, "--index", root, "--output", f"run-{root}") == 0
    found = kill.contents(folder / f"run-{root}")
    return {k: v for k, v in found.items() if k.startswith(("predictions/", "submission"))}


def is_as_made_anew(folder, labels):
    """Whether the index predicts what one of the photographs with these labels does, and counts the same."""
    write_labels(folder, labels, "cleaned.csv")
    assert run(folder, *index("anew", "--overwrite", labels="cleaned.csv")) == 0
    assert run(folder, "verify", "index") == 0
    assert {*index_parts.label_counts(str(folder / "index"), read(folder)).items()} == {
        *index_parts.label_counts(str(folder / "anew"), read(folder, "anew")).items()
    }
    counts = [manifest(folder, root)["counts"] for root in ("index", "anew")]
    assert all(counts[0][name] == counts[1][name] for name in ("indexed", "failed", "out_of_time"))
    return predictions(folder, "index") == predictions(folder, "anew")


def read(folder, root="index"):
    return outputs.read_manifest(str(folder / root), IndexManifest)


REMOVED = ("p01", "p05", "p17")
RELABELLED = {"p02": "landmark3", "p06": "landmark9", "p18": "landmark0"}
CLEANED = {k: RELABELLED.get(k, v) for k, v in LABELS.items() if k not in REMOVED}


def test_what_is_removed_and_relabelled_is_as_if_the_index_had_been_made_so(folder, capsys):
    before = kill.contents(folder / "index")
    (folder / "bad.txt").write_text("p05\n\n")
    (folder / "bad.csv").write_text("id,why\np17,blurred\n")
    write_labels(folder, RELABELLED, "right.csv")
    change = (
        "index",
        "--output",
        "index",
        "--relabel",
        "right.csv",
        "--remove",
        "p01",
        "@bad.txt",
        "bad.csv",
    )
    assert run(folder, *change) == 0
    assert "3 photographs removed, 3 relabelled; 17 images are indexed" in capsys.readouterr().out
    after = kill.contents(folder / "index")
    kept = {
        k for k in before if k.split("/")[0] in ("images", "local_features", "failures", "plan", "appended")
    }
    assert all(after[k] == before[k] for k in kept) and any(k.startswith("overlays/") for k in after)
    assert is_as_made_anew(folder, CLEANED)
    assert run(folder, *change) == 0 and "nothing to do" in capsys.readouterr().out
    assert kill.contents(folder / "index") == after
    assert run(folder, *index("index", labels="cleaned.csv")) == 2  # its plan is that of the first start


def test_changes_of_changes_add_up_and_labels_may_come_back(folder):
    write_labels(folder, RELABELLED, "right.csv")
    assert run(folder, "index", "--output", "index", "--relabel", "right.csv") == 0
    assert run(folder, "index", "--output", "index", "--remove", "p01") == 0
    write_labels(folder, LABELS, "first.csv")
    assert run(folder, "index", "--output", "index", "--relabel", "first.csv") == 0
    assert run(folder, "index", "--output", "index", "--remove", "p05", "p17") == 0
    assert is_as_made_anew(folder, {k: v for k, v in LABELS.items() if k not in REMOVED})
    names = [shard["unit"] for shard in manifest(folder)["shards"]]
    assert sum(overlays.is_overlaid(name) for name in names) == 2
    assert len(list((folder / "index" / "overlays").iterdir())) == 2  # the earlier ones are gone


def test_compacting_rewrites_what_lost_more_than_a_third(folder, capsys):
    gone = [name for name, label in LABELS.items() if label == "landmark0"] + ["p01"]
    write_labels(folder, RELABELLED, "right.csv")
    assert run(folder, "index", "--output", "index", "--remove", *gone, "--relabel", "right.csv") == 0
    bytes_before = sum(path.stat().st_size for path in (folder / "index" / "local_features").iterdir())
    assert run(folder, "index", "--output", "index", "--compact") == 0
    assert "1 shards rewritten" in capsys.readouterr().out
    names = [shard["unit"] for shard in manifest(folder)["shards"]]
    assert [".c" in name for name in names] == [True, False, False]
    assert sum(path.stat().st_size for path in (folder / "index" / "local_features").iterdir()) < bytes_before
    labels = {k: RELABELLED.get(k, v) for k, v in LABELS.items() if k not in gone}
    assert is_as_made_anew(folder, labels)
    assert run(folder, "index", "--output", "index", "--remove", "p09") == 0  # from what was rewritten too
    assert is_as_made_anew(folder, {k: v for k, v in labels.items() if k != "p09"})
    assert run(folder, "index", "--output", "index", "--compact") == 0
    assert "nothing to do" in capsys.readouterr().out


def test_changed_photographs_replace_those_of_their_ids_with_update(own, capsys):
    folder = own
    assert run(folder, "index", "--output", "index", "--remove", "p04") == 0
    photograph(folder, "p03", 1), photograph(folder, "p19", 2), photograph(folder, "p20", 0)
    (folder / "all.txt").write_text((folder / "all.txt").read_text() + f"{folder}/p/p20.png\n")
    labels = {**LABELS, "p03": "landmark1", "p19": "landmark2", "p20": "landmark0", "p07": "landmark7"}
    del labels["p04"]
    write_labels(folder, labels)
    before = kill.contents(folder / "index")
    assert run(folder, *index("index", "--append")) == 2
    assert "2 photographs were changed (p03, p19), 3 labels changed" in capsys.readouterr().err
    assert kill.contents(folder / "index") == before
    assert run(folder, *index("index", "--append", "--update")) == 0
    assert "2 photographs replaced, 1 relabelled" in capsys.readouterr().out
    assert is_as_made_anew(folder, labels)
    assert run(folder, *index("index", "--append", "--update")) == 0
    assert "nothing to do" in capsys.readouterr().out
    (folder / "p" / "p03.png").write_bytes(b"no photograph")
    assert run(folder, *index("index", "--append", "--update", "--max_failure_rate", "1")) == 0
    assert manifest(folder)["counts"]["failed"] == 1
    photograph(folder, "p03", 3)
    assert run(folder, *index("index", "--append")) == 0  # what failed needs no option
    assert is_as_made_anew(folder, labels)


def test_what_was_removed_and_relabelled_stays_so_until_it_is_updated(folder, capsys):
    later = [name for name in LABELS if name >= "p16"]
    write_labels(folder, RELABELLED, "right.csv")
    change = ("index", "--output", "index", "--remove", "p01", *later, "--relabel", "right.csv")
    assert run(folder, *change) == 0
    before = kill.contents(folder / "index")
    assert run(folder, *index("index", "--append")) == 0
    assert "5 were removed from index and stay out; --update takes them back" in capsys.readouterr().out
    assert kill.contents(folder / "index") == before
    assert run(folder, *index("index", "--append", "--update")) == 0
    assert is_as_made_anew(folder, LABELS)


def test_a_photograph_that_failed_in_a_changed_part_is_taken_up_by_adding_it(own, capsys):
    folder = own
    broken = folder / "p" / "p02.png"
    broken.write_bytes(b"")
    assert run(folder, *index("index", "--overwrite", "--max_failure_rate", "1")) == 0
    assert run(folder, "index", "--output", "index", "--remove", "p01") == 0
    photograph(folder, "p02", 2, 2)
    assert run(folder, *index("index")) == 2
    assert "photographs of index were removed or relabelled since it was made" in capsys.readouterr().err
    write_labels(folder, {k: v for k, v in LABELS.items() if k != "p01"})
    assert run(folder, *index("index", "--append")) == 0
    assert manifest(folder)["counts"]["failed"] == 0
    assert is_as_made_anew(folder, {k: v for k, v in LABELS.items() if k != "p01"})


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--remove", "p01", "nobody"], "1 of 2 ids of --remove are not in index, the first is 'nobody'"),
        (["--remove", "P01"], "'P01' is 'p01' in index"),
        (["--remove", *LABELS], "--remove names all 20 images of index"),
        (["--remove", "p01", "--images", "p"], "--images does not go with --remove"),
        (["--relabel", "other.csv"], "1 of 1 ids of --relabel are not in index, the first is 'x'"),
        (["--update"], "--images is missing"),
        (["--remove", "@none.txt"], "none.txt"),
    ],
)
def test_wrong_changes_are_refused_and_change_nothing(folder, arguments, error, capsys):
    before = kill.contents(folder / "index")
    write_labels(folder, {"x": "landmark1"}, "other.csv")
    assert run(folder, "index", "--output", "index", *arguments) != 0
    assert error in capsys.readouterr().err
    assert kill.contents(folder / "index") == before


def test_a_calibration_is_stale_and_a_run_is_another_when_the_index_was_cleaned(folder, capsys):
    tuned = ("recognize", "--images", "q", "--index", "index", "--output", "tuned", "--preset", "tuned")
    assert run(folder, "calibrate", "--index", "index") == 0 and run(folder, *tuned) == 0
    assert run(folder, "index", "--output", "index", "--remove", "p01") == 0
    assert run(folder, *tuned) == 2
    assert "is of before the index was changed" in capsys.readouterr().err
    assert run(folder, "calibrate", "--index", "index") == 0
    assert run(folder, *tuned) == 2
    assert "the index is another, or was changed since" in capsys.readouterr().err
    assert run(folder, *tuned, "--overwrite") == 0
    found = pq.read_table(folder / "tuned" / "predictions").column("candidates").to_pylist()
    assert "p01" not in {candidate["image_id"] for row in found for candidate in row}


def test_a_cleaned_index_is_whitened_without_what_was_removed(folder):
    write_labels(folder, RELABELLED, "right.csv")
    assert run(folder, "index", "--output", "index", "--remove", *REMOVED, "--relabel", "right.csv") == 0
    whiten = ("model", "whiten", "--dimensions", "4", "--index")
    assert run(folder, *whiten, "index") == 0
    write_labels(folder, CLEANED, "cleaned.csv")
    assert run(folder, *index("anew", labels="cleaned.csv")) == 0 and run(folder, *whiten, "anew") == 0
    store = FeatureStore(str(folder / "index"))
    images = [row for unit, _ in store.current() for row in store.read_images(unit).to_pylist()]
    assert {row["image_id"]: row["landmark_id"] for row in images} == CLEANED
    for unit, count in store.current():
        rows = store.read_images(unit).to_pylist()
        assert len(rows) == count
        for row in rows:
            place = FeatureLocation(unit, row["local_offset"], row["local_size"])
            assert len(store.read_local(place)) == row["local_count"]


def test_tables_of_an_audit_that_found_nothing_are_nothing_to_do(folder, capsys):
    (folder / "none.csv").write_text("id,landmark_id\n")
    assert run(folder, "index", "--output", "index", "--relabel", "none.csv", "--remove", "none.csv") == 0
    said = capsys.readouterr().out
    assert "--relabel none.csv: 0 rows" in said and "--remove none.csv: 0 rows" in said
    assert "nothing to do" in said
    assert run(folder, "index", "--output", "index", "--relabel", "none.csv", "--remove", "p01") == 0
    assert manifest(folder)["counts"]["indexed"] == 19


def test_an_id_that_a_table_repeats_is_removed_once_and_relabelled_never(folder, capsys):
    (folder / "pairs.csv").write_text("id,other_image_id,landmark_id\np01,p02,a\np01,p03,b\n")
    assert run(folder, "index", "--output", "index", "--relabel", "pairs.csv") != 0
    assert "line 3: id 'p01' stands in line 2 already" in capsys.readouterr().err
    assert run(folder, "index", "--output", "index", "--remove", "pairs.csv") == 0
    assert "1 photographs removed" in capsys.readouterr().out and manifest(folder)["counts"]["indexed"] == 19


def test_what_failed_is_removed_for_good(own, capsys):
    folder, lenient = own, ("--max_failure_rate", "1")
    (folder / "p" / "p02.png").write_bytes(b"")
    assert run(folder, *index("index", "--overwrite", *lenient)) == 0
    (folder / "right.csv").write_text("id,landmark_id\np02,other\n")
    assert run(folder, "index", "--output", "index", "--relabel", "right.csv", "--remove", "p02") == 0
    said = capsys.readouterr()
    assert "1 photographs removed" in said.out
    assert "1 of 1 photographs of --relabel failed, the first is 'p02': once mended" in said.err
    assert manifest(folder)["counts"]["failed"] == 0 and manifest(folder)["failures"] == {}
    assert info.facts(str(folder / "index"))["removed"] == 1
    photograph(folder, "p02", 2, 2)
    assert run(folder, *index("index", "--append")) == 0
    assert "1 were removed from index and stay out" in capsys.readouterr().out
    assert is_as_made_anew(folder, {k: v for k, v in LABELS.items() if k != "p02"})
    assert run(folder, *index("index", "--append", "--update")) == 0
    assert is_as_made_anew(folder, LABELS)


def test_an_update_says_what_is_no_longer_there(own, capsys):
    folder = own
    (folder / "all.txt").write_text("".join(f"{folder}/p/{name}.png\n" for name in LABELS if name > "p01"))
    write_labels(folder, {name: label for name, label in LABELS.items() if name != "p05"})
    assert run(folder, *index("index", "--append")) == 0
    assert "no longer" not in capsys.readouterr().out
    assert run(folder, *index("index", "--append", "--update")) == 0
    assert "2 of index are no longer in --images (the first is 'p00')" in capsys.readouterr().out
    assert manifest(folder)["counts"]["indexed"] == 20


# Kills


class Killed(BaseException):
    pass


COMMANDS = {
    "remove": ("--remove", *REMOVED),
    "relabel": ("--relabel", "right.csv"),
    "compact": ("--compact",),
}


def seen(folder):
    """What a reader sees of the index: label and local features by id."""
    store, found = FeatureStore(str(folder / "index")), {}
    for unit, count in store.current():
        rows = store.read_images(unit).to_pylist()
        assert len(rows) == count
        for row in rows:
            local = store.read_local(FeatureLocation(unit, row["local_offset"], row["local_size"]))
            assert len(local) == row["local_count"]
            found[row["image_id"]] = row["landmark_id"], local.descriptors.tobytes()
    return found


def kill_everywhere(folder, command, monkeypatch, moments):
    """Runs a command, killed before its n-th write or deletion for each n of `moments`, until it ends; after
    each kill the index must be as it was or as it shall be, and the same command must end with the same
    bytes.
    """
    shutil.copytree(folder / "index", folder / "kept")
    before = seen(folder)
    assert run(folder, *command) == 0
    after, contents, reached = seen(folder), kill.contents(folder / "index"), []
    write, delete = files.write_bytes, files.delete
    for moment in moments:
        shutil.rmtree(folder / "index")
        shutil.copytree(folder / "kept", folder / "index")
        left = iter(range(moment))

        def step(call, uri, *arguments, left=left):
            if next(left, None) is None:
                raise Killed(uri)
            call(uri, *arguments)

        with monkeypatch.context() as patched:
            patched.setattr(files, "write_bytes", lambda uri, data: step(write, uri, data))
            patched.setattr(files, "delete", lambda uri: step(delete, uri))
            try:
                ended = run(folder, *command) == 0
            except Killed:
                ended = False
        state = seen(folder)
        assert state in (before, after), moment
        reached.append(state == after)
        if ended:
            break
        assert run(folder, *command) == 0
        assert kill.contents(folder / "index") == contents, moment
    assert ended and reached == sorted(reached)
    return reached, before == after


@pytest.mark.parametrize("name", COMMANDS)
def test_a_killed_change_leaves_the_index_as_it_was_or_as_it_shall_be(folder, name, monkeypatch):
    write_labels(folder, RELABELLED, "right.csv")
    monkeypatch.setattr(cleaning, "augment", lambda *arguments: None)  # derived shards are written as ever
    if name == "compact":
        removed = [k for k in LABELS if k < "p12"]
        assert run(folder, "index", "--output", "index", "--remove", *removed) == 0
    command = ("index", "--output", "index", *COMMANDS[name])
    reached, same = kill_everywhere(folder, command, monkeypatch, itertools.count())
    assert len(reached) > 5 and (same if name == "compact" else not reached[0])


def test_a_killed_update_leaves_the_index_as_it_was_or_as_it_shall_be(own, monkeypatch):
    photograph(own, "p03", 1), photograph(own, "p19", 2)
    write_labels(own, {**LABELS, **RELABELLED})
    reached, _ = kill_everywhere(
        own, index("index", "--append", "--update"), monkeypatch, (1, 4, 9, 14, 19, 99)
    )
    assert not reached[0] and reached[-1]


def test_a_change_that_was_killed_for_good_is_made_by_the_same_command(folder):
    command = ("index", "--output", "index", *COMMANDS["remove"])
    program = (
        "import os, signal; from beam_pipeline import main, outputs; finish = outputs.finish\n"
        "outputs.finish = lambda *a: {} or os.kill(os.getpid(), signal.SIGKILL)\n"
        "main.main({!r})"
    )
    before = seen(folder)
    root = pathlib.Path(cleaning.__file__).parents[1]
    for done in (False, True):
        text = program.format("finish(*a)" if done else "None", list(command))
        killed = subprocess.run(
            [sys.executable, "-c", text], cwd=folder, env={**os.environ, "PYTHONPATH": str(root)}, check=False
        )
        assert killed.returncode == -9
        assert (seen(folder) == before) is not done
    assert run(folder, *command) == 0
    assert is_as_made_anew(folder, {k: v for k, v in LABELS.items() if k not in REMOVED})


def test_info_tells_of_the_cleaned_index(folder):
    write_labels(folder, {"p00": "landmark3"}, "corrected.csv")
    assert run(folder, "index", "--output", "index", "--relabel", "corrected.csv", "--remove", "p01") == 0
    found = info.facts(str(folder / "index"))
    assert found["landmarks"] == {"landmark3": 6, "landmark2": 5, "landmark0": 4, "landmark1": 4}
    assert found["photographs"]["indexed"] == 19 and found["cleaned_units"] >= 1 and found["stale"] == []
    assert any("cleaned since: 1 removed, 1 relabelled" in line for line in info.lines(found))
    assert run(folder, *index("index", "--append", "--update")) == 0
    found = info.facts(str(folder / "index"))
    assert (found["removed"], found["relabelled"]) == (0, 0)


def test_what_failed_makes_no_index_stale(own):
    (own / "all.txt").write_text((own / "all.txt").read_text() + f"{own}/p/p20.png\n")
    (own / "p" / "p20.png").write_bytes(b"no photograph")
    write_labels(own, {**LABELS, "p20": "landmark0"})
    assert run(own, *index("index", "--append", "--max_failure_rate", "1")) == 0
    (own / "p" / "p20.png").unlink()
    assert info.facts(str(own / "index"))["stale"] == []
    (own / "p" / "p19.png").unlink()
    assert info.facts(str(own / "index"))["stale"] == [
        "1 of 20 photographs looked at are not where they were, the first is 'p19'"
    ]
