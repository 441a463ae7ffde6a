"""Which photographs folders, globs and lists name."""

import os

import pytest

from tests.file_systems import write
from transforms import patterns


def matched(*given):
    return [ref.image_id for ref in patterns.match_images(list(map(str, given))).images]


def test_a_folder_is_searched_recursively_for_any_case(tmp_path):
    for name in ("a/b/c/abc1.jpg", "two.JPEG", "x/three.Png", "four.webp", "readme.txt"):
        write(tmp_path / name)
    assert matched(tmp_path) == ["abc1", "four", "three", "two"]


def test_what_a_suffix_passes_over_is_counted(tmp_path):
    for name in ("a.jpg", "b.xcf", "c.XCF", "d", "labels.csv"):
        write(tmp_path / name)
    for pattern in (tmp_path, f"{tmp_path}/*", f"{tmp_path}/**"):
        found = patterns.match_images([str(pattern)])
        assert [ref.image_id for ref in found.images] == ["a"]
        assert found.passed_over == {".xcf": 2, "": 1, ".csv": 1}
    assert patterns.described(found.passed_over) == "2 .xcf, 1 without a suffix, 1 .csv"


def test_what_is_hidden_in_a_folder_is_passed_over_and_counted(tmp_path):
    hidden = (".git/x.jpg", "._a.jpg", "@eaDir/a.jpg/SYNOPHOTO_THUMB_XL.jpg", "sub/.thumbnails/t.png")
    for name in ("a.jpg", "sub/b.jpg", ".DS_Store", ".git/index", "#recycle/gone.jpg", *hidden):
        write(tmp_path / name)
    found = patterns.match_images([str(tmp_path)])
    assert [ref.image_id for ref in found.images] == ["a", "b"]
    assert found.passed_over == {"hidden": 5} and patterns.described(found.passed_over) == "5 hidden"
    assert matched(tmp_path / ".git") == ["x"] and matched(f"{tmp_path}/sub/.thumbnails/*") == ["t"]
    assert matched(f"{tmp_path}/@eaDir/**/*.jpg") == ["SYNOPHOTO_THUMB_XL"]
    for whole in ("**", "**/", "**/*", "**/**/*"):
        assert patterns.match_images([f"{tmp_path}/{whole}"]) == found
    assert matched(f"{tmp_path}/.*.jpg") == ["._a"]
    with pytest.raises(patterns.MatchError, match="passed over 1 hidden"):
        write(tmp_path / "only" / ".hidden.jpg"), matched(tmp_path / "only")


def test_a_pattern_that_names_a_suffix_is_taken_at_its_word(tmp_path):
    for name in ("a.jpg", "b.xcf", "sub/c.xcf"):
        write(tmp_path / name)
    assert matched(f"{tmp_path}/*.xcf") == matched(f"{tmp_path}/b.xcf") == ["b"]
    assert matched(f"{tmp_path}/**/*.{{xcf,jpg}}") == ["a", "b", "c"]


@pytest.mark.parametrize(
    "pattern, ids",
    [("*.png", ["two"]), ("**/*.jpg", ["one", "three"]), ("./*.jpg", ["one"]), ("sub/**", ["three"])],
)
def test_globs_from_inside_the_folder_and_from_outside(tmp_path, monkeypatch, pattern, ids):
    write(tmp_path / "one.jpg"), write(tmp_path / "two.png"), write(tmp_path / "sub" / "deep" / "three.jpg")
    assert matched(tmp_path / pattern) == ids
    monkeypatch.chdir(tmp_path)
    assert matched(pattern) == ids


def test_names_with_wildcards_in_them_are_meant_first(tmp_path):
    for name in ("a[1].jpg", "a1.jpg", "p[1]/b.jpg", "p1/c.jpg", "*.jpg"):
        write(tmp_path / name)
    assert matched(f"{tmp_path}/a[1].jpg") == ["a[1]"]
    assert matched(f"{tmp_path}/p[1]") == ["b"]
    assert matched(f"{tmp_path}/*.jpg") == ["*"]


def test_a_list_with_relative_and_absolute_paths(tmp_path):
    write(tmp_path / "in" / "one.jpg"), write(tmp_path / "two.jpg")
    write(tmp_path / "list.txt", f"\ufeffin/one.jpg\r\n\r\n{tmp_path}/two.jpg\nmissing.jpg\n".encode())
    refs = patterns.match_images([f"@{tmp_path}/list.txt"]).images
    assert [(r.image_id, r.size_bytes) for r in refs] == [("missing", 0), ("one", 1), ("two", 1)]


def test_a_list_may_have_nuls_for_line_ends_and_odd_characters_in_names(tmp_path):
    for name in ("a b.jpg", "c\u2028d.jpg", "[e]*.jpg"):
        write(tmp_path / name)
    write(tmp_path / "list.txt", b"\0".join(os.fsencode(name) for name in os.listdir(tmp_path)) + b"\0")
    refs = patterns.match_images([f"@{tmp_path}/list.txt"]).images
    assert [(r.image_id, r.size_bytes) for r in refs] == [("[e]*", 1), ("a b", 1), ("c\u2028d", 1)]


@pytest.mark.parametrize("path", ["../one.jpg", "in/../../one.jpg"])
def test_a_list_does_not_lead_out_of_its_folder(tmp_path, path):
    write(tmp_path / "one.jpg")
    write(tmp_path / "lists" / "list.txt", f"{path}\n".encode())
    with pytest.raises(patterns.MatchError, match=r"list.txt, line 1: .* leads out of the list's folder"):
        patterns.match_images([f"@{tmp_path}/lists/list.txt"])


def test_a_list_whose_paths_start_at_the_working_folder_is_refused(tmp_path, monkeypatch):
    write(tmp_path / "p" / "one.jpg"), write(tmp_path / "p" / "two.jpg")
    write(tmp_path / "lists" / "list.txt", b"p/one.jpg\np/two.jpg\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(patterns.MatchError, match="start at the list's folder.*from the working folder they"):
        matched("@lists/list.txt")
    write(tmp_path / "lists" / "p" / "one.jpg")  # one is there: the other becomes a failure row
    assert matched("@lists/list.txt") == ["one", "two"]


def test_a_file_named_twice_counts_once(tmp_path):
    one = write(tmp_path / "one.jpg")
    assert matched(tmp_path, one) == ["one"]


def test_a_folder_given_under_several_names_counts_once(tmp_path, monkeypatch):
    write(tmp_path / "p" / "one.jpg"), write(tmp_path / "p" / "sub" / "two.jpg")
    (tmp_path / "link").symlink_to("p")
    monkeypatch.chdir(tmp_path)
    names = ["p", "./p", "p/", "p//sub/..", f"{tmp_path}/p", "link", "p/**", "p/one.jpg", "link/sub/*.jpg"]
    found = patterns.match_images(names).images
    assert [ref.uri for ref in found] == [f"{tmp_path}/link/one.jpg", f"{tmp_path}/link/sub/two.jpg"]
    assert patterns.match_images(names[::-1]).images == found
    assert patterns.match_images(["p"]) == patterns.match_images([f"{tmp_path}/./p//"])


def test_two_files_with_one_id_are_named(tmp_path):
    write(tmp_path / "a" / "same.jpg"), write(tmp_path / "b" / "same.png")
    with pytest.raises(patterns.MatchError, match=r"'same': .*a/same.jpg and .*b/same.png"):
        matched(tmp_path)


def test_nothing_matched(tmp_path):
    write(tmp_path / "a.xcf")
    with pytest.raises(patterns.MatchError, match=r"no image matches .*; passed over 1 \.xcf"):
        matched(tmp_path)
    with pytest.raises(patterns.MatchError, match=r"no image matches .*only between slashes"):
        matched(tmp_path / "**.jpg")
    with pytest.raises(patterns.MatchError, match=r"nope': there is no such file or folder$"):
        matched(tmp_path / "nope")


def test_a_list_says_what_is_not_there_and_that_it_is_empty(tmp_path):
    write(tmp_path / "a.jpg")
    (tmp_path / "list.txt").write_text("# mine\na.jpg\n")
    said = []
    assert len(patterns.match_images([f"@{tmp_path}/list.txt"], said.append).images) == 2
    assert said == [f"1 of 2 paths of {tmp_path}/list.txt does not exist: {tmp_path}/# mine"]
    (tmp_path / "list.txt").write_text(" \n")
    with pytest.raises(patterns.MatchError, match="list.txt names no photograph$"):
        patterns.match_images([f"@{tmp_path}/list.txt"])
