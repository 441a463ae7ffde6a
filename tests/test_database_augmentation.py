"""Label-constrained augmentation: on arrays, of an index on disk, and of candidates."""

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.testing.util import assert_that, equal_to

from tests.descriptors import unit_rows
from tests.feature_stores import write_store
from transforms.arrays.database_augmentation import NEIGHBORS, augment, augmented_cosines, without_query
from transforms.database_augmentation import AugmentCandidates, AugmentIndex, augmented_shards
from transforms.storage.derived_shards import list_name as list_of
from transforms.storage.derived_shards import unit_state
from transforms.storage.feature_store import FeatureStore
from transforms.types import (
    Candidate,
    CandidateUnit,
    FeatureLocation,
    ImageFeatures,
    ImageRef,
    LocalFeatures,
    QueryCandidates,
)

WIDTH = 16


def naive(members: np.ndarray, row: int, left_out: int | None = None) -> np.ndarray:
    """The sum of one image, by loops, its own neighbours found with all images there."""
    others = sorted(
        (n for n in range(len(members)) if n != row), key=lambda n: -float(members[row] @ members[n])
    )
    total = members[row].astype(float)
    for n in others[:NEIGHBORS]:
        if n != left_out:
            total += max(0.0, float(members[row] @ members[n])) * members[n]
    return total


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.fixture
def members() -> np.ndarray:
    """40 images of one landmark, more than NEIGHBORS."""
    rng = np.random.default_rng(1)
    return unit_rows(rng.standard_normal(WIDTH) + 1.5 * rng.standard_normal((40, WIDTH)))


def test_sums_are_those_of_the_nearest_of_the_label(members):
    rows = np.array([3, 0, 39])
    found = augment(rows, members)
    for at, row in enumerate(rows):
        want = naive(members, row)
        assert cosine(found.descriptors[at].astype(float), want) > 0.9999
        assert found.length[at] == pytest.approx(np.linalg.norm(want), rel=1e-6)
        nearest = np.sort(np.delete(members @ members[row], row))[::-1]
        assert found.least[at] == pytest.approx(nearest[NEIGHBORS - 1], abs=1e-6)


@pytest.mark.parametrize("count", [1, 2, NEIGHBORS, NEIGHBORS + 1])
def test_few_images_take_all_there_are(members, count):
    found = augment(np.arange(count), members[:count])
    for row in range(count):
        assert cosine(found.descriptors[row].astype(float), naive(members[:count], row)) > 0.9999
    assert (found.least == -np.inf).all() == (count <= NEIGHBORS)


def test_a_query_of_the_index_is_left_out_of_its_neighbours_sums(members):
    query, rows = 7, np.array([n for n in range(40) if n != 7])
    found = augment(rows, members)
    asked = members[query]
    plain = (members[rows] @ asked).astype(np.float32)
    seen = augmented_cosines(asked, found)
    alone = without_query(seen, found, plain)
    for at, row in enumerate(rows):
        assert seen[at] == pytest.approx(cosine(asked, naive(members, row)), abs=0.01)
        assert alone[at] == pytest.approx(cosine(asked, naive(members, row, left_out=query)), abs=0.02)
    assert (alone <= seen + 1e-6).all() and (alone < seen - 0.01).any()


@pytest.fixture
def index(tmp_path):
    """The folder of an index of 60 images of 7 labels, in units of 8, and its descriptors."""
    rows = unit_rows(np.random.default_rng(0).standard_normal((60, WIDTH)))
    write_store(str(tmp_path / "index"), rows, "x", 8)
    return str(tmp_path / "index"), rows


def list_name(units: list[str], root: str) -> str:
    """The name of the list of an index of these units."""
    return list_of(unit_state(unit, len(FeatureStore(root).read_images(unit))) for unit in units)


def run(root: str, units: list[str]) -> None:
    with beam.Pipeline("FnApiRunner") as pipeline:
        listed = pipeline | beam.Create(units) | AugmentIndex(root)
        assert_that(listed, equal_to([list_name(units, root)]))


def test_an_index_gets_a_shard_for_each_unit(index):
    root, rows = index
    units, shards = FeatureStore(root).units(), augmented_shards(root)
    assert not shards.complete(list_name(units, root))
    run(root, units)
    names = shards.read_list(list_name(units, root))
    assert list(names) == units
    for unit in units:
        table, images = shards.read(names[unit]), FeatureStore(root).read_images(unit)
        assert table.column("image_id").equals(images.column("image_id"))
        for at, (image_id, landmark) in enumerate(
            zip(images.column("image_id").to_pylist(), images.column("landmark_id").to_pylist())
        ):
            same = [n for n in range(60) if f"label {n % 7}" == landmark]
            want = naive(rows[same], same.index(int(image_id[1:])))
            assert cosine(np.array(table.column("descriptor")[at].as_py(), float), want) > 0.9999


def test_units_that_are_added_renew_only_shards_of_their_labels(tmp_path):
    root, store = str(tmp_path), FeatureStore(str(tmp_path))
    rows = unit_rows(np.random.default_rng(0).standard_normal((9, WIDTH)))

    def write(number: int, label: str) -> str:
        unit = f"{number:06d}-{'0' * 16}"
        local = LocalFeatures(np.zeros((0, 2), np.float32), np.zeros((0, 4), np.float32))
        ref = ImageRef(f"image {number}", "uri", 1, label)
        store.write_unit(unit, [ImageFeatures(ref, 10, 10, 1.0, rows[number], local)], [], WIDTH)
        return unit

    units, shards = [write(number, f"label {number}") for number in range(6)], augmented_shards(root)
    run(root, units)
    before = shards.read_list(list_name(units, root))
    more = [*units, write(6, "label 2")]
    run(root, more)
    after = shards.read_list(list_name(more, root))
    assert {unit for unit in units if before[unit] != after[unit]} == {units[2]}
    assert shards.complete(list_name(units, root))  # readers of the index as it was go on
    shards.prune(list_name(more, root))
    assert not shards.complete(list_name(units, root)) and not shards.has(before[units[2]])
    assert all(shards.has(name) for name in after.values())


@pytest.mark.parametrize("leave_out", [False, True])
def test_candidates_get_cosines(index, leave_out):
    root, rows = index
    units = FeatureStore(root).units()
    run(root, units)
    candidates = tuple(
        Candidate(
            f"x{n:05d}", f"label {n % 7}", float(rows[0] @ rows[n]), FeatureLocation(units[n // 8], 0, 0)
        )
        for n in (7, 14, 3)
    )
    asked = CandidateUnit("u", (QueryCandidates("x00000", FeatureLocation(units[0], 0, 0), candidates),))

    def expect(found):
        [query] = found[0].queries
        for candidate, n in zip(query.candidates, (7, 14, 3)):
            same = rows[n % 7 :: 7]
            out = 0 if leave_out and n % 7 == 0 else None
            want = naive(same, n // 7, left_out=out)
            assert candidate.augmented == pytest.approx(cosine(rows[0], want), abs=0.02)

    with beam.Pipeline("FnApiRunner") as pipeline:
        step = AugmentCandidates(root, root, list_name(units, root), leave_out)
        assert_that(pipeline | beam.Create([asked]) | step, expect)


def test_a_list_that_lacks_the_unit_of_a_candidate_is_an_error(index):
    root, _rows = index
    units = FeatureStore(root).units()
    run(root, units[:1])
    candidate = Candidate("x00008", "label 1", 0.5, FeatureLocation(units[1], 0, 0))
    asked = CandidateUnit("u", (QueryCandidates("x00000", FeatureLocation(units[0], 0, 0), (candidate,)),))
    with pytest.raises(ValueError, match=f"lack those of unit {units[1]}"), beam.Pipeline("FnApiRunner") as p:
        _ = p | beam.Create([asked]) | AugmentCandidates(root, root, list_name(units[:1], root))


def test_an_index_without_augmented_shards_leaves_candidates_as_they_are():
    unit = CandidateUnit("u", ())
    with beam.Pipeline("FnApiRunner") as pipeline:
        assert_that(pipeline | beam.Create([unit]) | AugmentCandidates("i", "q", None), equal_to([unit]))
