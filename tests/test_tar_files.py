"""Photographs inside tar files, read by range."""

import io
import os
import random
import tarfile

import numpy as np
import pytest

from tests import gldv2_layout, pictures
from tests.file_systems import FolderFileSystem
from transforms import images, patterns
from transforms.storage import files, tar_files
from transforms.storage.uris import Member, member_of
from transforms.types import DecodedImage, ImageRef

CONTENTS = {
    "a.jpg": b"first",
    "folder/b.jpg": b"",
    "folder/" + "long" * 60 + ".jpg": b"z" * 5000,
    "größe 😀.jpg": b"umlaut",
    "c.txt": b"x" * 512,
}


def tar_bytes(contents=CONTENTS, format=tarfile.PAX_FORMAT):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=format) as tar:
        for name, data in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return content.getvalue()


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a file, and gives its URI on this machine or elsewhere."""

    def write(name, data, remote=False):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        if remote:
            FolderFileSystem.use(tmp_path, monkeypatch)
        return f"folder://{name}" if remote else str(path)

    return write


def found(uri):
    size = files.remote_entry(uri).size if "://" in uri else os.path.getsize(uri)
    return tar_files.contents(uri, size)


def rows(uri):
    return {row["name"]: (row["offset"], row["size"]) for row in found(uri).members.to_pylist()}


@pytest.mark.parametrize("remote", [False, True], ids=["local", "remote"])
@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT], ids=["gnu", "pax"])
def test_members_are_read_where_they_lie(format, remote, write, monkeypatch):
    monkeypatch.setattr(tar_files, "_REMOTE_WINDOW", 2048)
    uri = write("photos.tar", tar_bytes(format=format), remote)
    places = rows(uri)
    assert places.keys() == CONTENTS.keys() and found(uri).refused == ()
    for name, (offset, size) in places.items():
        member = Member(uri, offset, size, name)
        assert member_of(member.uri) == member
        assert files.read_bytes(member.uri) == CONTENTS[name]
        assert files.read_bytes(member.uri, 2, 1) == CONTENTS[name][2:3] if size > 2 else True


def test_names_of_members_are_told_from_others():
    assert member_of("/a/b.tar/c.jpg") is None and member_of("/a/b#1+2/c.jpg") is None
    assert member_of("gs://b/x.TAR#1536+48211/a/b.jpg") == ("gs://b/x.TAR", 1536, 48211, "a/b.jpg")


def test_the_list_is_made_once_and_made_again_for_another_archive(write, monkeypatch):
    scanned = []
    real = tar_files.scan
    monkeypatch.setattr(tar_files, "scan", lambda *given: scanned.append(given) or real(*given))
    uri = write("photos.tar", tar_bytes())
    first = rows(uri)
    assert rows(uri) == first and len(scanned) == 1
    same_size = {"b" + name[1:] if name == "a.jpg" else name: data for name, data in CONTENTS.items()}
    same_size = dict(reversed(same_size.items()))
    changed = tar_bytes(same_size)
    assert len(changed) == len(tar_bytes())
    write("photos.tar", changed)
    assert rows(uri).keys() == same_size.keys() and len(scanned) == 2
    (files_list := uri + tar_files.LIST_SUFFIX) and write(os.path.basename(files_list), b"broken")
    assert rows(uri).keys() == same_size.keys() and len(scanned) == 3


def test_what_is_refused_is_said_each_time(write):
    content = tar_bytes({"../a.jpg": b"x", "b.jpg": b"y"})
    uri = write("photos.tar", content)
    for _ in range(2):
        members, refused = found(uri)
        assert members["name"].to_pylist() == ["b.jpg"]
        assert refused == (f"{uri}: '../a.jpg' leads out of the archive",)


def test_a_folder_that_cannot_be_written_to_is_read_all_the_same(write, monkeypatch):
    def refuse(uri, data):
        raise PermissionError(13, "Permission denied", uri)

    monkeypatch.setattr(files, "write_bytes", refuse)
    assert rows(write("photos.tar", tar_bytes())).keys() == CONTENTS.keys()


def test_an_archive_cut_short_anywhere_gives_what_is_whole_and_a_line(write):
    whole = tar_bytes(format=tarfile.GNU_FORMAT)
    last = max(at + size for at, size in rows(write("whole.tar", whole)).values())
    for end in range(512, len(whole), 509):
        uri = write("cut.tar", whole[:end])
        try:
            members, refused = tar_files.scan(uri, end)
        except tar_files.TarError:
            continue
        assert all(row["offset"] + row["size"] <= end for row in members.to_pylist())
        assert refused or end > last
        for row in members.to_pylist():
            member = Member(uri, row["offset"], row["size"], row["name"])
            assert files.read_bytes(member.uri) == CONTENTS[row["name"]]


def test_damaged_archives_never_lead_out_of_themselves(write):
    whole, draw = tar_bytes(), random.Random(0)
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(draw.randint(1, 30)):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        uri = write("damaged.tar", bytes(damaged))
        try:
            members, _ = tar_files.scan(uri, len(damaged))
        except tar_files.TarError:
            continue
        for row in members.to_pylist():
            assert 0 <= row["offset"] <= row["offset"] + row["size"] <= len(damaged)
            assert ".." not in row["name"].split("/") and not row["name"].startswith("/")


def test_a_header_that_says_it_is_huge_is_not_read(write):
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, 1 << 33
    good = tar_bytes({"a.jpg": b"x"})[:1024]
    uri = write("bomb.tar", good + info.tobuf(tarfile.GNU_FORMAT) + bytes(10240))
    members, refused = found(uri)
    assert members["name"].to_pylist() == ["a.jpg"] and "a header of 8,589,934,592 bytes" in refused[0]


@pytest.mark.parametrize("mode, kind", [("w:gz", "gzip"), ("w:bz2", "bzip2"), ("w:xz", "xz")])
def test_a_compressed_archive_is_refused_with_a_word(mode, kind, write, tmp_path):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode=mode) as tar:
        tar.addfile(tarfile.TarInfo("a.jpg"))
    uri = write("photos.tar", content.getvalue())
    with pytest.raises(patterns.MatchError, match=rf"photos.tar is compressed by {kind}.*unpack it"):
        patterns.match_images([uri])
    named = write("photos.tar.gz", content.getvalue())
    with pytest.raises(patterns.MatchError, match=r"photos.tar.gz is compressed: .*unpack it"):
        patterns.match_images([named])
    os.remove(uri)
    said = []
    write("x.jpg", b"x")
    assert patterns.match_images([str(tmp_path)], said.append).passed_over == {".gz": 1}
    assert len(said) == 1 and "photos.tar.gz is compressed" in said[0]


def test_what_is_no_tar_file_is_named(write):
    for content in (b"", b"x" * 2000, b"\xff\xd8\xff" + bytes(2000)):
        with pytest.raises(patterns.MatchError, match="photos.tar is no tar file"):
            patterns.match_images([write("photos.tar", content)])


@pytest.mark.parametrize("remote", [False, True], ids=["local", "remote"])
def test_folders_globs_and_lists_name_photographs_in_archives(remote, write, tmp_path):
    junk = {"a.cls": b"7", ".hidden/h.jpg": b"x", "folder/._a.jpg": b"x", "./d.png": b"d", "../e.jpg": b"e"}
    archive = write("photos/shard-000.tar", tar_bytes({"folder/a.jpg": b"aa", "b.JPG": b"b", **junk}), remote)
    write("photos/c.jpg", b"c")
    folder = archive.rsplit("/", 1)[0]
    said = []
    matched = patterns.match_images([folder], said.append)
    assert [ref.image_id for ref in matched.images] == ["a", "b", "c", "d"]
    assert matched.passed_over == {patterns.HIDDEN: 2, ".cls": 1, patterns.REFUSED: 1}
    assert said == [f"{archive}: '../e.jpg' leads out of the archive"]
    a = matched.images[0]
    assert a.size_bytes == 2 and a.uri.endswith("shard-000.tar#512+2/folder/a.jpg")
    assert files.read_bytes(a.uri) == b"aa" and a.version
    inside = [ref for ref in matched.images if ref.image_id != "c"]
    for pattern in (archive, f"{folder}/shard-*.tar", f"{folder}/**/*.tar"):
        assert patterns.match_images([pattern]).images == inside
    write("list.txt", "".join(f"{ref.uri}\n" for ref in inside).encode())
    listed = patterns.match_images([f"@{tmp_path}/list.txt"]).images
    assert listed == inside
    write("photos/here.txt", b"shard-000.tar#512+2/folder/a.jpg\n")
    assert patterns.match_images([f"@{folder}/here.txt"]).images == inside[:1]


def test_photographs_of_one_id_are_named_with_their_archives(write, tmp_path):
    write("one.tar", tar_bytes({"x/a.jpg": b"1"})), write("two.tar", tar_bytes({"y/a.jpg": b"2"}))
    with pytest.raises(patterns.MatchError, match=r"id 'a': .*one.tar#512\+1/x/a.jpg and .*two.tar#512\+1/y"):
        patterns.match_images([str(tmp_path)])


def test_an_archive_that_was_changed_holds_other_photographs(write):
    uri = write("photos.tar", tar_bytes())
    before = patterns.match_images([uri]).images
    assert patterns.match_images([uri]).images == before
    os.utime(uri, ns=(1, os.stat(uri).st_mtime_ns + 1_000_000_000))
    after = patterns.match_images([uri]).images
    assert [ref.uri for ref in after] == [ref.uri for ref in before]
    assert all(a.version != b.version for a, b in zip(after, before))


def jpeg(seed):
    return pictures.encoded(pictures.textured(60, 80, seed), "JPEG")


@pytest.mark.parametrize("remote", [False, True], ids=["local", "remote"])
def test_photographs_are_decoded_from_their_bytes_alone(remote, write, monkeypatch):
    photographs = {f"{seed:016x}": jpeg(seed) for seed in range(20)}
    uri = write(
        "b/photos.tar", gldv2_layout.tar_of((f"{n}.jpg", data) for n, data in photographs.items()), remote
    )
    refs = patterns.match_images([uri]).images
    asked = []
    real = files.read_bytes
    monkeypatch.setattr(files, "read_bytes", lambda *given: asked.append(given) or real(*given))
    wanted = refs[3:20:8]
    for ref, image in zip(wanted, images.read_images(wanted, 80)):
        assert isinstance(image, DecodedImage)
        pixels, *_ = images.decode_image(photographs[ref.image_id], 80)
        assert np.array_equal(image.pixels, pixels)
    ranges = [given for given in asked if len(given) == 3]
    assert sorted(size for _, _, size in ranges) == sorted(ref.size_bytes for ref in wanted)


def test_an_archive_that_is_gone_or_shorter_is_a_failure_row(write):
    uri = write("photos.tar", tar_bytes({"a.jpg": jpeg(0)}))
    (ref,) = patterns.match_images([uri]).images
    with open(uri, "r+b") as f:
        f.truncate(1000)
    assert images.read_image(ref, 80).kind == "unreadable"
    os.remove(uri)
    assert images.read_image(ref, 80).kind == "not_found"
    assert (
        images.read_image(ImageRef("a", uri.replace("photos", "other") + "#1+2/a.jpg", 2), 80).kind
        == "not_found"
    )
