"""The plan of a job."""

import dataclasses
from collections import Counter

import apache_beam as beam
import pytest
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that, equal_to

from transforms.storage import worklist
from transforms.types import ImageRef


def refs(count):
    return [ImageRef(f"{i:05d}", f"/p/{i:05d}.jpg", i, str(i % 7) if i % 3 else None) for i in range(count)]


@pytest.mark.parametrize("images, size", [(1, 8), (300, 8), (1000, 16), (4096, 64), (1_580_470, 64)])
def test_unit_size(images, size):
    assert worklist.unit_size(images) == size


def test_units_hold_every_image_once_in_order_whatever_order_they_come_in():
    images = refs(700)
    made = worklist.make_units(images[::-1], {"a": 1})
    along_labels = sorted(images, key=lambda ref: (ref.landmark_id or "", ref.image_id))
    assert [ref for unit in made for ref in unit.images] == along_labels
    assert made == worklist.make_units(images, {"a": 1})
    assert [u.name for u in made] == sorted(u.name for u in made)


def test_names_change_with_settings_and_images():
    def names(images, settings):
        return [u.name for u in worklist.make_units(images, settings)]

    images = refs(20)
    base = names(images, [1])
    assert set(base).isdisjoint(names(images, [2]))
    changed = [dataclasses.replace(ref, size_bytes=77) if ref.image_id == "00019" else ref for ref in images]
    assert len(set(names(changed, [1])) ^ set(base)) == 2


def test_a_plan_reads_back_unit_by_unit(tmp_path):
    made = worklist.make_units(refs(5000), [])
    listed = worklist.write_worklist(str(tmp_path), made)
    assert len(listed) == len(made) and max(unit.file for unit in listed) == 1
    assert [worklist.read_unit(str(tmp_path), p) for p in listed] == made
    assert sorted(worklist.listed_image_ids(str(tmp_path))) == [f"{i:05d}" for i in range(5000)]
    labels = worklist.label_counts(str(tmp_path))
    assert labels == Counter(ref.landmark_id for ref in refs(5000))


def test_units_are_read_by_workers(tmp_path):
    made = worklist.make_units(refs(50), [])
    listed = worklist.write_worklist(str(tmp_path), made)
    with TestPipeline() as pipeline:
        read = pipeline | beam.Create(listed) | worklist.ReadUnits(str(tmp_path))
        assert_that(
            read | beam.Map(lambda u: (u.name, len(u.images))),
            equal_to([(u.name, len(u.images)) for u in made]),
        )
