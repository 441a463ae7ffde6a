"""The whole jobs from Python: indexes labelled photographs, recognizes others, and prints what they show.

python examples/recognize_photographs.py photos/ labels.csv new_photos/ out
"""

import argparse

import pyarrow.parquet as pq

from beam_pipeline import jobs
from beam_pipeline.config import PRESETS, IndexConfig, RecognizeConfig


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("photographs", help="a folder with the photographs to learn from")
    parser.add_argument("labels", help="a CSV: id,landmark_id")
    parser.add_argument("queries", help="a folder with other photographs")
    parser.add_argument("output", help="folder to make")
    parser.add_argument("--model", default="embedded")
    args = parser.parse_args(argv)
    index, run = f"{args.output}/index", f"{args.output}/run"

    # Started again, both find what is done already.
    indexed = jobs.index(IndexConfig((args.photographs,), args.labels, index, args.model))
    print(f"{indexed.counts.indexed} photographs indexed")
    jobs.recognize(RecognizeConfig((args.queries,), index, run, **vars(PRESETS["accurate"])))

    predictions = pq.read_table(f"{run}/predictions", columns=["image_id", "landmark_id", "score"])
    for row in predictions.sort_by("image_id").to_pylist():
        score = "" if row["score"] is None else f"{row['score']:.2f}"
        print(row["image_id"], row["landmark_id"] or "-", score)


if __name__ == "__main__":
    main()
