"""Which photographs folders, globs and lists name."""

import os

import pytest

from transforms import patterns


def write(path, data=b"x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return str(path)


def test_a_folder_is_searched_recursively_for_any_case(tmp_path):
    for name in ("a/b/c/abc1.jpg", "two.JPEG", "x/three.Png", "four.webp", "readme.txt"):
        write(tmp_path / name)
    assert [r.image_id for r in patterns.match_images([str(tmp_path)])] == ["abc1", "four", "three", "two"]


def test_a_glob(tmp_path):
    write(tmp_path / "one.jpg"), write(tmp_path / "two.png")
    assert [r.image_id for r in patterns.match_images([str(tmp_path / "*.png")])] == ["two"]


def test_a_list_with_relative_and_absolute_paths(tmp_path):
    write(tmp_path / "in" / "one.jpg"), write(tmp_path / "two.jpg")
    write(tmp_path / "list.txt", f"\ufeffin/one.jpg\r\n\r\n{tmp_path}/two.jpg\nmissing.jpg\n".encode())
    refs = patterns.match_images([f"@{tmp_path}/list.txt"])
    assert [(r.image_id, r.size_bytes) for r in refs] == [("missing", 0), ("one", 1), ("two", 1)]


@pytest.mark.parametrize("path", ["../one.jpg", "in/../../one.jpg"])
def test_a_list_does_not_lead_out_of_its_folder(tmp_path, path):
    write(tmp_path / "one.jpg")
    write(tmp_path / "lists" / "list.txt", f"{path}\n".encode())
    with pytest.raises(patterns.MatchError, match=r"list.txt, line 1: .* leads out of the list's folder"):
        patterns.match_images([f"@{tmp_path}/lists/list.txt"])


def test_a_file_named_twice_counts_once(tmp_path):
    one = write(tmp_path / "one.jpg")
    assert len(patterns.match_images([str(tmp_path), one])) == 1


def test_two_files_with_one_id_are_named(tmp_path):
    write(tmp_path / "a" / "same.jpg"), write(tmp_path / "b" / "same.png")
    with pytest.raises(patterns.MatchError, match=r"'same': .*a/same.jpg and .*b/same.png"):
        patterns.match_images([str(tmp_path)])


def test_nothing_matched(tmp_path):
    with pytest.raises(patterns.MatchError, match="no image matches"):
        patterns.match_images([str(tmp_path)])


def test_a_loop_of_links_and_a_pipe_do_not_hang(tmp_path):
    write(tmp_path / "one.jpg")
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    os.mkfifo(tmp_path / "pipe.jpg")
    assert [r.image_id for r in patterns.match_images([str(tmp_path)])] == ["one"]
