"""Ids as people's files and tables spell them: letters written in two ways, and what programs add."""

import os
import re
import urllib.parse

import pyarrow as pa
import pyarrow.compute as pc

_LOOKED_AT = 10_000
_SUFFIX = re.compile(r"\.(0+|[a-z]{3,4})$")


_NO_WORD = re.compile(r"[\s%]")


def word_of(text: str) -> str:
    """A text as one word, which `text_of` reads back: white space and % are percent-encoded."""
    return _NO_WORD.sub(lambda match: urllib.parse.quote(match[0]), text)


def text_of(word: str) -> str:
    """What `word_of` made a word of; % that encodes nothing stands for itself."""
    try:
        return urllib.parse.unquote(word, errors="strict")
    except UnicodeDecodeError:
        return word


def index_in(ids: pa.Array, known: pa.Array) -> pa.Array:
    """The row of `known` (string [M]) that each of `ids` (string [N]) stands in, int32 [N]; null where none.

    What is written alike comes first; else composed and decomposed letters (NFC, NFD) are the same.
    """
    rows = pc.index_in(ids, value_set=known)
    if not rows.null_count:
        return rows
    composed = pc.index_in(pc.utf8_normalize(ids, "NFC"), value_set=pc.utf8_normalize(known, "NFC"))
    return pc.coalesce(rows, composed)


def near(ids: pa.Array, known: pa.Array) -> tuple[str, str] | None:
    """The first of `ids` that differs from one of `known` by no more than a folder, a suffix, case, zeros at
    its beginning or space, and that one: "a1.jpg" and "a1", "3348.0" and "3348"; None where there is none.
    """
    bare = {_bare(value): value for value in reversed(known.slice(0, _LOOKED_AT).to_pylist())}
    pairs = ((value, bare.get(_bare(value))) for value in ids.slice(0, _LOOKED_AT).to_pylist())
    return next(((value, other) for value, other in pairs if other is not None and other != value), None)


def _bare(value: str) -> str:
    name = os.path.basename(value.replace("\\", "/").casefold().strip())
    return _SUFFIX.sub("", _SUFFIX.sub("", name)).lstrip("0")
