"""Labels, truth, submissions and predictions: what is read, what is refused, and with which words."""

import bz2
import csv
import gzip
import io
import json
import lzma
import math

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.file_systems import FolderFileSystem
from transforms.storage import files, spelling, tables
from transforms.storage.tables import TableError

ROWS = [("a1", "7"), ("b2", "007")]

LABEL_FILES = {
    "kaggle": b"id,landmark_id\na1,7\nb2,007\n",
    "with_url": b'id,url,landmark_id\na1,"http://x/,""q""",7\nb2,None,007\n',
    "clean": b"landmark_id,images\n7,a1\n007,b2\n",
    "other_order": b"landmark_id,id\n7,a1\n007,b2\n",
    "further_columns": b"x,id,landmark_id,y\n,a1,7,\n1,b2,007,2\n",
    "byte_order_mark": b"\xef\xbb\xbfid,landmark_id\na1,7\nb2,007\n",
    "quoted_after_mark": b'\xef\xbb\xbf"id","landmark_id"\n"a1","7"\n"b2","007"\n',
    "crlf": b"id,landmark_id\r\na1,7\r\nb2,007\r\n",
    "old_mac": b"id,landmark_id\ra1,7\rb2,007\r",
    "no_last_line_end": b"id,landmark_id\na1,7\nb2,007",
    "spaces": b" id , landmark_id \n a1\t, 7\n  b2,007  \n",
    "labels_and_paths": b"path,label\nx/y/a1.jpg,7\n./b2.png,007\n",
    "names_of_files": b"file_name,landmark_id\nx/a1.jpg,7\nb2.png,007\n",
    "ids_beside_paths": b"path,id,label\nx/1.jpg,a1,7\nx/2.jpg,b2,007\n",
    "quotes_after_spaces": b'id, "landmark_id"\na1, "7"\n "b2" , "007" \n',
    "commas_in_quotes_after_spaces": b'id, note, landmark_id\na1, "x, y", 7\nb2, , 007\n',
    "blank_lines": b"\nid,landmark_id\n\na1,7\n   \nb2,007\n\n",
    "case_of_names": b"ID,Landmark_ID\na1,7\nb2,007\n",
    "semicolons": b"id;landmark_id\r\na1;7\r\nb2;007\r\n",
    "semicolons_with_commas_in_values": b'id;note;landmark_id\na1;x, y;7\n"b2";;007\n',
    "tabs": b"id\tlandmark_id\na1\t7\nb2\t007\n",
    "bars": b"id|landmark_id\na1|7\nb2|007\n",
    "columns_without_names": b"id,landmark_id,,\na1,7,,\nb2,007,,\n",
    "gzip": gzip.compress(b"id,landmark_id\na1,7\nb2,007\n"),
    "bzip2": bz2.compress(b"id,landmark_id\na1,7\nb2,007\n"),
    "xz": lzma.compress(b"id,landmark_id\na1,7\nb2,007\n"),
    "utf16": "id,landmark_id\na1,7\nb2,007\n".encode("utf-16"),
    "utf16_big_endian_with_tabs": b"\xfe\xff" + "id\tlandmark_id\na1\t7\nb2\t007\n".encode("utf-16-be"),
    "utf32": "id,landmark_id\na1,7\nb2,007\n".encode("utf-32"),
    "utf16_in_gzip": gzip.compress("id;landmark_id\na1;7\nb2;007\n".encode("utf-16")),
}


def write(tmp_path, data, name="table.csv"):
    path = tmp_path / name
    path.write_bytes(data)
    return str(path)


def rows(table):
    return list(zip(*(column.to_pylist() for column in table.columns)))


@pytest.mark.parametrize("data", LABEL_FILES.values(), ids=LABEL_FILES)
def test_labels_are_read_in_every_form(tmp_path, data):
    table = tables.read_labels(write(tmp_path, data))
    assert table.schema == tables.LABEL_SCHEMA
    assert rows(table) == ROWS


def test_clean_labels_list_several_images(tmp_path):
    table = tables.read_labels(write(tmp_path, b"landmark_id,images\n7,a1  a2 \n9,b1\n"))
    assert rows(table) == [("a1", "7"), ("a2", "7"), ("b1", "9")]


def test_image_ids_may_hold_spaces_and_commas(tmp_path):
    table = tables.read_labels(write(tmp_path, 'id,landmark_id\n"IMG 1, copy",Zürich\n'.encode()))
    assert rows(table) == [("IMG 1, copy", "Zürich")]


BAD_LABELS = {
    "empty_file": (b"", "line 1: the file is empty"),
    "only_line_ends": (b"\n\n", "the file is empty"),
    "header_alone": (b"id,landmark_id\n", "line 1: there are no rows below the header"),
    "no_header": (
        b"a1,7\nb2,8\n",
        "line 1: columns 'a1,7', where id,landmark_id or path,landmark_id or landmark_id,images is expected",
    ),
    "missing_column": (b"id,place\na1,7\n", "line 1: columns 'id,place', where id,landmark_id"),
    "doubled_column": (
        b"id,landmark_id,ID\na1,7,b\n",
        "line 1: column 'id' stands twice in 'id,landmark_id,id'",
    ),
    "doubled_id": (b"id,landmark_id\na1,7\nb2,7\n\na1,8\n", "line 5: id 'a1' stands in line 2 already"),
    "doubled_id_in_lists": (
        b"landmark_id,images\n7,a1 a2\n9,b1\n8,a2\n",
        "line 4: id 'a2' stands in line 2 already",
    ),
    "same_row_twice": (b"id,landmark_id\na1,7\na1,7\n", "line 3: id 'a1' stands in line 2 already"),
    "empty_id": (b"id,landmark_id\na1,7\n  ,8\n", "line 3: id '' is empty"),
    "empty_label": (b"id,landmark_id\na1,\n", "line 2: landmark_id '' is empty"),
    "empty_images": (b"landmark_id,images\n7, \n", "line 2: images '' is empty"),
    "too_many_values": (
        b"id,landmark_id\na1,7\nb2,8,9\n",
        "line 3: 3 values where the header has 2: 'b2,8,9'",
    ),
    "too_few_values": (b'id,landmark_id\n"a1","7"\r\nb2\n', "line 3: 1 values where the header has 2: 'b2'"),
    "open_quote": (
        b'id,landmark_id\na1,7\nb2,"8\nc3,9\n',
        r"line 3: landmark_id '8\nc3,9\n' holds a line end (a quote left open?)",
    ),
    "open_quote_in_another_column": (
        b'id,landmark_id,note\na1,7,\nb2,8,"x\nc3,9,\n',
        r"line 3: note 'x\nc3,9,\n' holds a line end",
    ),
    "quoted_line_end_before": (
        b'id,url,landmark_id\na1,"x\ny",7\nb2,z,\n',
        "line 4: landmark_id '' is empty",
    ),
    "not_utf8": (
        "id,landmark_id\na1,7\nb2,Zürich\n".encode("latin-1"),
        r"line 3: not UTF-8: b'b2,Z\xfcrich\n'",
    ),
    "cut_gzip": (gzip.compress(b"id,landmark_id\na1,7\n", mtime=0)[:-9], "cannot be unpacked or decoded"),
    "cut_utf16": ("id,landmark_id\na1,7\n".encode("utf-16")[:-1], "cannot be unpacked or decoded"),
    "spreadsheet": (b"PK\x03\x04rest", "line 1: it is a zip archive or a spreadsheet; a CSV is expected"),
    "parquet": (b"PAR1rest", "line 1: it is a Parquet file, whose name would end in .parquet; a CSV is"),
    "doubled_name_of_a_path": (
        b"path,label\na/1.jpg,7\nb/1.jpg,7\n",
        "line 3: id '1' stands in line 2 already",
    ),
    "semicolons_with_a_wrong_row": (b"id;landmark_id\na1,7\n", "line 2: 1 values where the header has 2"),
    "semicolons_without_the_columns": (b"id;place\na1;7\n", "columns 'id;place', where id,landmark_id"),
    "not_utf8_and_too_few_values": (b"id,landmark_id\na1,7\n\xff\xfe\n", "line 3: not UTF-8"),
    "long_value": (b"id,landmark_id\n" + b"x" * 1000 + b",\n", "line 2: landmark_id '' is empty"),
}


@pytest.mark.parametrize("data, text", BAD_LABELS.values(), ids=BAD_LABELS)
def test_wrong_labels_name_file_line_and_value(tmp_path, data, text):
    path = write(tmp_path, data)
    with pytest.raises(TableError) as error:
        tables.read_labels(path)
    assert str(error.value).startswith(path + ", line ")
    assert text in str(error.value)


def test_long_values_are_cut_in_errors(tmp_path):
    path = write(tmp_path, b"id,landmarks\n" + b"a,1 " + b"9" * 500 + b"x\n")
    with pytest.raises(TableError) as error:
        tables.read_submission(path)
    assert len(str(error.value)) < len(path) + 150


@pytest.mark.parametrize("packed", [False, True])
def test_the_threads_of_arrow_are_given_no_file_of_pythons(tmp_path, monkeypatch, packed):
    sources = []
    read = tables.pacsv.read_csv
    monkeypatch.setattr(
        tables.pacsv, "read_csv", lambda source, *args: sources.append(source) or read(source, *args)
    )
    content = LABEL_FILES["kaggle"]
    (tmp_path / "labels.csv").write_bytes(gzip.compress(content) if packed else content)
    assert len(tables.read_labels(str(tmp_path / "labels.csv"))) == len(ROWS)
    assert [isinstance(s, pa.NativeFile) and not isinstance(s, pa.PythonFile) for s in sources] == [True]


def test_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(OSError, match="absent.csv"):
        tables.read_labels(str(tmp_path / "absent.csv"))


def test_truth_with_usage(tmp_path):
    path = write(tmp_path, b"id,landmarks,Usage\na,1 2,Public\nb,,Private\nc,,Ignored\nd,2,Private\n")
    table = tables.read_truth(path)
    assert table.schema == tables.TRUTH_SCHEMA
    assert rows(table) == [
        ("a", ["1", "2"], "Public"),
        ("b", [], "Private"),
        ("c", [], "Ignored"),
        ("d", ["2"], "Private"),
    ]


@pytest.mark.parametrize("header", [b"id,landmarks", b"id,landmark_id", b"id,url,landmark_id"])
def test_truth_without_usage_is_public(tmp_path, header):
    gap = b",x" if b"url" in header else b""
    path = write(tmp_path, header + b"\na" + gap + b",7\nb" + gap + b",\n")
    assert rows(tables.read_truth(path)) == [("a", ["7"], "Public"), ("b", [], "Public")]


BAD_TRUTHS = {
    "usage": (
        b"id,landmarks,Usage\na,1,Public\nb,1,public\n",
        "line 3: usage 'public' is none of Public, Private, Ignored",
    ),
    "empty_usage": (b"id,landmarks,Usage\na,1,\n", "line 2: usage '' is none of"),
    "doubled_id": (b"id,landmarks\na,1\na,2\n", "line 3: id 'a' stands in line 2 already"),
    "no_rows": (b"id,landmarks,Usage\n", "there are no rows"),
    "columns": (b"id,truth\na,1\n", "columns 'id,truth', where id,landmarks or id,landmark_id is expected"),
}


SCORES = [
    "0.1",
    "-3",
    "+2.5",
    "1e-84",
    "4.9e-324",
    "1.7976931348623157e308",
    "0.30000000000000004",
    ".5",
    "5.",
    "1E5",
    "-0.0",
]


@pytest.mark.parametrize("score", SCORES)
def test_every_finite_score_is_read_exactly(tmp_path, score):
    [(_, landmark_id, value)] = rows(
        tables.read_submission(write(tmp_path, f"id,landmarks\na,12  {score} \n".encode()))
    )
    assert (landmark_id, value, math.copysign(1, value)) == (
        "12",
        float(score),
        math.copysign(1, float(score)),
    )


def test_submission_with_empty_predictions(tmp_path):
    table = tables.read_submission(write(tmp_path, b"id,landmarks\nb,\na,007 1.5\nc,  \nd,x -1\n"))
    assert table.schema == tables.ANSWER_SCHEMA
    assert rows(table) == [("b", None, None), ("a", "007", 1.5), ("c", None, None), ("d", "x", -1.0)]


def test_submission_of_nothing(tmp_path):
    assert tables.read_submission(write(tmp_path, b"id,landmarks\n")).num_rows == 0


BAD_SUBMISSIONS = {
    "score_missing": (b"id,landmarks\na,1 0.5\nb,12\n", "line 3: landmarks '12' is not a class and a score"),
    "two_predictions": (
        b"id,landmarks\na,1 0.5 2 0.4\n",
        "line 2: landmarks '1 0.5 2 0.4' is not a class and a score",
    ),
    "score_no_number": (
        b"id,landmarks\nx,\na,1 high\n",
        "line 3: score 'high' is not a finite decimal number",
    ),
    "score_nan": (b"id,landmarks\na,1 nan\n", "line 2: score 'nan' is not a finite"),
    "score_inf": (b"id,landmarks\na,1 -inf\n", "line 2: score '-inf' is not a finite"),
    "score_overflow": (b"id,landmarks\na,1 1e999\n", "line 2: score '1e999' is not a finite"),
    "score_underscore": (b"id,landmarks\na,1 1_0\n", "line 2: score '1_0' is not a finite"),
    "score_hex": (b"id,landmarks\na,1 0x1p3\n", "line 2: score '0x1p3' is not a finite"),
    "doubled_id": (b"id,landmarks\na,\nb,\na,1 2\n", "line 4: id 'a' stands in line 2 already"),
    "empty_id": (b"id,landmarks\n,1 0.5\n", "line 2: id '' is empty"),
    "labels": (b"id,landmark_id\na,1\n", "where id,landmarks is expected"),
}


@pytest.mark.parametrize(
    "read, data, text",
    [
        *((tables.read_truth, *case) for case in BAD_TRUTHS.values()),
        *((tables.read_submission, *case) for case in BAD_SUBMISSIONS.values()),
        (tables.read_names, b"landmark_id,name\n7,a\n7,b\n", "line 3: id '7' stands in line 2 already"),
        (tables.read_ids, b"id\n7\n7\n", "line 3: id '7' stands in line 2 already"),
    ],
    ids=[
        *(f"truth, {name}" for name in BAD_TRUTHS),
        *BAD_SUBMISSIONS,
        "names, doubled_id",
        "ids, doubled_id",
    ],
)
def test_other_wrong_tables(tmp_path, read, data, text):
    with pytest.raises(TableError) as error:
        read(write(tmp_path, data))
    assert text in str(error.value)


def answers(*prediction_rows):
    columns = list(zip(*prediction_rows)) or [[], [], []]
    return pa.Table.from_arrays(
        [pa.array(c, f.type) for c, f in zip(columns, tables.ANSWER_SCHEMA)], schema=tables.ANSWER_SCHEMA
    )


def test_submission_is_written_sorted(tmp_path):
    path = str(tmp_path / "deep" / "submission.csv")
    tables.write_submission_csv(
        path, answers(("b", "7", 0.1 + 0.2), ("é", "x", -1e-300), ("B", None, None), ('a,"', "1", 2.0))
    )
    with open(path, "rb") as f:
        assert f.read().decode() == 'id,landmarks\nB,\n"a,""",1 2.0\nb,7 0.30000000000000004\né,x -1e-300\n'


@pytest.mark.parametrize("landmark_id, score", [("", 1.0), ("7", math.nan), ("7", math.inf), ("7", None)])
def test_what_could_not_be_read_back_is_not_written(tmp_path, landmark_id, score):
    path = tmp_path / "submission.csv"
    with pytest.raises(ValueError, match="prediction of image b: class '.*' with score .* cannot be written"):
        tables.write_submission_csv(str(path), answers(("a", None, None), ("b", landmark_id, score)))
    assert not path.exists()


words = st.text(st.characters(codec="utf-8", exclude_categories=("Z", "C")), min_size=1, max_size=5)
texts = st.text(st.sampled_from('a %20,"é\u00a0\u2003\U0001f600'), min_size=1, max_size=8)
finite = st.floats(allow_nan=False, allow_infinity=False)


@given(st.dictionaries(words, st.none() | st.tuples(words | texts, finite), max_size=8))
def test_written_submissions_are_read_back_exactly(tmp_path_factory, predictions):
    table = answers(*((i, *(p or (None, None))) for i, p in predictions.items()))
    path = str(tmp_path_factory.mktemp("round") / "submission.csv")
    tables.write_submission_csv(path, table)
    assert rows(tables.read_submission(path)) == rows(table.sort_by("image_id"))


@given(
    st.lists(st.tuples(words, words), min_size=1, max_size=8, unique_by=lambda row: row[0]),
    st.sampled_from(["\n", "\r\n", "\r"]),
)
def test_labels_agree_with_the_csv_module(tmp_path_factory, labels, line_end):
    text = io.StringIO()
    writer = csv.writer(text, lineterminator=line_end, quoting=csv.QUOTE_ALL)
    writer.writerows([("id", "landmark_id"), *labels])
    path = tmp_path_factory.mktemp("labels") / "labels.csv"
    path.write_bytes(text.getvalue().encode())
    assert rows(tables.read_labels(str(path))) == labels


def test_no_character_makes_two_words_of_one():
    characters = [chr(code) for code in range(1 << 16) if not 0xD800 <= code < 0xE000]
    split = pc.utf8_split_whitespace(pa.array([f"a{c}b" for c in characters]))
    parted = pc.greater(pc.list_value_length(split), 1).to_pylist()
    spaces = [c for c, is_parted in zip(characters, parted) if is_parted]
    assert {" ", "\t", "\u00a0", "\u3000"} < {*spaces}
    encoded = pa.array([spelling.word_of(f"a{c}b") for c in spaces])
    assert pc.max(pc.list_value_length(pc.utf8_split_whitespace(encoded))).as_py() == 1
    assert [spelling.text_of(word) for word in encoded.to_pylist()] == [f"a{c}b" for c in spaces]
    for plain in ("7", "100%", "50%_off", "%ff"):
        assert spelling.text_of(spelling.word_of(plain)) == plain == spelling.text_of(plain)


def test_landmarks_of_several_words_are_written_as_one_each_and_read_back(tmp_path):
    path = tmp_path / "submission.csv"
    tables.write_submission_csv(str(path), answers(("a", "Eiffel Tower, Paris", 0.5), ("b", "50%20", 1.0)))
    assert path.read_text() == 'id,landmarks\na,"Eiffel%20Tower,%20Paris 0.5"\nb,50%2520 1.0\n'
    assert rows(tables.read_submission(str(path))) == [("a", "Eiffel Tower, Paris", 0.5), ("b", "50%20", 1.0)]
    data = b'id,landmark_id\na,"Eiffel Tower, Paris"\nb,50%20\nc,\n'
    labels = tables.read_labels(write(tmp_path, data.replace(b"c,\n", b"")))
    assert rows(labels) == [("a", "Eiffel Tower, Paris"), ("b", "50%20")]
    truth = [("a", ["Eiffel Tower, Paris"], "Public"), ("b", ["50%20"], "Public"), ("c", [], "Public")]
    assert rows(tables.read_truth(write(tmp_path, data))) == truth
    listed = b'id,landmarks\na,"Eiffel%20Tower,%20Paris 7"\nb,50%2520\n'
    assert rows(tables.read_truth(write(tmp_path, listed))) == [
        ("a", ["Eiffel Tower, Paris", "7"], "Public"),
        ("b", ["50%20"], "Public"),
    ]


def test_paths_are_ids_where_ids_are_paths(tmp_path):
    path = write(tmp_path, b"id,path,label\n1,./x/a.jpg,7\n2,x y/b.jpg,7\n")
    assert rows(tables.read_labels(path, "path")) == [("x/a.jpg", "7"), ("x y/b.jpg", "7")]
    assert rows(tables.read_labels(path)) == [("1", "7"), ("2", "7")]
    path = write(tmp_path, b"id,landmark_id\nx/a.jpg,7\n")
    assert rows(tables.read_labels(path, "path")) == [("x/a.jpg", "7")]


ARROW_LABELS = {
    "text": {"id": ["a1", "b2"], "landmark_id": ["7", "007"], "further": [1, 2]},
    "spaces": {"ID": [" a1", "b2\t"], "Landmark_ID": ["7", "007 "]},
    "lists": {"landmark_id": ["7", "007"], "images": ["a1", "b2"]},
    "large_text": {
        "id": pa.array(["a1", "b2"], pa.large_string()),
        "label": pa.array(["7", "007"], pa.string()),
    },
    "dictionary": {"path": ["x/a1.png", "b2.jpg"], "label": pa.array(["7", "007"]).dictionary_encode()},
    "images": {
        "image": pa.array([{"bytes": b"x" * 9, "path": f"{name}.jpg"} for name in ("p/a1", "b2")]),
        "label": ["7", "007"],
    },
}


@pytest.mark.parametrize("columns", ARROW_LABELS.values(), ids=ARROW_LABELS)
def test_labels_are_read_from_parquet(tmp_path, columns):
    pq.write_table(pa.table(columns), tmp_path / "labels.parquet", row_group_size=1)
    table = tables.read_labels(str(tmp_path / "labels.parquet"))
    assert table.schema == tables.LABEL_SCHEMA and rows(table) == ROWS


def test_numbers_are_labels_and_stand_for_names_where_the_file_says_so(tmp_path):
    path, table = tmp_path / "labels.parquet", pa.table({"id": [12, 3], "label": [1, 0]})
    pq.write_table(table, path)
    assert rows(tables.read_labels(str(path))) == [("12", "1"), ("3", "0")]
    features = {"label": {"names": ["Louvre", "Eiffel Tower"], "_type": "ClassLabel"}}
    said = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(table.replace_schema_metadata(said), path)
    assert rows(tables.read_labels(str(path))) == [("12", "Eiffel Tower"), ("3", "Louvre")]
    pq.write_table(pa.table({"id": [1], "landmarks": ["7 8%209"], "Usage": ["Private"]}), path)
    assert rows(tables.read_truth(str(path))) == [("1", ["7", "8 9"], "Private")]


BAD_PARQUETS = {
    "columns": ({"id": ["a"], "place": ["x"]}, r"columns 'id,place', where id,landmark_id or path,"),
    "doubled": ({"id": ["a", "b", "a"], "landmark_id": ["1"] * 3}, "row 3: id 'a' stands in row 1 already"),
    "null": ({"id": ["a", "b"], "landmark_id": ["1", None]}, "row 2: landmark_id '' is empty"),
    "line_end": ({"id": ["a"], "landmark_id": ["1\n2"]}, r"row 1: landmark_id .* holds a line end"),
    "fraction": ({"id": ["a"], "landmark_id": [1.5]}, "column landmark_id is double, where text or"),
    "no_rows": (
        {"id": pa.array([], pa.string()), "landmark_id": pa.array([], pa.string())},
        "there are no rows",
    ),
    "two_columns": ({"id": ["a"], "ID": ["b"], "landmark_id": ["1"]}, "column 'id' stands twice"),
}


@pytest.mark.parametrize("columns, text", BAD_PARQUETS.values(), ids=BAD_PARQUETS)
def test_wrong_parquet_names_file_row_and_value(tmp_path, columns, text):
    pq.write_table(pa.table(columns), tmp_path / "labels.parquet")
    with pytest.raises(TableError, match=text) as error:
        tables.read_labels(str(tmp_path / "labels.parquet"))
    assert str(error.value).startswith(f"{tmp_path}/labels.parquet")


def test_what_is_no_parquet_is_named(tmp_path):
    for data in (b"", b"PAR1rest", b"id,landmark_id\na,1\n"):
        with pytest.raises(TableError, match=r"x.PARQUET is no whole Parquet file"):
            tables.read_labels(write(tmp_path, data, "x.PARQUET"))
    with pytest.raises(FileNotFoundError):
        tables.read_labels(str(tmp_path / "absent.parquet"))


def test_parquet_elsewhere_is_read_by_range(tmp_path, monkeypatch):
    column = pa.array([{"bytes": bytes([n]) * 100_000, "path": f"{n}.jpg"} for n in range(20)])
    pq.write_table(pa.table({"image": column, "label": [str(n) for n in range(20)]}), tmp_path / "x.parquet")
    FolderFileSystem.use(tmp_path, monkeypatch)
    read, real = [], files.read_bytes
    monkeypatch.setattr(files, "read_bytes", lambda *given: read.append(given) or real(*given))
    assert len(tables.read_labels("folder://x.parquet")) == 20
    assert 0 < sum(size for _, _, size in read) < 200_000


def write_run(folder, *shards):
    (folder / "predictions").mkdir(parents=True)
    for i, table in enumerate(shards):
        pq.write_table(table, folder / "predictions" / f"{i}.parquet")
    return str(folder)


def test_predictions_of_a_run_and_of_its_csv_are_the_same(tmp_path):
    first, second = answers(("a", "1", 0.5), ("c", None, None)), answers(("b", "2", 1e-84))
    run = write_run(
        tmp_path / "run", first.append_column("candidates", pa.array([[], []], pa.list_(pa.string()))), second
    )
    path = str(tmp_path / "submission.csv")
    tables.write_submission_csv(path, tables.read_answers(run))
    assert tables.read_answers(run).sort_by("image_id").equals(tables.read_answers(path))


BAD_SHARDS = {
    "no_score": (answers(("a", "1", None)), r"0.parquet, row 0: score None of image a is not finite"),
    "nan": (
        answers(("a", None, None), ("b", "1", math.nan)),
        r"0.parquet, row 1: score nan of image b is not finite",
    ),
    "missing_column": (
        answers(("a", "1", 0.5)).drop_columns(["score"]),
        "0.parquet: no table of predictions: .*score",
    ),
    "other_type": (
        pa.table({"image_id": ["a"], "landmark_id": ["1"], "score": ["x"]}),
        "0.parquet: no table of predictions",
    ),
    "null_id": (
        pa.table({"image_id": pa.array([None], pa.string()), "landmark_id": ["1"], "score": [1.0]}),
        "0.parquet: no table of predictions",
    ),
}


@pytest.mark.parametrize("table, text", BAD_SHARDS.values(), ids=BAD_SHARDS)
def test_wrong_shards(tmp_path, table, text):
    with pytest.raises(TableError, match=text):
        tables.read_answers(write_run(tmp_path / "run", table))


def test_truncated_shard(tmp_path):
    run = write_run(tmp_path / "run", answers(("a", "1", 0.5)))
    shard = tmp_path / "run" / "predictions" / "0.parquet"
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(TableError, match="0.parquet: no table of predictions"):
        tables.read_answers(run)


def test_image_in_two_shards(tmp_path):
    with pytest.raises(TableError, match="run: image a is predicted twice"):
        tables.read_answers(write_run(tmp_path / "run", answers(("a", "1", 0.5)), answers(("a", "2", 0.5))))


def test_folder_without_predictions(tmp_path):
    with pytest.raises(TableError, match="neither a run with predictions/.*.parquet nor a .csv file"):
        tables.read_answers(str(tmp_path))


def test_names_of_landmarks(tmp_path):
    data = 'landmark_id,name\n7,"Rialto, Venice"\n007, \n8,<b>\u001b[31mred\u202e\n'.encode()
    assert tables.read_names(write(tmp_path, data)) == {"7": "Rialto, Venice", "8": "<b>[31mred"}


def test_names_from_the_categories_of_google_landmarks(tmp_path):
    data = (
        b"landmark_id,category\n"
        b'0,"http://commons.wikimedia.org/wiki/Category:Happy_Valley_Racecourse,_Shatin"\n'
        b"1,//commons.wikimedia.org/wiki/Category:Caf%C3%A9_A/B\n2,Tower\n"
    )
    assert tables.read_names(write(tmp_path, data)) == {
        "0": "Happy Valley Racecourse, Shatin",
        "1": "Café A/B",
        "2": "Tower",
    }
