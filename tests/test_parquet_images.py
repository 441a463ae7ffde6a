"""Photographs in Parquet tables, by their bytes or their paths, read by row group."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests import pictures
from tests.file_systems import FolderFileSystem
from transforms import images, patterns
from transforms.storage import files, parquet_images, tables
from transforms.storage.uris import Row, held_in, member_of, row_of
from transforms.types import DecodedImage, ReadingConfig


def picture(seed):
    return pictures.encoded(pictures.textured(60, 80, seed), "JPEG")


NAMES = ["a/x.jpg", "a/y z.png", "b/ü 😀.jpg", "b/._q.jpg", "c/1.jpg", "c/2.jpg"]
CONTENTS = {name: picture(seed) for seed, name in enumerate(NAMES)}


@pytest.fixture(params=["local", "remote"])
def write(request, tmp_path, monkeypatch):
    """Writes a table, two rows in each row group, and gives its URI on this machine or elsewhere."""
    remote = request.param == "remote"
    if remote:
        FolderFileSystem.use(tmp_path, monkeypatch)

    def write(columns, name="p/x.parquet", **options):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), path, row_group_size=2, **options)
        return f"folder://{name}" if remote else str(path)

    return write


def hugging_face(contents=CONTENTS):
    return pa.array([{"bytes": data, "path": name} for name, data in contents.items()])


def ids(*given, **options):
    return [ref.image_id for ref in patterns.match_images(list(given), **options).images]


def same(image, name):
    return isinstance(image, DecodedImage) and np.array_equal(
        image.pixels, images.decode_image(CONTENTS[name], 80)[0]
    )


def test_names_of_rows_are_told_from_others():
    row = Row("gs://b/x.PARQUET", 3, 17, "a/b.jpg")
    assert row.uri == "gs://b/x.PARQUET#3+17/a/b.jpg" and row_of(row.uri) == row == held_in(row.uri)
    assert (
        member_of(row.uri) is None
        and row_of("/a/x.tar#1+2/b.jpg") is None
        and row_of("/a.parquet/b#1") is None
    )


def test_rows_are_photographs_called_by_their_paths(write):
    uri = write({"image": hugging_face(), "label": list("001122")})
    found = patterns.match_images([uri], image_ids="path", label_levels=1).images
    assert [ref.image_id for ref in found] == sorted(NAMES)
    assert [ref.landmark_id for ref in found] == ["a", "a", "b", "b", "c", "c"]
    assert found[0].uri == f"{uri}#0+0/a/x.jpg" and found[0].size_bytes == 0 and found[0].version
    for ref, image in zip(found, images.read_images(found, 80)):
        assert same(image, ref.image_id)
    assert ids(uri) == ["._q", "1", "2", "x", "y z", "ü 😀"]
    assert tables.read_labels(uri).to_pylist()[1] == {"image_id": "y z", "landmark_id": "0"}
    assert tables.read_labels(uri, "path").to_pylist()[1] == {"image_id": "a/y z.png", "landmark_id": "0"}
    assert same(images.read_image(found[3], 80), found[3].image_id)
    assert patterns.current(found[3].uri) == (
        found[3].uri,
        0,
        patterns.current(uri).updated,
        found[3].version,
    )


@pytest.mark.parametrize("compression", ["NONE", "snappy", "zstd"])
def test_a_unit_reads_its_row_groups_once_and_no_others(write, monkeypatch, compression):
    heavy = [bytes(100_000) + bytes([n]) for n in range(6)]
    random = np.random.default_rng(0)
    contents = {name: data + random.bytes(50_000) for name, data in CONTENTS.items()}
    uri = write({"image": hugging_face(contents), "mask": heavy}, compression=compression)
    found = {ref.image_id: ref for ref in patterns.match_images([uri], image_ids="path").images}
    wanted = [found[name] for name in ("c/2.jpg", "a/x.jpg", "c/1.jpg")]
    read, real = [], parquet_images._contents
    monkeypatch.setattr(
        parquet_images,
        "_contents",
        lambda file, group, name: read.append((group, name)) or real(file, group, name),
    )
    assert all(map(same, images.read_images(wanted, 80), ["c/2.jpg", "a/x.jpg", "c/1.jpg"]))
    assert sorted(read) == [(0, "image.bytes"), (2, "image.bytes")]


def test_elsewhere_only_the_bytes_of_those_row_groups_are_asked_for(tmp_path, monkeypatch):
    FolderFileSystem.use(tmp_path, monkeypatch)
    random = np.random.default_rng(0)
    contents = [{"bytes": random.bytes(300_000), "path": f"{n}.jpg"} for n in range(20)]
    (tmp_path / "p").mkdir()
    pq.write_table(pa.table({"image": contents}), tmp_path / "p" / "x.parquet", row_group_size=2)
    asked, real = [], files.read_bytes
    monkeypatch.setattr(files, "read_bytes", lambda *given: asked.append(given) or real(*given))
    refs = patterns.match_images(["folder://p/x.parquet"]).images
    assert sum(size for _, _, size in asked) < 300_000
    asked.clear()
    reader = parquet_images.RowReader(ref.uri for ref in refs[:1])
    assert reader.read(row_of(refs[0].uri)) == contents[0]["bytes"]
    assert 300_000 <= sum(size for _, _, size in asked) < 1_000_000


def test_what_is_held_before_its_turn_is_bounded(write, monkeypatch):
    uri = write({"image": hugging_face()})
    refs = patterns.match_images([uri], image_ids="path").images
    monkeypatch.setattr(parquet_images, "_HELD_BYTES", 1)
    reader = parquet_images.RowReader(ref.uri for ref in refs)
    for ref in refs:
        assert reader.read(row_of(ref.uri)) == CONTENTS[ref.image_id]
        assert sum(map(len, reader._held.values())) <= max(map(len, CONTENTS.values()))


def test_columns_of_bytes_ids_and_nothing_else(write):
    content = list(CONTENTS.values())
    assert ids(write({"photo": content, "id": list("fedcba")})) == list("abcdef")
    assert ids(write({"jpg": pa.array(content, pa.large_binary()), "image_id": range(6)})) == list("012345")
    assert ids(write({"image": content, "mask": content, "path": NAMES}), image_ids="path") == sorted(NAMES)
    assert ids(write({"image": content, "path": NAMES, "id": list("abcdef")})) == list("abcdef")
    uri = write({"image": content, "label": range(6)}, "p/v1.0-of-2.parquet")
    assert ids(uri) == ids(uri, image_ids="path") == [f"v1_0-of-2-{n:06d}" for n in range(6)]
    assert tables.read_labels(uri)["image_id"].to_pylist() == ids(uri)
    for ref, name in zip(patterns.match_images([uri]).images, NAMES):
        assert same(images.read_image(ref, 80), name)


def test_paths_lead_to_files_beside_the_table(write, tmp_path):
    for name in ("a/x.jpg", "b/ü 😀.jpg"):
        (tmp_path / "p" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "p" / name).write_bytes(CONTENTS[name])
    places = ["a/x.jpg", "b/ü 😀.jpg", "gone.jpg"]
    of_nulls = pa.array([{"bytes": None, "path": name} for name in places], hugging_face().type)
    mixed = pa.array([{"bytes": CONTENTS["c/1.jpg"], "path": "c/1.jpg"}, *of_nulls.to_pylist()])
    for columns in ({"path": places}, {"file_name": places}, {"image": of_nulls}, {"image": mixed}):
        uri = write(columns)
        found = patterns.match_images([uri], image_ids="path").images
        by_id = {ref.image_id: images.read_image(ref, 80) for ref in found}
        assert by_id.keys() - {"c/1.jpg"} == {*places}
        assert all(same(image, name) for name, image in by_id.items() if name != "gone.jpg")
        assert by_id["gone.jpg"].kind == "not_found"


def test_a_folder_gives_the_tables_of_images_in_it_and_counts_others(write, tmp_path):
    uri = write({"image": hugging_face(), "label": list("001122")})
    write({"path": NAMES, "label": list("001122")}, "p/labels.parquet")
    (tmp_path / "p" / "z.jpg").write_bytes(b"x")
    folder = uri.rsplit("/", 1)[0]
    found = patterns.match_images([folder])
    assert [ref.image_id for ref in found.images] == ["._q", "1", "2", "x", "y z", "z", "ü 😀"]
    assert found.passed_over == {".parquet": 1}
    assert "x.parquet/a/x.jpg" in ids(folder, image_ids="path")
    assert ids(folder, exclude=["b", "**/c/*"]) == ["x", "y z", "z"]
    assert ids(folder, exclude=["x.parquet"]) == ["z"]


@pytest.mark.parametrize(
    "columns, problem",
    [
        ({"label": [1]}, "x.parquet has no column of images, their bytes or their paths"),
        ({"a": [b"x"], "b": [b"y"]}, "x.parquet has several columns of bytes, a, b; call that of the images"),
        ({"path": ["../a.jpg"]}, "x.parquet: '../a.jpg' leads out of the table's folder"),
        (
            {"image": pa.array([None], hugging_face().type)},
            "x.parquet, row 1: neither an image's bytes nor its",
        ),
        (
            {"image": [b"x", b"y"], "path": ["a.jpg", "b/a.jpg"]},
            r"two files have the image id 'a': .*x.parquet#0\+0",
        ),
    ],
)
def test_wrong_tables_are_named(write, columns, problem):
    with pytest.raises(patterns.MatchError, match=problem):
        patterns.match_images([write(columns)])


def test_what_is_no_parquet_is_named(tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"PAR1rest")
    for pattern in (f"{tmp_path}/x.parquet", str(tmp_path)):
        with pytest.raises(patterns.MatchError, match="x.parquet is no whole Parquet file"):
            patterns.match_images([pattern])


def test_a_table_that_was_damaged_or_is_gone_gives_failure_rows(write, tmp_path):
    uri = write({"image": hugging_face()}, compression="zstd")
    refs = patterns.match_images([uri], image_ids="path").images
    path = tmp_path / "p" / "x.parquet"
    whole = path.read_bytes()
    path.write_bytes(bytes(4) + b"x" * 2000 + whole[2004:])
    assert images.read_image(refs[0], 80).kind in ("unreadable", "not_an_image", "corrupt")
    write({"image": hugging_face({"a.jpg": b"x"})})
    assert images.read_image(refs[-1], 80).kind == "unreadable"
    path.unlink()
    assert images.read_image(refs[0], 80).kind == "not_found"


def test_a_photograph_larger_than_the_limit_is_told_when_it_is_read(write):
    uri = write({"image": hugging_face({"a.jpg": bytes(2_000_000)})})
    (ref,) = patterns.match_images([uri]).images
    failure = images.read_image(ref, 80, ReadingConfig(max_image_memory=1))
    assert (failure.kind, failure.limit, failure.needed) == ("too_large", "max_image_memory", 2)
