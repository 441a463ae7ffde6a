"""Makes the cohort that comes with the embedded model, of the first part of the split alone:
`python -m training.cohort --photographs FOLDER`.

Photographs of landmarks, few of each, of buildings and scenery without a label, and of other things. What
ships are numbers: ids are replaced by numbers, and no place is named.
"""

import argparse
import collections
import dataclasses
import os
import shutil
import time

from beam_pipeline import outputs, recipe
from beam_pipeline.config import ExtractionOverrides
from beam_pipeline.manifest import CohortCounts, CohortManifest, digest, versions
from training import split
from transforms.features import extract_unit
from transforms.models import catalog
from transforms.models.embedded import EmbeddedModel
from transforms.storage.feature_store import FeatureStore
from transforms.types import ImageRef, ImageUnit, ReadingConfig

# Photographs by kind; of a landmark PER_LABEL at most.
COUNTS = {"unlabelled": 45, "landmark": 40, "distractor": 15}
PER_LABEL = 4


def chosen(photographs: list[split.Photograph]) -> list[split.Photograph]:
    """The photographs of the cohort, in an order that tells nothing of what they show."""
    found = []
    for kind, count in COUNTS.items():
        labels: collections.Counter[str] = collections.Counter()
        members = [one for one in photographs if one.part == "train" and one.kind == kind]
        for one in sorted(members, key=lambda one: split.order("cohort", one.id)):
            if not one.label or labels[one.label] < PER_LABEL:
                labels[one.label] += 1
                found.append((one, count))
                count -= 1
            if not count:
                break
    return sorted((one for one, _ in found), key=lambda one: split.order("cohort", one.id))


def main() -> None:
    """Writes the folder that ships."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photographs", required=True, help="folder with photos.csv")
    parser.add_argument("--output", default=EmbeddedModel.COHORT, help="folder to make anew")
    args = parser.parse_args()
    started = time.monotonic()
    made = recipe.choose(catalog.EMBEDDED, ExtractionOverrides(), ReadingConfig())
    model = catalog.load(made.model, made.settings)
    members = chosen(split.read_photographs(args.photographs))
    refs = [
        ImageRef(f"{at:04d}", os.path.join(args.photographs, one.path), 0) for at, one in enumerate(members)
    ]
    name = f"000000-{digest([made.identity, [one.id for one in members]])}"
    found = extract_unit(ImageUnit(name, tuple(refs)), model, made.reader)
    assert found is not None and not found.failures, found
    features = [dataclasses.replace(one, ref=ImageRef(one.ref.image_id, "", 0)) for one in found.features]
    shutil.rmtree(args.output, ignore_errors=True)
    store = FeatureStore(args.output)
    store.write_unit(name, features, (), found.dimensions)
    manifest = CohortManifest(
        recipe=made,
        shards=(store.summary(name),),
        counts=CohortCounts(len(refs), 0),
        seconds={"total": round(time.monotonic() - started, 3)},
        versions=versions(),
    )
    outputs.finish(args.output, manifest)


if __name__ == "__main__":
    main()
