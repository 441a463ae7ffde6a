"""What a manifest says is read as it was written, or refused."""

import json

import pytest

from beam_pipeline import outputs
from beam_pipeline.manifest import IndexCounts, IndexManifest, RunManifest
from tests.manifests import index_manifest, run_manifest
from transforms.storage.feature_store import ShardSummary
from transforms.storage.files import FileRecord

SHARDS = (
    ShardSummary("u0", 2, {"images/u0.parquet": FileRecord(10, "aa")}),
    ShardSummary("u1", 1, {"images/u1.parquet": FileRecord(20, "bb")}),
)
COUNTS = IndexCounts(matched=5, indexed=3, failed=1, out_of_time=0, without_label=1)


@pytest.mark.parametrize(
    "manifest",
    [
        index_manifest(shards=SHARDS, counts=COUNTS, failures={"corrupt": 1}, appended={"d": COUNTS}),
        index_manifest(complete=False, time_budget={"seconds": 60.0, "used": 1.5}),
        run_manifest(shards=SHARDS, files={"submission.csv": FileRecord(3, "cc")}),
    ],
    ids=["index", "cut short", "run"],
)
def test_a_manifest_is_read_as_it_was_written(tmp_path, manifest):
    outputs.finish(str(tmp_path), manifest)
    assert outputs.read_manifest(str(tmp_path), IndexManifest, RunManifest) == manifest
    value = json.loads((tmp_path / "manifest.json").read_text())
    assert (value["command"], value["format"]) == (manifest.COMMAND, 2)
    assert ("time_budget" in value) == (manifest.time_budget is not None)


def test_the_digest_leaves_out_the_time():
    manifest = index_manifest(shards=SHARDS)
    assert manifest.digest("r") == index_manifest(shards=SHARDS, seconds={"total": 2.0}).digest("r")
    assert manifest.digest("r") != index_manifest(shards=SHARDS[:1]).digest("r")


def test_a_run_vouches_for_its_queries_where_they_lie():
    manifest = run_manifest(shards=SHARDS, query_store="q", files={"submission.csv": FileRecord(3, "cc")})
    assert manifest.records("run") == {
        "q/images/u0.parquet": FileRecord(10, "aa"),
        "q/images/u1.parquet": FileRecord(20, "bb"),
        "run/submission.csv": FileRecord(3, "cc"),
    }


def test_what_is_added_to_an_index_is_counted():
    first, more = (
        index_manifest(shards=SHARDS[:1], counts=COUNTS, failures={"corrupt": 1}),
        index_manifest(shards=SHARDS[1:], counts=COUNTS, failures={"corrupt": 2, "absent": 1}),
    )
    both = first.with_more(more, "d")
    assert both.shards == SHARDS and both.appended == {"d": COUNTS}
    assert both.counts == IndexCounts(10, 6, 2, 0, 2) and both.failures == {"absent": 1, "corrupt": 3}


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda value: value.pop("counts"), "lacks 'counts'"),
        (lambda value: value["counts"].pop("failed"), "missing 1 required positional argument: 'failed'"),
        (lambda value: value["counts"].update(failed=-1), "failed must be a count, not -1"),
        (lambda value: value["counts"].update(failed=None), "failed must be a count, not None"),
        (lambda value: value["shards"].append("u2"), "string indices"),
        (lambda value: value["extraction"].update(max_image_side=0), "max_image_side must be"),
        (lambda value: value.pop("global_dimensions"), "global_dimensions"),
    ],
)
def test_a_damaged_manifest_says_what_is_wrong(tmp_path, damage, message):
    outputs.finish(str(tmp_path), index_manifest(shards=SHARDS))
    value = json.loads((tmp_path / "manifest.json").read_text())
    damage(value)
    (tmp_path / "manifest.json").write_text(json.dumps(value))
    with pytest.raises(ValueError, match=f"manifest.json is damaged: .*{message}"):
        outputs.read_manifest(str(tmp_path), IndexManifest)
