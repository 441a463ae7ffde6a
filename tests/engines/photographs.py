"""Chooses a few photographs for the scripts in this folder, and writes the lists and tables that the commands
take.

    python tests/engines/photographs.py FOLDER --images N --queries M --demo DIR

From the folder that LANDMARKS_PHOTOS names (photos.csv: id,path,label,kind); without it from the demo set,
which is made in DIR.
"""

import argparse
import csv
import os
import pathlib

from beam_pipeline import demo


def choose(
    photos: pathlib.Path, images: int, queries: int
) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Rows of photos.csv, label by label: the first to index, and of the same labels as many to recognize as
    are asked for.
    """
    with open(photos / "photos.csv", encoding="utf-8", newline="") as f:
        landmarks = [row for row in csv.DictReader(f) if row["kind"] == "landmark"]
    chosen = sorted(landmarks, key=lambda row: (row["label"], row["id"]))[: images + queries]
    step = max(2, len(chosen) // queries)  # queries are spread over the labels
    recognized = chosen[step - 1 :: step][:queries]
    taken = {row["id"] for row in recognized}
    return [row for row in chosen if row["id"] not in taken][:images], recognized


def main() -> None:
    """See the module's documentation."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--images", type=int, required=True)
    parser.add_argument("--queries", type=int, required=True)
    parser.add_argument("--demo", required=True)
    args = parser.parse_args()
    if "LANDMARKS_PHOTOS" in os.environ:
        photos = pathlib.Path(os.environ["LANDMARKS_PHOTOS"]).resolve()
        index, queries = choose(photos, args.images, args.queries)
        index_paths, query_paths = ([str(photos / row["path"]) for row in rows] for rows in (index, queries))
        labels = [f"{row['id']},{row['label']}" for row in index]
        truth = [f"{row['id']},{row['label']},Public" for row in queries]
    else:
        made = demo.make_demo(args.demo)
        labels, truth = (
            pathlib.Path(path).read_text("utf-8").splitlines()[1 : count + 1]
            for path, count in ((made.labels, args.images), (made.truth, args.queries))
        )
        index_paths, query_paths = (
            _paths(folder, rows) for folder, rows in ((made.index, labels), (made.queries, truth))
        )
    for name, lines in (
        ("index.txt", index_paths),
        ("queries.txt", query_paths),
        ("labels.csv", ["id,landmark_id", *labels]),
        ("truth.csv", ["id,landmarks,Usage", *truth]),
    ):
        (args.folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    print(f"{len(index_paths)} photographs to index, {len(query_paths)} to recognize")


def _paths(folder: str, rows: list[str]) -> list[str]:
    found = {path.stem: str(path.resolve()) for path in pathlib.Path(folder).rglob("*.jpg")}
    return [found[row.split(",")[0]] for row in rows]


if __name__ == "__main__":
    main()
