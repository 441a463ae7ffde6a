"""A pipeline of one's own with some of the steps: pairs of photographs of one folder that show the same.

    python examples/near_duplicates.py photos/ features

Features are extracted once; then every photograph is a query among all of them, and what agrees with a
homography is printed. What lies in `features` is a feature store: started again, it extracts what is new.
"""

import argparse
from collections.abc import Iterator

import apache_beam as beam

from transforms import (
    CandidateUnit,
    ExtractFeatures,
    GroupIntoBlocks,
    RetrieveNearest,
    VerificationSettings,
    VerifyCandidates,
    image_units,
    match_images,
)


def pairs(unit: CandidateUnit) -> Iterator[tuple[tuple[str, str], int]]:
    """Each photograph of a unit with those like it, and the inliers of the two."""
    for query in unit.queries:
        for candidate in query.candidates:
            if candidate.image_id != query.image_id:
                one, other = sorted((query.image_id, candidate.image_id))
                yield (one, other), candidate.inliers or 0


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("photographs", help="a folder")
    parser.add_argument("features", help="folder for the features")
    parser.add_argument("--model", default="rootsift-vlad")
    parser.add_argument("--min_inliers", type=int, default=30)
    args, beam_flags = parser.parse_known_args(argv)
    units = image_units(match_images([args.photographs]).images, args.model)

    with beam.Pipeline(argv=beam_flags) as pipeline:
        pipeline | beam.Create(units) | ExtractFeatures(model=args.model, store=args.features)

    with beam.Pipeline(argv=beam_flags) as pipeline:
        (
            pipeline
            | beam.Create([unit.name for unit in units])
            | GroupIntoBlocks()
            | RetrieveNearest(index=args.features, queries=args.features, k=5)
            | VerifyCandidates(args.features, args.features, VerificationSettings(mutual_check=True))
            | beam.FlatMap(pairs)
            | beam.CombinePerKey(max)  # a pair is found from either side
            | beam.Filter(lambda found: found[1] >= args.min_inliers)
            | beam.MapTuple(lambda pair, inliers: print(*pair, inliers))
        )


if __name__ == "__main__":
    main()
