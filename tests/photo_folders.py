"""Photographs in folders as people keep them: repeated names, odd names, every format, archives, and junk.

    python -m tests.photo_folders PHOTOS FOLDER [LANDMARKS [PHOTOGRAPHS]]

arranges some of PHOTOS (photos.csv: id, path, label, kind) below FOLDER: photos/ for an index, new/ and
truth.csv to recognize.
"""

import csv
import io
import os
import pathlib
import sys
import unicodedata
from collections.abc import Mapping, Sequence

from PIL import Image

from tests.file_systems import write
from tests.gldv2_layout import tar_of
from transforms.file_formats import READS_HEIF

# How a camera, a phone or a person calls the photographs of a folder, in turn; heic where it can be written.
NAMES = (
    *("IMG_0001.JPG", "IMG_0002.HEIC", "IMG_0003.jpg", "IMG_0004.HEIC", "DSC 0005.jpeg", "DSC 0006.png"),
    *("-IMG_0007.webp", "the one 😀.tif", "größe.bmp", unicodedata.normalize("NFD", "größe 2.jfif")),
    *("L" * 242 + "ong name.avif", 'a, "b"; it\'s.gif'),
)
_KINDS = {"JPG": "JPEG", "jpg": "JPEG", "jpeg": "JPEG", "jfif": "JPEG", "tif": "TIFF"}

JUNK = {
    "._IMG_0001.JPG": b"\0\5\x16\7",
    ".DS_Store": b"\0\0\0\1Bud1",
    "Thumbs.db": b"\xd0\xcf\x11\xe0",
    "desktop.ini": b"[.ShellClassInfo]",
    "MVI_0003.MOV": b"\0\0\0\x14ftypqt  ",
    "notes.txt": b"the one with the red door",
    "@eaDir/IMG_0001.JPG/SYNOPHOTO_THUMB_M.jpg": b"\xff\xd8\xff",
    ".thumbnails/1.png": b"\x89PNG",
}


def encoded(image: Image.Image, name: str) -> bytes:
    """A picture in the format that a file's name says."""
    kind, content = name.rpartition(".")[2], io.BytesIO()
    if kind == "HEIC":
        import pillow_heif

        pillow_heif.from_pillow(image).save(content, quality=90, enc_params={"preset": "ultrafast"})
    else:
        image.save(
            content, _KINDS.get(kind, kind.upper()), **({"quality": 92} if kind in "JPGjpegwebp" else {})
        )
    return content.getvalue()


def names(count: int) -> list[str]:
    """So many names of photographs in a folder, but for those that cannot be written here."""
    known = [name for name in NAMES if READS_HEIF or not name.endswith("HEIC")]
    return [*known, *(f"IMG_{number:04d}.JPG" for number in range(20, 20 + count))][:count]


Photographs = Mapping[str, Sequence[Image.Image]]  # by landmark


def arrange(folder: pathlib.Path, known: Photographs, asked: Photographs) -> None:
    """Arranges photographs by landmark: those that are known below photos/, in a folder or, for every fourth
    landmark, a tar file of its name, and those that are asked for below new/DCIM, in rolls of two landmarks;
    truth.csv has what these show.
    """
    folder = folder.absolute()
    photos, new = folder / "photos", folder / "new"
    for number, (landmark, images) in enumerate(known.items()):
        files = [(name, encoded(image, name)) for name, image in zip(names(len(images)), images)]
        if number % 4 == 3:
            write(photos / f"{landmark}.tar", tar_of(files))
        else:
            place = photos / landmark if number % 2 else photos / "holidays" / landmark
            for name, data in files:
                write(place / name, data)
            (photos / "best").mkdir(exist_ok=True)
            (photos / "best" / f"{number}.jpg").symlink_to(place / files[0][0])
    for name, data in JUNK.items():
        write(photos / name, data)
        write(new / name, data)
    (photos / "empty").mkdir()
    (photos / "all my photos").symlink_to(photos)
    rows = [("id", "landmark_id")]
    for number, (landmark, images) in enumerate(asked.items()):
        roll = f"DCIM/{100 + number // 2}CANON"
        first = 1 + (number % 2) * 500
        for at, image in enumerate(images):
            name = f"IMG_{first + at:04d}.{'HEIC' if at % 3 == 2 and READS_HEIF else 'JPG'}"
            write(new / roll / name, encoded(image, name))
            rows.append((f"{roll}/{name}", landmark))
    with open(folder / "truth.csv", "w", newline="", encoding="utf-8") as f:
        csv.writer(f).writerows(rows)


def of_photos(photos: str, landmarks: int, photographs: int) -> tuple[dict[str, list[Image.Image]], ...]:
    """Some landmarks of the photographs for tests, with as many photographs: two of three to be known, the
    others to be asked for.
    """
    by_label: dict[str, list[str]] = {}
    with open(os.path.join(photos, "photos.csv"), newline="", encoding="utf-8") as f:
        for row in csv.DictReader(f):
            if row["kind"] == "landmark":
                by_label.setdefault(row["label"], []).append(row["path"])
    chosen = [label for label, paths in sorted(by_label.items()) if len(paths) >= photographs][:landmarks]
    found = []
    for is_known in (True, False):
        found.append(
            {
                label.replace("_", " ").title(): [
                    Image.open(os.path.join(photos, path)).convert("RGB")
                    for at, path in enumerate(sorted(by_label[label])[:photographs])
                    if (at % 3 < 2) is is_known
                ]
                for label in chosen
            }
        )
    return tuple(found)


if __name__ == "__main__":
    photos, folder, *counts = sys.argv[1:]
    known, asked = of_photos(photos, *map(int, counts or (20, 15)))
    arrange(pathlib.Path(folder), known, asked)
