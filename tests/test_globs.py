"""Globs against Python's glob and pathlib and, in an object store, against the same files on disk."""

import glob
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms.storage import globs
from transforms.storage.object_stores import Entry

FOLDERS = ("a", "ab", ".h", "[a]")
FILES = ("a.jpg", "b.jpg", ".h.jpg", "[a].jpg")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("tree")
    for outer in (".", *FOLDERS):
        for inner in (".", *FOLDERS):
            (root / outer / inner).mkdir(parents=True, exist_ok=True)
            for name in FILES:
                (root / outer / inner / name).write_bytes(b"x")
    return root


class Store:
    """The files of a folder as mem:// has them."""

    def __init__(self, root):
        self._uris = [f"mem://bucket/{p.relative_to(root)}" for p in sorted(root.rglob("*")) if p.is_file()]

    def list(self, prefix, descend=True):
        for uri in self._uris:
            if uri.startswith(prefix) and (descend or "/" not in uri[len(prefix) :]):
                yield Entry(uri, 1, 0.0)


def below(root, pattern, either_way=False):
    return {os.path.relpath(entry.uri, root) for entry in globs._matches(f"{root}/{pattern}", either_way)}


names = st.text(st.sampled_from("aabh.*?[]!-jpg"), min_size=1, max_size=6).filter(
    lambda name: set(name) != {"."}
)
patterns = st.lists(st.just("**") | st.just("*") | st.just("*.jpg") | names, min_size=1, max_size=4).map(
    "/".join
)


@given(patterns)
def test_a_glob_gives_the_files_that_pythons_glob_gives(tree, pattern):
    found = glob.glob(pattern, root_dir=tree, recursive=True, include_hidden=False)
    assert below(tree, pattern) == {name for name in found if (tree / name).is_file()}


def known_to_pathlib(pattern):
    *folders, name = pattern.split("/")
    return "**" not in name and all(folder == "**" or "**" not in folder for folder in folders)


@given(patterns.filter(known_to_pathlib))
def test_a_glob_gives_the_files_that_pathlib_gives_but_hidden_ones(tree, pattern):
    found = {str(path.relative_to(tree)) for path in tree.glob(pattern) if path.is_file()}
    ours = below(tree, pattern)
    assert ours <= found and all("/." in "/" + name for name in found - ours)


@given(patterns)
def test_an_object_store_gives_what_the_disk_gives(tree, pattern):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(globs, "store_of", lambda uri: Store(tree))
        prefix = "mem://bucket/"
        for either_way in (False, True):
            found = {entry.uri.removeprefix(prefix) for entry in globs._matches(prefix + pattern, either_way)}
            assert found == below(tree, pattern, either_way)


@pytest.mark.parametrize(
    "pattern, expected",
    [
        (
            "**/a.jpg",
            {"a.jpg", "a/a.jpg", "ab/a.jpg", "a/a/a.jpg", "a/ab/a.jpg", "ab/a/a.jpg", "ab/ab/a.jpg"},
        ),
        ("a/**", {f"a/{folder}{name}.jpg" for folder in ("", "a/", "ab/") for name in "ab"}),
        ("a/", {f"a/{folder}{name}.jpg" for folder in ("", "a/", "ab/") for name in "ab"}),
        ("a/*", {"a/a.jpg", "a/b.jpg"}),
        ("./ab/?.jpg", {"ab/a.jpg", "ab/b.jpg"}),
        (".h/.*.jpg", {".h/.h.jpg"}),
        ("ab/[!a].jpg", {"ab/b.jpg"}),
        ("ab/[^a].jpg", {"ab/b.jpg"}),
        ("{ab,none}/{a,b}.jpg", {"ab/a.jpg", "ab/b.jpg"}),
        ("[[]a]/a.jpg", {"[a]/a.jpg"}),
        ("a/**b.jpg", {"a/b.jpg"}),
    ],
)
def test_examples_by_hand(tree, monkeypatch, pattern, expected):
    plain = {name for name in expected if "[a]" not in name} if "[" not in pattern else expected
    found = {os.path.relpath(entry.uri, tree) for _, entry in globs.matches(f"{tree}/{pattern}")}
    assert {name for name in found if "[a]" not in name or "[" in pattern} == plain
    monkeypatch.chdir(tree)
    assert {entry.uri for _, entry in globs.matches(pattern)} == {str(tree / name) for name in found}


def test_brackets_in_names_stand_for_themselves_where_nothing_else_matches(tmp_path):
    for name in ("p[1]/a.jpg", "p[1]/b.jpg", "q[2]/a.jpg", "q2/a.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")

    def found(pattern):
        return {os.path.relpath(e.uri, tmp_path) for _, e in globs.matches(f"{tmp_path}/{pattern}")}

    assert found("p[1]/[ab].*") == {"p[1]/a.jpg", "p[1]/b.jpg"}
    assert found("q[2]/*.jpg") == {"q2/a.jpg"}


@pytest.mark.parametrize(
    "pattern, expanded",
    [
        ("a{b,c}d", ["abd", "acd"]),
        ("{a,b{1,2}}/{x,}", ["a/x", "a/", "b1/x", "b1/", "b2/x", "b2/"]),
        ("{a}", ["{a}"]),
        ("{a{b,c}", ["{ab", "{ac"]),
        ("a,b}", ["a,b}"]),
        ("{{a,b}}", ["{a}", "{b}"]),
    ],
)
def test_braces_are_expanded_as_shells_do(pattern, expanded):
    assert globs.braces_expanded(pattern) == expanded


def test_loops_of_links_end_and_every_file_comes_once(tmp_path):
    (tmp_path / "p" / "q").mkdir(parents=True)
    (tmp_path / "p" / "q" / "a.jpg").write_bytes(b"x")
    (tmp_path / "p" / "q" / "loop").symlink_to(tmp_path / "p")
    (tmp_path / "p" / "self").symlink_to(tmp_path / "p" / "self")
    assert [e.uri for _, e in globs.matches(f"{tmp_path}/**/**/*.jpg")] == [f"{tmp_path}/p/q/a.jpg"]
    assert [e.uri for e in globs.files_below(str(tmp_path)) if e.size] == [f"{tmp_path}/p/q/a.jpg"]


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    (tmp_path / "p").mkdir()
    monkeypatch.setattr(globs.os, "scandir", refuse)
    with pytest.raises(PermissionError, match="p"):
        list(globs.matches(f"{tmp_path}/p/*.jpg"))


def test_what_globs_name_needs_no_more_than_its_folder(monkeypatch):
    asked = []

    class Listing:
        def list(self, prefix, descend=True):
            asked.append((prefix, descend))
            return iter(())

    monkeypatch.setattr(globs, "store_of", lambda uri: Listing())
    for pattern in ("mem://b/p/a*.jpg", "mem://b/p/*/a.jpg", "mem://b/p/**"):
        list(globs._matches(pattern, False))
    assert asked == [("mem://b/p/a", False), ("mem://b/p/", True), ("mem://b/p/", True)]
