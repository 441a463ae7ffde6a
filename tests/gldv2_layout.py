"""Small data sets in the published layout of Google Landmarks v2, as files by path."""

import hashlib
import io
import tarfile
from collections.abc import Iterable, Mapping

from beam_pipeline.gldv2 import published


def image_id(name: str) -> str:
    """An id as the data set has them, made from a name."""
    return hashlib.md5(name.encode()).hexdigest()[:16]


def member_name(image_id: str) -> str:
    """a/b/c/<id>.jpg"""
    return "/".join([*image_id[:3], f"{image_id}.jpg"])


def tar_of(members: Iterable[tuple[str, bytes]], end: bool = True) -> bytes:
    """A tar file of plain files; without `end` it lacks its closing blocks."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        size = tar.offset
    return content.getvalue() if end else content.getvalue()[:size]


def archives(split: str, photographs: Mapping[str, bytes], count: int) -> dict[str, bytes]:
    """Files of a split: photographs by id, dealt out to `count` archives, and their checksums."""
    ids = sorted(photographs)
    found = {}
    for number in range(count):
        members = ((member_name(name), photographs[name]) for name in ids[number::count])
        found.update(archive(split, number, tar_of(members)))
    return found


def archive(split: str, number: int, content: bytes) -> dict[str, bytes]:
    """An archive and its checksum."""
    line = f"{hashlib.md5(content).hexdigest()}  {published.archive_name(number)}\n"
    return {
        published.archive_url("", split, number): content,
        published.checksum_url("", split, number): line.encode(),
    }


def site(
    train: Mapping[str, tuple[bytes, str | None]],
    test: Mapping[str, tuple[bytes, str | None]],
    train_archives: int,
    test_archives: int,
) -> dict[str, bytes]:
    """A data set: photographs and their landmarks by id, None for what no table lists and for queries that
    show nothing.
    """
    images: dict[str, list[str]] = {}
    for name, (_, landmark) in train.items():
        if landmark is not None:
            images.setdefault(landmark, []).append(name)
    clean = "landmark_id,images\n" + "".join(f"{k},{' '.join(v)}\n" for k, v in images.items())
    truth = "id,landmarks,Usage\n" + "".join(
        f"{name},{landmark or ''},{'Private' if at % 3 else 'Public'}\n"
        for at, (name, (_, landmark)) in enumerate(sorted(test.items()))
    )
    return {
        **archives("train", {name: data for name, (data, _) in train.items()}, train_archives),
        **archives("test", {name: data for name, (data, _) in test.items()}, test_archives),
        f"/{published.CLEAN_LABELS}": clean.encode(),
        f"/{published.TRUTH}": truth.encode(),
        "/ground_truth/retrieval_solution_v2.1.csv": b"id,images,Usage\n",
    }
