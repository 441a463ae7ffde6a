"""Tables that people bring and take away: labels, truth, submissions. Strict, and fast for millions of rows.

Tables lie on any file system that Beam knows: Parquet where the name ends so, else CSV. That is UTF-8, or
UTF-16 or UTF-32 with a byte order mark, perhaps compressed by gzip, bzip2 or xz; with commas, or with
semicolons, tabs or bars where those alone give the columns wanted; with any line ends, with or without
quotes. Columns stand in any order; their names are matched without regard to case, further ones are ignored,
and space around a name or value is dropped.
Whatever else is odd is a `TableError` that names file, line and value: a wrong label costs more than a
stopped job.

Ids are strings and keep their text: "007" is not "7". Where spaces separate landmarks, in the column
`landmarks`, an id that holds some is written with %20 for each (`spelling.word_of`).
"""

import bz2
import codecs
import csv
import errno
import gzip
import io
import itertools
import json
import lzma
import os
import re
import urllib.parse
import zlib
from collections.abc import Iterator, Sequence
from typing import BinaryIO, NoReturn, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from transforms.arrays.scoring import best_landmarks
from transforms.storage import files, spelling
from transforms.storage.parquet_images import columns_of, row_name
from transforms.storage.uris import image_id_of

LABEL_SCHEMA = pa.schema(
    [pa.field("image_id", pa.string(), False), pa.field("landmark_id", pa.string(), False)]
)

USAGES = ("Public", "Private", "Ignored")

TRUTH_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), False),
        pa.field("landmark_ids", pa.list_(pa.string()), False),
        pa.field("usage", pa.string(), False),
    ]
)

ANSWER_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), False),
        pa.field("landmark_id", pa.string()),
        pa.field("score", pa.float64()),
    ]
)

BEST_LANDMARKS = 5

SCORED_LANDMARKS = [f"candidates.list.element.{name}" for name in ("landmark_id", "score")]
"""Columns of a run's predictions that `best_of_candidates` needs."""

_BLOCK_BYTES = 8 << 20  # the longest record that can be read
_COMPRESSIONS = {b"\x1f\x8b": gzip.decompress, b"BZh": bz2.decompress, b"\xfd7zXZ\0": lzma.decompress}
_CODECS = {  # in this order: UTF-16's mark begins UTF-32's
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_NO_TABLES = {
    b"PK\x03\x04": "a zip archive or a spreadsheet",
    b"\xd0\xcf\x11\xe0": "a spreadsheet",
    b"PAR1": "a Parquet file, whose name would end in .parquet",
    b"\x28\xb5\x2f\xfd": "compressed by zstd",
    b"SQLite": "a database",
    b"%PDF": "a PDF",
}
_DELIMITERS = (",", ";", "\t", "|")

# What others call columns, and what they are here.
_ALSO = {"file_name": "path", "image.path": "path", "label": "landmark_id"}

_DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)

_Column: TypeAlias = pa.Array | pa.ChunkedArray


class TableError(ValueError):
    """A table that cannot be used as it stands; the text names the file, the line and the value."""


def read_labels(uri: str, image_ids: str = "name", may_be_empty: bool = False) -> pa.Table:
    """Reads which landmark each index image shows.

    The columns are `id,landmark_id` (Kaggle's train.csv, GLDv2's with its `url`), `path,landmark_id`, or
    `landmark_id,images`, where images are ids with spaces between them (GLDv2's train_clean.csv). `file_name`
    and `label` stand for `path` and `landmark_id`, and in Parquet so do the paths of a column of images.

    Args:
      image_ids: what the ids are, see `patterns.match_images`: of a path the file's name, or all of it.
      may_be_empty: whether a table without rows is none that is wrong.

    Returns:
      a table of LABEL_SCHEMA, in the order of the file.

    Raises:
      TableError: a column is missing or doubled, a value is empty, an image has two rows, there is no row, or
        the file is no UTF-8 CSV and no whole Parquet.
      OSError: the file cannot be read.
    """
    forms = [("id", "landmark_id"), ("path", "landmark_id")]
    table = _read(uri, [*(forms if image_ids == "name" else forms[::-1]), ("landmark_id", "images")])
    landmarks = table.filled("landmark_id")
    if "images" in table.columns:
        lists = pc.utf8_split_whitespace(table.filled("images"))
        ids, rows = pc.list_flatten(lists), pc.list_parent_indices(lists)
        landmarks = pc.take(landmarks, rows)
        table.refuse_duplicates(ids, rows.to_numpy())
    else:
        ids = table.filled("id" if "id" in table.columns else "path")
        if "path" in table.columns:
            short = image_id_of if image_ids == "name" else (lambda path: path.removeprefix("./"))
            ids = pa.array(map(short, ids.to_pylist()), pa.string())
        table.refuse_duplicates(ids)
    if not may_be_empty:
        table.require_rows()
    return pa.Table.from_arrays([ids, landmarks], schema=LABEL_SCHEMA)


def read_truth(uri: str) -> pa.Table:
    """Reads which landmarks each query shows: `id,landmarks,Usage`, or the labels' form `id,landmark_id`.

    `landmarks` are classes with spaces between them, `landmark_id` is one; either is empty for a query
    without a landmark. Usage is Public, Private or Ignored; without that column every query is Public.

    Returns:
      a table of TRUTH_SCHEMA, in the order of the file.

    Raises:
      TableError: a column is missing or doubled, an id is empty or doubled, a Usage is none of the three,
        there is no row, or the file is no UTF-8 CSV.
      OSError: the file cannot be read.
    """
    table = _read(uri, [("id", "landmarks"), ("id", "landmark_id")], optional="usage")
    ids = table.filled("id")
    table.refuse_duplicates(ids)
    table.require_rows()
    if "landmarks" in table.columns:
        text = table.columns["landmarks"]
        lists = pc.utf8_split_whitespace(text)
        words, counts = _landmarks_of(lists.flatten()), pc.list_value_length(lists).to_numpy()
    else:
        words = text = table.columns["landmark_id"]
        counts = np.ones(len(text), np.int64)
    # An empty text splits into one empty word; such a query has no class.
    counts = counts * pc.not_equal(text, "").to_numpy(zero_copy_only=False)
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32())
    landmarks = pa.ListArray.from_arrays(offsets, words.filter(pc.not_equal(words, "")))
    usage = table.columns.get("usage")
    if usage is None:
        usage = pa.repeat(pa.scalar(USAGES[0]), len(ids))
    else:
        table.refuse(pc.invert(pc.is_in(usage, pa.array(USAGES))), "usage", f"is none of {', '.join(USAGES)}")
    return pa.Table.from_arrays([ids, landmarks, usage], schema=TRUTH_SCHEMA)


def read_names(uri: str) -> dict[str, str]:
    """Reads what landmarks are called: `landmark_id,name`, or `landmark_id,category` (GLDv2's
    train_label_to_category.csv, whose category is an address of Wikimedia Commons).

    Names are for people: characters that show nothing, such as a terminal's control codes, are dropped, and a
    landmark with an empty name has none.

    Raises:
      TableError: a column is missing or doubled, an id is empty or doubled, or the file is no UTF-8 CSV.
      OSError: the file cannot be read.
    """
    table = _read(uri, [("landmark_id", "name"), ("landmark_id", "category")])
    ids = table.filled("landmark_id")
    table.refuse_duplicates(ids)
    names = table.columns["name" if "name" in table.columns else "category"].to_pylist()
    if "name" not in table.columns:
        names = [urllib.parse.unquote(name.rpartition("/Category:")[2]).replace("_", " ") for name in names]
    shown = ("".join(filter(str.isprintable, name)).strip() for name in names)
    return {landmark_id: name for landmark_id, name in zip(ids.to_pylist(), shown) if name}


def read_submission(uri: str) -> pa.Table:
    """Reads a submission, `id,landmarks` with landmarks = `<class> <score>` or empty; see
    `write_submission_csv`.

    Returns:
      a table of ANSWER_SCHEMA, in the order of the file; landmark_id and score are null where the prediction
      is empty.

    Raises:
      TableError: a column is missing or doubled, an id is empty or doubled, a prediction is not a class and a
        finite decimal number, or the file is no UTF-8 CSV.
      OSError: the file cannot be read.
    """
    table = _read(uri, [("id", "landmarks")])
    ids = table.filled("id")
    table.refuse_duplicates(ids)
    text = table.columns["landmarks"]
    given = pc.not_equal(text, "")
    lists = pc.utf8_split_whitespace(text)
    table.refuse(
        pc.and_(given, pc.not_equal(pc.list_value_length(lists), 2)),
        "landmarks",
        "is not a class and a score",
    )
    rows = pc.indices_nonzero(given)
    pairs = pc.take(lists, rows)
    scores = np.zeros(len(ids))
    scores[rows.to_numpy()] = _parse_scores(table, pc.list_element(pairs, 1), rows.to_numpy())
    missing = ~given.to_numpy(zero_copy_only=False)
    positions = np.cumsum(~missing) - 1
    classes = pc.take(_landmarks_of(pc.list_element(pairs, 0)), pa.array(positions, mask=missing))
    return pa.Table.from_arrays([ids, classes, pa.array(scores, mask=missing)], schema=ANSWER_SCHEMA)


def read_ids(uri: str, any_rows: bool = False) -> pa.Array:
    """Reads the column `id` of a table, such as sample_submission.csv, in the order of the file; string [N].
    With `any_rows` there may be none, and an id may have several, as in a table of pairs.

    Raises:
      TableError: there is no such column, an id is empty, it is doubled or there is no row without
        `any_rows`, or the file is no UTF-8 CSV.
      OSError: the file cannot be read.
    """
    table = _read(uri, [("id",)])
    ids = table.filled("id")
    if not any_rows:
        table.refuse_duplicates(ids)
        table.require_rows()
    return ids


def is_csv(run_or_csv: str) -> bool:
    """Whether the name is that of a CSV file, perhaps a compressed one, and not of a run's folder."""
    return re.search(r"\.(csv|tsv)(\.(gz|bz2|xz))?$", run_or_csv.lower()) is not None


def prediction_shards(run_or_csv: str) -> list[str]:
    """The files that hold a run's predictions, sorted, or the one submission CSV itself.

    Raises:
      TableError: `run_or_csv` is a folder without predictions.
    """
    if is_csv(run_or_csv):
        return [run_or_csv]
    shards = files.list_files(files.join(run_or_csv, "predictions"), ".parquet")
    if not shards:
        raise TableError(f"{run_or_csv}: neither a run with predictions/*.parquet nor a .csv file")
    return shards


def read_prediction_shard(uri: str, top_k: int | None = None) -> pa.Table:
    """Reads one file of `prediction_shards`.

    Args:
      top_k: of a run the number of candidates that vote, for the best landmarks of each query; None for a
        CSV, which knows none, or where they are not needed.

    Returns:
      a table of ANSWER_SCHEMA; the score is the probability where there is one. With `top_k` it has a column
      best_landmarks, lists of BEST_LANDMARKS strings at most, see `best_landmarks`.

    Raises:
      TableError: see `read_submission`; for Parquet, a column is missing or of another type, a score is
        missing or not finite, or the file is damaged.
      OSError: the file cannot be read.
    """
    if not uri.endswith(".parquet"):
        return read_submission(uri)
    columns = [*ANSWER_SCHEMA.names, "probability", *([] if top_k is None else SCORED_LANDMARKS)]
    try:
        found = ranked_by_probability(files.read_parquet(uri, columns))
        table = found.select(ANSWER_SCHEMA.names).cast(ANSWER_SCHEMA)
        if top_k is not None:
            best = best_of_candidates(found["candidates"], top_k)
            table = table.append_column("best_landmarks", best)
    except (KeyError, ValueError) as e:  # pyarrow's errors of content are ValueErrors
        raise TableError(f"{uri}: no table of predictions: {e}") from e
    bad = pc.and_(
        pc.is_valid(table["landmark_id"]), pc.invert(pc.fill_null(pc.is_finite(table["score"]), False))
    )
    row = pc.index(bad, True).as_py()
    if row >= 0:
        raise TableError(
            f"{uri}, row {row}: score {table['score'][row]} of image {table['image_id'][row]} is not finite"
        )
    return table


def best_of_candidates(candidates: pa.ChunkedArray, top_k: int) -> pa.Array:
    """The best landmarks of each query, see `read_prediction_shard`, of its candidates: lists of structs with
    landmark_id and score, best first.
    """
    lists = candidates.combine_chunks()
    landmarks, totals = (lists.flatten().field(name).to_pylist() for name in ("landmark_id", "score"))
    ends = np.cumsum(pc.list_value_length(lists).to_numpy(), dtype=np.int64).tolist()
    best = [
        best_landmarks(landmarks[begin:end], totals[begin:end], top_k, BEST_LANDMARKS)
        for begin, end in zip([0, *ends], ends)
    ]
    return pa.array(best, pa.list_(pa.string()))


def ranked_by_probability(predictions: pa.Table) -> pa.Table:
    """Predictions with their probability for a score where they have a landmark and one."""
    if "probability" not in predictions.column_names:
        return predictions
    known = pc.and_(pc.is_valid(predictions["landmark_id"]), pc.is_valid(predictions["probability"]))
    score = pc.if_else(known, predictions["probability"], predictions["score"])
    return predictions.set_column(predictions.column_names.index("score"), "score", score)


def read_answers(run_or_csv: str, top_k: int | None = None) -> pa.Table:
    """Reads the predictions of a run (its predictions/*.parquet) or of a submission CSV; arguments and
    result are those of `read_prediction_shard`.

    Raises:
      TableError: see `prediction_shards` and `read_prediction_shard`; or an image stands in two shards.
      OSError: a file cannot be read.
    """
    table = pa.concat_tables([read_prediction_shard(uri, top_k) for uri in prediction_shards(run_or_csv)])
    pair = first_duplicate(table["image_id"])
    if pair is not None:
        raise TableError(f"{run_or_csv}: image {table['image_id'][pair[0]]} is predicted twice")
    return table


def write_submission_csv(uri: str, predictions: pa.Table, ids: pa.Array | None = None) -> None:
    """Writes a submission atomically: `id,landmarks`, sorted by id (code points) or a row for each of `ids`,
    landmarks = `<class> <score>` or empty.

    White space in a class, and %, are percent-encoded: "Eiffel Tower" is `Eiffel%20Tower`. Scores are written
    as Python's repr of a float64, which `float()` reads back exactly.

    Args:
      predictions: with the columns of ANSWER_SCHEMA; others are ignored.
      ids: string [N], the rows wanted; those without a prediction are empty.

    Raises:
      ValueError: a prediction could not be read back: a class that is empty, a score that is not finite.
      OSError: the file cannot be written.
    """
    writable = pc.and_(pc.not_equal(predictions["landmark_id"], ""), pc.is_finite(predictions["score"]))
    bad = pc.and_(pc.is_valid(predictions["landmark_id"]), pc.invert(pc.fill_null(writable, False)))
    row = pc.index(bad, True).as_py()
    if row >= 0:
        image_id, landmark_id, score = (predictions[name][row].as_py() for name in ANSWER_SCHEMA.names)
        raise ValueError(
            f"prediction of image {image_id}: class {landmark_id!r} with score {score} cannot be written"
        )
    word = {
        name: spelling.word_of(name) for name in pc.unique(predictions["landmark_id"]).to_pylist() if name
    }
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("id", "landmarks"))
    if ids is None:
        ordered = predictions.select(ANSWER_SCHEMA.names).sort_by("image_id")
    else:
        rows = spelling.index_in(ids, predictions["image_id"].combine_chunks())
        answers = [predictions[name].take(rows) for name in ("landmark_id", "score")]
        ordered = pa.table([ids, *answers], ANSWER_SCHEMA.names)
    for batch in ordered.to_batches(max_chunksize=1 << 16):
        for image_id, landmark_id, score in zip(*(column.to_pylist() for column in batch.columns)):
            writer.writerow((image_id, "" if landmark_id is None else f"{word[landmark_id]} {score!r}"))
    files.write_bytes(uri, text.getvalue().encode())


def write_csv(uri: str, table: pa.Table) -> None:
    """Writes a table as CSV, atomically: its columns by name, text as it is, numbers shortly.

    Raises:
      OSError: the file cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.column_names)
    for batch in table.to_batches(max_chunksize=1 << 16):
        for row in zip(*(column.to_pylist() for column in batch.columns)):
            writer.writerow([f"{value:.4g}" if isinstance(value, float) else value for value in row])
    files.write_bytes(uri, text.getvalue().encode())


def first_duplicate(ids: _Column) -> tuple[int, int] | None:
    """Positions of the first value that came before, as (earlier, later); None where all are different."""
    if len(pc.unique(ids)) == len(ids):
        return None
    codes = _combined(ids).dictionary_encode().indices.to_numpy()
    repeated = np.ones(len(codes), bool)
    repeated[np.unique(codes, return_index=True)[1]] = False
    later = int(repeated.argmax())
    return int((codes == codes[later]).argmax()), later


def _form(names: Sequence[str], forms: Sequence[tuple[str, ...]]) -> tuple[str, ...] | None:
    return next((form for form in forms if set(form) <= set(names)), None)


def _landmarks_of(words: _Column) -> pa.Array:
    """The landmark ids that words of a list stand for, see `spelling.word_of`."""
    words = _combined(words)
    if not pc.any(pc.match_substring(words, "%")).as_py():
        return words
    codes = words.dictionary_encode()
    return pa.array(map(spelling.text_of, codes.dictionary.to_pylist()), pa.string()).take(codes.indices)


def _read(uri: str, forms: Sequence[tuple[str, ...]], optional: str | None = None) -> "_Table":
    """The columns of the first of `forms` that a file has, and an optional one.

    Raises:
      TableError: it has none of them, or cannot be read as a table.
      OSError: it cannot be read.
    """
    return (_Parquet if uri.lower().endswith(".parquet") else _Csv)(uri, forms, optional)


class _Table:
    """The needed columns of a file as trimmed text, and errors that know their place.

    Attributes:
      columns: by name; string [N], no nulls.
    """

    columns: dict[str, pa.Array]

    def __init__(self, uri: str):
        self._uri = uri

    def filled(self, name: str) -> pa.Array:
        """The column `name`; an empty value in it is an error."""
        self.refuse(pc.equal(self.columns[name], ""), name, "is empty")
        return self.columns[name]

    def refuse(self, bad: pa.Array, name: str, problem: str) -> None:
        """Raises for the first row where `bad` (bool [N]) is true."""
        row = pc.index(bad, True).as_py()
        if row >= 0:
            self.refuse_row(row, f"{name} {_shown(self.columns[name][row])} {problem}")

    def refuse_line_ends(self, column: _Column, name: str) -> None:
        """Raises where a value holds what no table can carry."""
        for character, problem in (
            ("\n", "a line end (a quote left open?)"),
            ("\r", "a line end (a quote left open?)"),
            ("\0", "a NUL"),
        ):
            row = pc.index(pc.match_substring(column, character), True).as_py()
            if row >= 0:
                self.refuse_row(row, f"{name} {_shown(column[row])} holds {problem}")

    def refuse_duplicates(self, ids: pa.Array, rows: np.ndarray | None = None) -> None:
        """Raises where an id comes twice; `rows` (int [N]) are the rows that the ids stand in, where not 0,
        1, 2 …
        """
        pair = first_duplicate(ids)
        if pair is not None:
            first, second = (p if rows is None else int(rows[p]) for p in pair)
            self.refuse_row(second, f"id {_shown(ids[pair[1]])} stands in {self._place(first)} already")

    def require_rows(self) -> None:
        """Raises for a table without any."""
        if not len(next(iter(self.columns.values()))):
            raise TableError(f"{self._uri}, {self._place(-1)}: there are no rows below the header")

    def refuse_row(self, row: int, problem: str) -> NoReturn:
        """Raises for the row `row`."""
        raise TableError(f"{self._uri}, {self._place(row)}: {problem}")

    def _place(self, row: int) -> str:
        """Where people find a row; -1 for the names of the columns."""
        raise NotImplementedError


def _known_names(names: Sequence[str]) -> list[str]:
    """The names of columns as they are called here."""
    return [_ALSO[name] if name in _ALSO and _ALSO[name] not in names else name for name in names]


class _Parquet(_Table):
    """See _Table; of a Parquet file only the columns needed are read."""

    def __init__(self, uri: str, forms: Sequence[tuple[str, ...]], optional: str | None = None):
        super().__init__(uri)
        try:
            with files.open_parquet(uri) as file:
                self._take(file, forms, optional)
        except pa.ArrowInvalid as e:
            raise TableError(f"{uri} is no whole Parquet file: {e}") from e

    def _take(self, file: pq.ParquetFile, forms: Sequence[tuple[str, ...]], optional: str | None) -> None:
        leaves = [(f.name, f.type) for f in file.schema_arrow if not pa.types.is_struct(f.type)]
        for field in file.schema_arrow:
            if pa.types.is_struct(field.type):
                leaves += [(f"{field.name}.{inner.name}", inner.type) for inner in field.type]
        names = _known_names([name.casefold() for name, _ in leaves])
        images = columns_of(file.schema_arrow)
        if images and images.bytes and "path" not in names:  # its rows are called by their numbers
            names, leaves = [*names, "path"], [*leaves, ("", pa.string())]
        form = _form(names, forms)
        if form is None:
            expected = " or ".join(",".join(f) for f in forms)
            raise TableError(f"{self._uri}: columns {','.join(names)!r}, where {expected} is expected")
        wanted = [*form, *([optional] if optional in names else [])]
        if doubled := next((name for name in wanted if names.count(name) > 1), None):
            raise TableError(f"{self._uri}: column {doubled!r} stands twice in {','.join(names)!r}")
        self.columns = {}
        for name in wanted:
            leaf, kind = leaves[names.index(name)]
            if not leaf:
                rows = (row_name(self._uri, number) for number in range(file.metadata.num_rows))
                self.columns[name] = pa.array(rows, pa.string())
                continue
            column = _combined(file.read([leaf], use_threads=False).flatten().column(0))
            if pa.types.is_dictionary(kind):
                column = column.dictionary_decode()
            if not (pa.types.is_integer(column.type) or _is_text(column.type)):
                raise TableError(
                    f"{self._uri}: column {name} is {kind}, where text or whole numbers are expected"
                )
            classes = _class_names(file.schema_arrow, leaf)
            text = pc.cast(column, pa.string())
            if classes:
                text = pc.fill_null(pa.array(classes, pa.string()).take(column), "")
            self.columns[name] = pc.utf8_trim_whitespace(pc.fill_null(text, ""))
            self.refuse_line_ends(self.columns[name], name)

    def _place(self, row: int) -> str:
        return f"row {row + 1}"


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _class_names(schema: pa.Schema, column: str) -> list[str] | None:
    """What the numbers of a column stand for, where the file says so as Hugging Face's data sets do."""
    try:
        said = json.loads((schema.metadata or {})[b"huggingface"])
        names = said["info"]["features"][column]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


class _Csv(_Table):
    """See _Table; errors know the line."""

    def __init__(self, uri: str, forms: Sequence[tuple[str, ...]], optional: str | None = None):
        super().__init__(uri)
        self._content = None if files.is_local(uri) else files.read_bytes(uri)
        self._content = self._converted()
        self._delimiter = _DELIMITERS[0]
        seen = names = self._header()
        form = _form(_known_names(names), forms)
        for self._delimiter in _DELIMITERS if form is None else ():
            names = self._header()
            if (form := _form(_known_names(names), forms)) is not None:
                break
        if form is None:
            expected = " or ".join(",".join(f) for f in forms)
            self._fail(1, f"columns {','.join(seen)!r}, where {expected} is expected")
        if doubled := next((name for i, name in enumerate(names) if name and name in names[:i]), None):
            self._fail(1, f"column {doubled!r} stands twice in {','.join(names)!r}")
        names = _known_names(names)
        wanted = [*form, *([optional] if optional in names else [])]
        # The last column is read too: a quote that nobody closes there would swallow the rest of the file
        # unseen.
        table = self._parse(len(names), sorted({*(names.index(w) for w in wanted), len(names) - 1}))
        for name in table.column_names:
            label = names[int(name[1:])]
            self.refuse_line_ends(table[name], label)
        self.columns = {name: _trimmed(_combined(table[f"f{names.index(name)}"])) for name in wanted}

    def _open(self) -> BinaryIO:
        if self._content is not None:
            return io.BytesIO(self._content)
        if os.path.exists(self._uri) and not os.path.isfile(self._uri):  # a pipe would be waited for
            raise OSError(errno.EINVAL, "is not a regular file", self._uri)
        return open(self._uri, "rb")

    def _header(self) -> list[str]:
        line, fields = next(self._records(), (1, []))
        names = [f.strip().casefold() for f in fields]
        if not names:
            self._fail(line, "the file is empty")
        return names

    def _converted(self) -> bytes | None:
        """The content where it has to be held: unpacked, and as UTF-8."""
        with self._open() as f:
            start = f.read(16)
            wrong = next((what for mark, what in _NO_TABLES.items() if start.startswith(mark)), None)
            if wrong is not None:
                self._fail(1, f"it is {wrong}; a CSV is expected")
            unpack = next((call for mark, call in _COMPRESSIONS.items() if start.startswith(mark)), None)
            codec = next((name for mark, name in _CODECS.items() if start.startswith(mark)), None)
            if unpack is None and codec is None:
                return self._content
            data = start + f.read()
        try:
            if unpack is not None:
                data = unpack(data)
                codec = next((name for mark, name in _CODECS.items() if data.startswith(mark)), None)
            return data if codec is None else data.decode(codec).encode()
        except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as e:
            self._fail(1, f"it cannot be unpacked or decoded: {e}")

    def _parse(self, width: int, included: Sequence[int]) -> pa.Table:
        names = [f"f{i}" for i in included]
        try:
            # A file of Arrow's: its threads let go of one of Python's when they like, and end the process
            # where the interpreter is at its end by then.
            with pa.OSFile(self._uri) if self._content is None else pa.BufferReader(self._content) as f:
                table = pacsv.read_csv(
                    f,
                    pacsv.ReadOptions(autogenerate_column_names=True, block_size=_BLOCK_BYTES),
                    pacsv.ParseOptions(delimiter=self._delimiter, newlines_in_values=True),
                    pacsv.ConvertOptions(
                        include_columns=names, column_types=dict.fromkeys(names, pa.string())
                    ),
                )
        except pa.ArrowInvalid:
            # Either an error, which the slow way names, or something that only the slow way reads, such as
            # lines of spaces.
            rows = [[fields[i] for i in included] for fields in self._rows(width)]
            table = pa.table([pa.array(column, pa.string()) for column in zip(*rows)], names)
        return table.slice(1).combine_chunks()  # the header came along as a row

    def _rows(self, width: int) -> Iterator[list[str]]:
        for line, fields in self._records():
            if len(fields) != width:
                self._fail(
                    line, f"{len(fields)} values where the header has {width}: {_shown(','.join(fields))}"
                )
            yield fields

    def _records(self) -> Iterator[tuple[int, list[str]]]:
        """The records as (first line, values), the header first. Slow, but it knows the lines."""
        with self._open() as f:
            lines = self._decoded(iter(f.readline, b""))
            reader = csv.reader(lines, delimiter=self._delimiter, skipinitialspace=True)
            first = True
            while True:
                line = reader.line_num + 1
                try:
                    fields = next(reader)
                except StopIteration:
                    return
                except csv.Error as e:
                    self._fail(line, f"not readable as CSV: {e}")
                if len(fields) > 1 or (fields and (first or fields[0].strip())):
                    first = False
                    yield line, fields

    def _decoded(self, lines: Iterator[bytes]) -> Iterator[str]:
        for number, raw in enumerate(lines, 1):
            try:
                yield from io.StringIO(raw.decode("utf-8-sig" if number == 1 else "utf-8"), newline="")
            except UnicodeDecodeError:
                self._fail(number, f"not UTF-8: {_shown(raw)}")

    def _place(self, row: int) -> str:
        return f"line {next(itertools.islice(self._records(), row + 1, None))[0]}"

    def _fail(self, line: int, problem: str) -> NoReturn:
        raise TableError(f"{self._uri}, line {line}: {problem}")


def _parse_scores(table: _Table, text: pa.Array, rows: np.ndarray) -> np.ndarray:
    """Decimal numbers of `text` as float64 [N], correctly rounded; `rows` are the rows they stand in."""
    try:
        scores = pc.cast(text, pa.float64()).to_numpy()
    except (
        pa.ArrowInvalid
    ):  # nearly always an error; where it is only an odd way to write a number, Python reads it
        words = text.to_pylist()
        scores = np.array([float(w) if _DECIMAL.fullmatch(w) else np.nan for w in words])
    bad = ~np.isfinite(scores)
    if bad.any():
        at = int(bad.argmax())
        table.refuse_row(int(rows[at]), f"score {_shown(text[at])} is not a finite decimal number")
    return scores


def _trimmed(column: pa.Array) -> pa.Array:
    """`column` without surrounding space, and without quotes that only a leading space kept from being
    quotes.
    """
    if pc.any(pc.match_substring(column, '"')).as_py():
        column = pc.replace_substring_regex(column, r'^\s+"(.*)"\s*$', r"\1")
    return pc.utf8_trim_whitespace(column)


def _combined(column: _Column) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _shown(value: pa.Scalar | str | bytes) -> str:
    text = repr(value.as_py() if isinstance(value, pa.Scalar) else value)
    return text if len(text) <= 80 else text[:77] + "..."
