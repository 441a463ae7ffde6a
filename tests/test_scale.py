"""What travels between workers stays small, however many the photographs; `benchmarks/run.py scale` measures
it at size.
"""

import pathlib
import pickle
import tracemalloc
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from beam_pipeline import index
from benchmarks.scale import full_size_elements
from benchmarks.scale_job import RecordingRunner, collections
from tests import tiny_models
from tests.descriptors import unit_rows
from tests.feature_stores import write_store
from transforms import retrieval
from transforms.aggregation import AggregatePredictions
from transforms.extraction import ExtractFeatures, image_units
from transforms.models.card import ExtractionSettings
from transforms.patterns import match_images
from transforms.retrieval import QueryBlock, RetrieveNearest, plan_groups
from transforms.storage import worklist
from transforms.storage.worklist import ListedUnit, ReadUnits, make_units, write_worklist
from transforms.types import VerificationSettings
from transforms.verification import VerifyCandidates

GLDV2_IMAGES, GLDV2_QUERIES, WORKERS = 1_580_470, 118_000, 100


def measured(build: Any) -> dict[str, dict[str, Any]]:
    """`collections` of a pipeline that `build` makes."""
    found: dict[str, Any] = {}
    with beam.Pipeline(
        runner=RecordingRunner(lambda pipeline, infos: found.update(collections(pipeline, infos)))
    ) as pipeline:
        build(pipeline)
    return found


def extraction(tmp_path: pathlib.Path, model: str, photographs: int) -> dict[str, dict[str, Any]]:
    """Extracts photographs in units of 2."""
    folder = tmp_path / str(photographs)
    folder.mkdir()
    for n in range(photographs):
        Image.fromarray(tiny_models.textured(96, 96, n)).save(folder / f"{photographs}-{n:03d}.png")
    images = match_images([str(folder)]).images
    settings = ExtractionSettings((1.0,), (1.0,), 100, 0.0, 96)
    pairs = [images[start : start + 2] for start in range(0, photographs, 2)]
    units = [unit for pair in pairs for unit in image_units(pair, model, settings)]
    listed = write_worklist(str(folder), units)
    found = measured(
        lambda pipeline: (
            pipeline
            | beam.Create(listed).with_output_types(ListedUnit)
            | ReadUnits(str(folder))
            | ExtractFeatures(model, str(folder / "store"), settings)
        )
    )
    stored = sum(path.stat().st_size for path in (folder / "store" / "local_features").iterdir())
    assert stored > photographs * 100 * 128  # so there was something that could have travelled
    return found


def recognition(tmp_path: pathlib.Path, images: int) -> dict[str, dict[str, Any]]:
    """Searches as many queries as index images, in blocks and groups of 20."""
    rng = np.random.default_rng(images)
    roots = [str(tmp_path / f"{images}-{side}") for side in ("index", "queries")]
    index_units, query_units = (
        write_store(root, unit_rows(rng.standard_normal((images, 8))), side, 5)
        for root, side in zip(roots, "iq")
    )
    blocks = [
        QueryBlock(f"{at:05d}", tuple(name for name, _ in query_units[at : at + 4]))
        for at in range(0, len(query_units), 4)
    ]

    def build(pipeline: beam.Pipeline) -> None:
        found = (
            pipeline
            | beam.Create(blocks).with_output_types(QueryBlock)
            | RetrieveNearest(*roots, 3, plan_groups(index_units, 20))
        )
        found | VerifyCandidates(*roots, VerificationSettings()) | AggregatePredictions()

    return measured(build)


def assert_only_numbers_grow(
    few: dict[str, dict[str, Any]], many: dict[str, dict[str, Any]], largest: int
) -> None:
    assert few.keys() == many.keys()
    for name, collection in many.items():
        assert collection["largest"] <= 1.1 * few[name]["largest"] + 16, (
            name
        )  # an integer may take a byte more
        assert collection["largest"] <= largest, name
    assert max(c["elements"] for c in many.values()) >= 4 * max(c["elements"] for c in few.values())


def test_units_of_photographs_travel_as_references(tmp_path):
    tiny_models.build("delg_tf2", tmp_path / "model")
    few, many = (extraction(tmp_path, str(tmp_path / "model"), photographs) for photographs in (4, 16))
    assert_only_numbers_grow(few, many, 4096)


def test_candidates_travel_as_ids_and_places(tmp_path, monkeypatch):
    monkeypatch.setattr(retrieval, "BLOCKS_PER_TASK", 2)
    few, many = (recognition(tmp_path, images) for images in (40, 160))
    assert_only_numbers_grow(few, many, 32 * 1024)


@pytest.mark.parametrize("name, size", list(full_size_elements()))
def test_elements_at_full_size_are_few_megabytes(name: str, size: int) -> None:
    assert 1000 < size < 4_000_000


def test_hundred_workers_are_busy_to_the_end():
    for images, cores in ((GLDV2_IMAGES, 4), (GLDV2_QUERIES, 1)):
        count = -(-images // worklist.unit_size(images))
        rounds = count / (WORKERS * cores)
        assert rounds / np.ceil(rounds) > 0.95  # all work in the last round too, or it is one of many
    blocks = -(-GLDV2_QUERIES // retrieval.IMAGES_PER_BLOCK)
    searches = -(-GLDV2_IMAGES // retrieval.GROUP_ROWS) * -(-blocks // retrieval.BLOCKS_PER_TASK)
    assert searches / WORKERS / np.ceil(searches / WORKERS) > 0.95


def test_the_graph_holds_places_in_the_plan_not_photographs(tmp_path):
    sizes = {}
    for count in (4096, 16_384):
        (tmp_path / "list.txt").write_text("".join(f"/somewhere/{n:016x}.jpg\n" for n in range(count)))
        listed = write_worklist(
            str(tmp_path), make_units(match_images([f"@{tmp_path}/list.txt"]).images, "settings")
        )
        pipeline = beam.Pipeline()
        (
            pipeline
            | beam.Create(listed, reshuffle=False).with_output_types(ListedUnit)
            | ReadUnits(str(tmp_path))
        )
        sizes[count] = pipeline.to_runner_api().ByteSize()
    assert (sizes[16_384] - sizes[4096]) / 12_288 < 2  # bytes a photograph


def test_the_launcher_holds_half_a_kilobyte_for_a_photograph(tmp_path):
    count = 20_000
    (tmp_path / "list.txt").write_text("".join(f"/somewhere/0/1/2/{n:016x}.jpg\n" for n in range(count)))
    labels = pa.table(
        {
            "image_id": [f"{n:016x}" for n in range(count)],
            "landmark_id": [f"landmark {n % 50}" for n in range(count)],
        }
    )
    tracemalloc.start()
    try:
        images, _ = index.labelled(match_images([f"@{tmp_path}/list.txt"]).images, labels)
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held / count < 350 and peak / count < 700
    assert len({id(ref.landmark_id) for ref in images}) == 50
    assert pickle.loads(pickle.dumps(images[7])) == images[7]
