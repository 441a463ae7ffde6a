"""Damaged photographs, odd names, wrong models and nonsense options: a result, a failure row, or an error
that says what is wrong.
"""

import argparse
import collections
import os
import random
import signal
import threading

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from beam_pipeline import main
from tests import tiny_models
from tests.command_line import run
from tests.survival import mutate
from transforms import patterns
from transforms.storage import tables

SMALL = ["--image_scales=1", "--score_threshold=0", "--max_local_features=50", "--direct_num_workers=1"]


def test_damaged_photographs_decode_or_say_what_is_wrong():
    outcomes = list(mutate.decode_all(range(150), seed=7, photos=None, max_seconds=120, max_megabytes=500))
    assert [outcome for outcome in outcomes if outcome.bad] == []
    counts = collections.Counter(outcome.result for outcome in outcomes)
    assert (
        set(counts) <= {"decoded", "empty_file", "not_an_image", "unsupported_format", "corrupt", "too_large"}
        and counts["decoded"] > 30
        and counts["corrupt"] > 30
    )


def test_a_hang_and_a_crash_would_be_noticed():
    decoder = mutate.Decoder()
    assert decoder.decode(b"", 100, 120)["result"] == "empty_file" and decoder.alive
    os.kill(decoder.pid, signal.SIGSTOP)
    assert decoder.decode(b"", 100, 0.1)["result"] == "VIOLATION took over 0.1 s" and not decoder.alive
    decoder = mutate.Decoder()
    os.kill(decoder.pid, signal.SIGSTOP)
    threading.Timer(0.2, os.kill, (decoder.pid, signal.SIGKILL)).start()
    assert decoder.decode(b"", 100, 120)["result"] == "VIOLATION died with -9" and not decoder.alive


def dataset(root, names, **special):
    """Photographs with these ids and labels for them, `special` ones as given; returns arguments of
    `landmarks index`.
    """
    (root / "images").mkdir()
    for seed, name in enumerate(names):
        Image.fromarray(special.get(name, tiny_models.textured(72, 88, seed))).save(
            root / "images" / f"{name}.png"
        )
    labels = pd.DataFrame({"id": list(names), "landmark_id": [f"class{n % 2}" for n in range(len(names))]})
    labels.to_csv(root / "labels.csv", index=False)
    given = ("--images", root / "images", "--labels", root / "labels.csv", "--output", root / "index")
    return ["index", *map(str, given)]


class TestNames:
    ODD = [
        "comma, and 'quote'",
        'double "quoted"',
        "ünïcödé 🗼 東京",
        "semi;colon\ttab".replace("\t", " "),
        "007",
        "1e5",
        "nan",
        "=SUM(A1)",
        "back`tick $HOME",
        "n" * 240,
        "İstanbul",
        "with.dots.in",
        "%41%2f",
        "#hash",
        "a[1]*?",
    ]

    def test_odd_ids_come_back_from_every_table(self, tmp_path):
        command = dataset(tmp_path, self.ODD)
        assert main.main([*command, *SMALL]) == 0
        given = (*command[1:3], "--index", tmp_path / "index", "--output", tmp_path / "run")
        assert run("recognize", *given, "--direct_num_workers=1") == 0
        expected = sorted(self.ODD)
        assert (
            tables.read_submission(str(tmp_path / "run" / "submission.csv"))["image_id"].to_pylist()
            == expected
        )
        assert sorted(pd.read_parquet(tmp_path / "run" / "predictions").image_id) == expected
        indexed = pd.read_parquet(tmp_path / "index" / "images")
        assert sorted(indexed.image_id) == expected
        candidates = pd.read_parquet(tmp_path / "run" / "predictions").set_index("image_id").candidates
        assert {c["image_id"] for row in candidates for c in row} <= set(expected)

    @pytest.mark.parametrize(
        "name",
        [
            b"caf\xe9.jpg",
            b"two\nlines.jpg",
            b"tab\there.jpg",
            b" leading.jpg",
            b"trailing .jpg",
            b"\x7f.jpg",
            b"caf\xe9/good.jpg",
        ],
        ids=["not utf-8", "newline", "tab", "leading space", "trailing space", "delete", "folder not utf-8"],
    )
    def test_names_that_no_table_can_carry_are_refused_up_front(self, tmp_path, name, capsys):
        path = os.path.join(os.fsencode(tmp_path), b"images", name)
        os.makedirs(os.path.dirname(path))
        with open(path, "wb") as f:
            f.write(b"x")
        with pytest.raises(patterns.MatchError, match="passed over 1 with a name that no table can carry"):
            patterns.match_images([str(tmp_path / "images")])
        with pytest.raises(patterns.MatchError, match="has a name that no table can carry"):
            patterns.match_images([os.fsdecode(path)])
        (tmp_path / "images" / "whole.jpg").write_bytes(b"x")
        for pattern in ("images", "images/**/*.jpg", "images/**"):
            said = []
            found = patterns.match_images([str(tmp_path / pattern)], said.append)
            assert [ref.image_id for ref in found.images] == ["whole"]
            assert found.passed_over == {patterns.UNWRITABLE: 1}
            assert len(said) == 1 and "rename it" in said[0]
        (tmp_path / "images" / "whole.jpg").unlink()
        (tmp_path / "labels.csv").write_text("id,landmark_id\na,b\n")
        given = ("--images", tmp_path / "images", "--labels", tmp_path / "labels.csv")
        assert run("index", *given, "--output", tmp_path / "o") == 2
        assert "rename it" in capsys.readouterr().err and not (tmp_path / "o").exists()

    def test_a_list_that_is_not_utf8(self, tmp_path):
        (tmp_path / "list.txt").write_bytes(b"a.jpg\ncaf\xe9.jpg\n")
        with pytest.raises(patterns.MatchError, match="list.txt is not UTF-8.*position 9"):
            patterns.match_images([f"@{tmp_path}/list.txt"])


class TestModels:
    @pytest.mark.parametrize(
        "kind, message",
        [(None, "holds no model"), ("nan", "fails on a test image")],
        ids=["no model", "one that breaks its contract"],
    )
    def test_a_wrong_model_stops_index_with_a_message(self, tmp_path, kind, message, capsys):
        command = dataset(tmp_path, ["a", "b"])
        model = tmp_path / "model"
        tiny_models.build(kind, model) if kind else (model.mkdir(), (model / "readme.txt").write_text("x"))
        assert main.main([*command, "--model", str(model), *SMALL]) == 1
        error = capsys.readouterr().err
        assert (
            error.startswith("landmarks: error: ")
            and str(model) in error
            and pd.Series([error]).str.contains(message).all()
        ), error
        assert not (tmp_path / "index" / "manifest.json").exists()

    def test_what_a_model_makes_of_one_photograph_is_a_failure_row(self, tmp_path):
        tiny_models.build("nan_on_white", tmp_path / "model")
        command = dataset(
            tmp_path,
            ["good", "white", "flat", "thin"],
            white=np.full((64, 64, 3), 255, np.uint8),
            flat=np.full((64, 64, 3), 90, np.uint8),
            thin=np.zeros((3, 64, 3), np.uint8),
        )
        command += ["--model", tmp_path / "model", *SMALL]
        assert run(*command, "--score_threshold=5", "--max_failure_rate=0.5") == 0
        failures = pd.read_parquet(tmp_path / "index" / "failures").set_index("image_id")
        assert failures.kind.to_dict() == {"white": "non_finite", "thin": "too_small"} and set(
            failures.stage
        ) == {"extract"}
        there = pd.read_parquet(tmp_path / "index" / "images").set_index("image_id")
        assert there.local_size.eq(0).to_dict() == {
            "flat": True,
            "good": False,
        }  # no local features are no fault

    def test_a_photograph_without_local_features_is_recognized_by_its_global_one(self, tmp_path):
        command = dataset(tmp_path, ["good", "other", "flat"], flat=np.full((64, 64, 3), 90, np.uint8))
        tiny_models.build("delg_tf2", tmp_path / "model")
        assert main.main([*command, "--model", str(tmp_path / "model"), *SMALL, "--score_threshold=5"]) == 0
        assert (
            run("recognize", *command[1:3], "--index", tmp_path / "index", "--output", tmp_path / "run") == 0
        )
        flat = pd.read_parquet(tmp_path / "run" / "predictions").set_index("image_id").loc["flat"]
        assert [c["inliers"] for c in flat.candidates] == [0, 0, 0] and flat.score > 0

    def test_outputs_of_another_width_stop_the_job(self, tmp_path, capsys):
        tiny_models.build("unstable_width", tmp_path / "model")
        command = dataset(tmp_path, ["good", "tall"], tall=tiny_models.textured(240, 64))
        assert main.main([*command, "--model", str(tmp_path / "model"), *SMALL]) == 1
        assert "1024 wide, but were 2048 before" in capsys.readouterr().err
        assert not (tmp_path / "index" / "manifest.json").exists()


PARSER = main.build_parser()


def options():
    """(command, option, action) of every option of every command that takes a value."""
    pending = [((), PARSER)]
    while pending:
        names, parser = pending.pop()
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                pending += [((*names, name), sub) for name, sub in action.choices.items()]
            elif (
                action.option_strings and action.nargs != 0 and names[0] != "plan"
            ):  # plan takes the options of the others
                yield names, action.option_strings[0], action


def arguments(command, without):
    """The command with a value for all it requires but for one option."""
    parser = PARSER
    for name in command:
        parser = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction)).choices[name]
    needed = [a for a in parser._actions if a.required]
    return [
        *command,
        *(
            x
            for a in needed
            for x in ([a.option_strings[0], "nowhere"] if a.option_strings else ["nowhere"])
            if a.option_strings[:1] != [without]
        ),
    ]


MAY_BE = {
    "0": {
        "--score_threshold",
        "--global_weight",
        "--augmented_weight",
        "--min_probability",
        "--max_failure_rate",
        "--shrinkage",
        "--min_score",
    },
    "-1": {"--score_threshold", "--min_score"},
}
CASES = [
    (command, option, action)
    for command, option, action in options()
    if not isinstance(action, argparse.BooleanOptionalAction)
]


@pytest.mark.parametrize("command, option, action", CASES, ids=[f"{' '.join(c)} {o}" for c, o, _ in CASES])
def test_nonsense_values_of_every_option_are_refused_before_anything_starts(
    tmp_path, monkeypatch, capsys, command, option, action
):
    monkeypatch.chdir(tmp_path)
    values = [""]
    if action.type or action.choices:
        values += [
            "x",
            "nan",
            "inf",
            "-inf",
            "1e999",
            "9" * 400,
            "0x10",
            "1;2",
            "½",
            *(v for v in ("0", "-1") if option not in MAY_BE[v]),
        ]
    given = arguments(command, option)
    for value in values:
        assert main.main([*given, f"{option}={value}"]) == 2, value
        assert option in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "flags, message",
    [
        (
            ["--index=here/index", "--output=here/index"],
            "--output here/index is or holds the index here/index",
        ),
        (["--index=here/index", "--output=here"], "--output here is or holds the index"),
        (
            ["--index=gs://b/index", "--output=o", "--query_store=gs://b/index/"],
            "--query_store gs://b/index/ is or holds",
        ),
    ],
    ids=["output is index", "output holds index", "query store is index"],
)
def test_options_that_do_not_go_together(flags, message, capsys):
    assert main.main(["recognize", "--images=x", *flags]) == 2
    assert message in capsys.readouterr().err


class TestTables:
    def test_a_pipe_or_a_folder_is_no_table(self, tmp_path):
        os.mkfifo(tmp_path / "pipe.csv")
        for path in (tmp_path / "pipe.csv", tmp_path):
            with pytest.raises(OSError, match="is not a regular file"):
                tables.read_labels(str(path))

    def test_damaged_tables_are_right_or_name_file_and_line(self, tmp_path):
        parts = [
            b"\xef\xbb\xbf",
            b"\xff\xfe",
            b"\r",
            b"\n",
            b"\r\n",
            b'"',
            b",",
            b" ",
            b"\0",
            b"\xff",
            b"\t",
            b";",
            b"nan",
            b"1e999",
            b"\xc2\xa0",
            "ü".encode(),
            b"id",
            b"\xe2\x80\xa8",
            b"\x1a",
            b"9" * 400,
        ]
        sound = {
            tables.read_labels: [
                b'id,landmark_id\na,1\n"c,",3\nd e,4\n',
                b"landmark_id,images\n1,a b c\n2,d\n",
                b"id,url,landmark_id\r\na,http,1\r\n",
            ],
            tables.read_truth: [b"id,landmarks,Usage\na,1 2,Public\nb,,Private\n", b"id,landmark_id\na,1\n"],
            tables.read_submission: [b"id,landmarks\na,1 0.5\nb,\nc,2 1e-3\n"],
        }
        path, read_rows = tmp_path / "table.csv", 0
        for seed in range(600):
            rng = random.Random(seed)
            read = rng.choice(list(sound))
            data = bytearray(rng.choice(sound[read]))
            for _ in range(rng.choice((1, 1, 3))):
                at = rng.randrange(len(data))
                data[at : at + rng.choice((0, 0, 1, 3))] = rng.choice((*parts, b""))
            path.write_bytes(data)
            try:
                read_rows += len(read(str(path)))
            except tables.TableError as e:
                assert str(e).startswith(f"{path}, line "), data
        assert read_rows > 100

    def test_many_rows_are_read_and_the_line_of_a_fault_is_right(self, tmp_path):
        rows = [f"{n:016x},{n % 9973}" for n in range(200_000)]
        path = tmp_path / "labels.csv"
        path.write_text("id,landmark_id\n" + "\n".join(rows) + "\n")
        assert len(tables.read_labels(str(path))) == 200_000
        rows[150_000] = rows[3]
        path.write_text("id,landmark_id\n" + "\n".join(rows) + "\n")
        with pytest.raises(
            tables.TableError,
            match=r"labels.csv, line 150002: id '0000000000000003' stands in line 5 already",
        ):
            tables.read_labels(str(path))
