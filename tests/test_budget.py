"""The time budget: durations, plans and deadlines; what the steps do when time runs out; a run that goes on
afterwards.
"""

import argparse
import dataclasses
import json
import time
import types

import apache_beam as beam
import numpy as np
import pandas as pd
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that, equal_to
from PIL import Image

from beam_pipeline import (
    audit,
    budget,
    calibrate,
    cleaning,
    config,
    evaluate,
    extraction,
    flags,
    index,
    index_parts,
    outputs,
    pilot,
    recognize,
    rescore,
    whiten,
)
from beam_pipeline.main import main
from beam_pipeline.manifest import IndexManifest
from tests import tiny_onnx
from tests.clocks import FakeClock
from tests.manifests import RECIPE
from transforms import database_augmentation, features, verification
from transforms.database_augmentation import augmented_shards
from transforms.retrieval import GroupIntoBlocks
from transforms.storage.feature_store import FeatureStore
from transforms.types import (
    Candidate,
    CandidateUnit,
    Failure,
    FeatureLocation,
    ImageRef,
    ImageUnit,
    QueryCandidates,
    VerificationSettings,
)

MEASURED = budget.Measured(
    load=4.0,
    image=0.1,
    search=1e-6,
    pair=0.05,
    score=0.002,
    shard=0.01,
    pipeline=1.0,
    process=2.0,
    image_bytes=1e5,
    shard_bytes=1e4,
    memory=10**9,
    images=16,
    pairs=48,
    dimensions=2048,
    has_local=True,
    seconds=8.0,
)
WORK = budget.Work(images=1000, units=16, queries=1000, index_images=10_000, pairs=3000, shards=32, workers=2)


@pytest.mark.parametrize(
    "text, seconds", [("12h", 43200), ("90m", 5400), ("2h30m", 9000), ("45s", 45), ("1h0m5s", 3605)]
)
def test_durations(text, seconds):
    assert flags.duration(text) == seconds


@pytest.mark.parametrize("text", ["", "12", "0s", "-1h", "1.5h", "30m2h", "1d", "h", "12h "])
def test_what_is_no_duration(text):
    with pytest.raises(argparse.ArgumentTypeError, match="is no time such as 12h, 90m, 2h30m or 45s"):
        flags.duration(text)


def test_a_plan_is_the_measured_pace_times_the_work():
    plan = budget.make_plan(WORK, MEASURED)
    assert [(s.name, s.number) for s in plan.stages] == [
        ("extract", 1000),
        ("retrieve", 1000),
        ("verify", 3000),
    ]
    assert [s.seconds for s in plan.stages] == pytest.approx([100, 10, 150])
    assert plan.stage("extract").size == 1e8
    assert plan.seconds == pytest.approx(260 + plan.overhead)


def test_an_engines_workers_share_the_work():
    plan = budget.make_plan(budget.Work(images=1000, units=16, workers=10, engine=True), MEASURED)
    assert plan.stage("extract").seconds == pytest.approx(10)
    assert plan.start > 60, "workers have to start"
    options = PipelineOptions(["--runner=DataflowRunner", "--num_workers=10"])
    assert budget.work_of(options, images=1, units=1) == budget.Work(
        images=1, units=1, workers=10, engine=True
    )
    assert budget.work_of(PipelineOptions(["--direct_num_workers=3"]), images=1, units=1).workers == 3


@pytest.mark.parametrize(
    "seconds, extract, verify, text",
    [
        pytest.param(3600, True, True, "enough, with", id="ample"),
        pytest.param(
            200, True, True, "of the pairs can be verified, the most promising queries first", id="half"
        ),
        pytest.param(
            90, True, True, "of 1,000 images can be extracted, no pair verified", id="extraction is cut"
        ),
        pytest.param(28, False, True, "about 0 of 1,000 images", id="no time to load the model"),
        pytest.param(8, False, False, "about 0 of 1,000 images", id="hopeless"),
    ],
)
def test_deadlines(seconds, extract, verify, text):
    plan, now = budget.make_plan(WORK, MEASURED), 1000.0
    given = config.TimeBudget(float(seconds), started=now)
    until = budget.deadlines(given, plan, now)
    assert bool(until.extract) == extract and bool(until.verify) == verify
    if verify:
        assert until.verify < until.retrieve and until.retrieve + plan.end <= given.ends
    if extract:
        assert until.extract + plan.between + plan.stage("retrieve").seconds < until.verify
    assert text in budget.format_plan(plan, given, now).splitlines()[-1]


def test_without_a_forecast_a_tenth_is_kept():
    until = budget.deadlines(config.TimeBudget(100.0, 0.0), None, 0.0)
    assert until.extract < until.verify == 90 < until.retrieve < 100


def test_the_forecast_is_of_what_was_done():
    metrics = {
        "extract_out": 90,
        "extract_failed": 10,
        "extract_milliseconds": 24_000,
        "verify_pairs": 300,
        "verify_milliseconds": 30_000,
    }
    found = budget.compared(budget.make_plan(WORK, MEASURED), metrics, 40.0)
    assert found["extract"] == {"number": 100, "forecast": 10.0, "happened": 12.0}
    assert found["verify"] == {"number": 300, "forecast": 15.0, "happened": 15.0}
    assert "extract 10.0 s, was 12.0 s; verify 15.0 s, was 15.0 s" in budget.format_compared(found)


def test_a_sample_stands_for_all_sizes():
    images = [ImageRef(f"{i:03d}", f"{i}.jpg", (i * 37) % 160) for i in range(160)]
    sizes = [
        ref.size_bytes
        for ref in pilot.sample_images(
            [ImageUnit("a", tuple(images[:100])), ImageUnit("b", tuple(images[100:]))], 16
        )
    ]
    assert len(sizes) == 16 and np.mean(sizes) == pytest.approx(80, abs=3)
    few = tuple(images[:5])  # smaller ones come first
    assert pilot.sample_images([ImageUnit("a", few[::-1])], 16) == few


def test_the_first_of_each_worker_and_what_time_is_over_for_do_not_count(monkeypatch):
    clock = FakeClock(monkeypatch, pilot)

    def slow_at_first(item):
        clock.pass_by(5 if item == "first" else 2)
        return item

    assert pilot._each(slow_at_first, ["first"], range(4), 1) == ([0, 1, 2, 3], 2)
    assert pilot._each(slow_at_first, ["first"], range(100), 1) == ([*range(8)], 2)  # begun before 15 s


def test_a_pilot_that_takes_too_long_is_stopped():
    with pytest.raises(TimeoutError, match="the pilot took more than 0 s"):
        pilot.run(pilot.Sample(RECIPE, (), WORK, {}), timeout=0.01)


def test_a_unit_that_time_runs_out_in_is_no_shard():
    unit, failure = (
        ImageUnit("u", (ImageRef("a", "a.jpg", 1),)),
        Failure("read", "a", "a.jpg", "empty_file", ""),
    )
    assert features.extract_unit(unit, None, lambda images: iter([failure]), deadline=time.time() - 1) is None


def query(image_id, similarity):
    candidates = tuple(
        Candidate(f"{image_id}{c}", f"L{c}", similarity - c / 10, FeatureLocation("i", 0, 0))
        for c in range(2)
    )
    return QueryCandidates(image_id, FeatureLocation("q", 0, 0), candidates)


def verify(units, tmp_path, deadline, promising_first=True):
    store, orders = FeatureStore(str(tmp_path)), (verification._hash_of, verification._promise_of)
    fn = verification._Verify(store, store, VerificationSettings(), True, deadline, orders[promising_first])
    fn.start_bundle()
    found = [out for unit in units for out in fn.process(unit)]
    return found + [value.value for value in fn.finish_bundle()]


def a_second_each(monkeypatch, clock):
    """Verification of a pair takes a second of a fake clock."""
    verify_pair = verification.verify_pair

    def slowly(*pair):
        clock.pass_by(1)
        return verify_pair(*pair)

    monkeypatch.setattr(verification, "verify_pair", slowly)


def test_what_verification_does_not_reach_stays_as_it_is(tmp_path):
    [unit] = verify([CandidateUnit("u", (query("a", 0.9), query("b", 0.4)))], tmp_path, time.time() - 1)
    assert not unit.final and not any(q.verified for q in unit.queries)
    assert unit.queries == (query("a", 0.9), query("b", 0.4))


def test_the_most_promising_queries_are_verified_first(tmp_path, monkeypatch):
    clock = FakeClock(monkeypatch, verification)
    a_second_each(monkeypatch, clock)
    units = [
        CandidateUnit("u", (query("a", 0.3), query("b", 0.8))),
        CandidateUnit("v", (query("c", 0.2), query("d", 0.7))),
    ]
    found = verify(units, tmp_path, clock.time() + 4.5)  # two queries of two candidates, and half of a pair
    assert [(unit.name, unit.final) for unit in found] == [("u", True), ("v", False)]
    assert {q.image_id: q.verified for unit in found for q in unit.queries} == {
        "a": True,
        "b": True,
        "c": False,
        "d": False,
    }
    assert [q.image_id for q in found[0].queries] == ["a", "b"]
    inliers = [c.inliers for unit in found for q in unit.queries for c in q.candidates]
    assert inliers == [0] * 4 + [None] * 4 and clock.time() == clock.start + 5


def test_a_fair_sample_of_the_units_is_verified_where_that_is_wanted(tmp_path, monkeypatch):
    clock = FakeClock(monkeypatch, verification)
    a_second_each(monkeypatch, clock)
    units = [CandidateUnit(f"u{n}", (query(f"q{n}", 0.9 - n / 100),)) for n in range(20)]
    found = verify(units, tmp_path, clock.time() + 20.5, promising_first=False)  # ten queries
    done = [int(unit.name[1:]) for unit in found if unit.final]
    assert len(done) == 10 and min(n for n in range(20) if n not in done) < 5 and max(done) > 14
    again = verify(units[::-1], tmp_path, clock.time() + 20.5, promising_first=False)
    assert [unit.name for unit in again] == [unit.name for unit in found]


def test_a_unit_without_queries_is_verified_in_time_too(tmp_path):
    [unit] = verify([CandidateUnit("u", ())], tmp_path, time.time() + 600)
    assert unit.final and unit.queries == ()


def test_a_block_that_lacks_units_is_provisional():
    with TestPipeline() as pipeline:
        blocks = (
            pipeline
            | beam.Create(["a", "b", "c"])
            | GroupIntoBlocks({"a": "0", "b": "0", "c": "1", "d": "1"})
        )
        assert_that(
            blocks | beam.Map(lambda block: (block.name, block.units)),
            equal_to([("0", ("a", "b")), ("1.provisional", ("c",))]),
        )


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Ten textures to index; twelve queries, which are crops of them, in two units."""
    root, rng = tmp_path_factory.mktemp("budget"), np.random.default_rng(0)
    for folder in ("images", "queries"):
        (root / folder).mkdir()
    for i in range(10):
        texture = Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8)).resize(
            (240, 240), Image.Resampling.BICUBIC
        )
        texture.save(root / "images" / f"i{i}.png")
        texture.crop((20, 20, 220, 220)).save(root / "queries" / f"q{i:02d}.png")
    for i in (10, 11):
        texture.rotate(5 * i).save(root / "queries" / f"q{i}.png")
    (root / "labels.csv").write_text("id,landmark_id\n" + "".join(f"i{i},L{i // 2}\n" for i in range(10)))
    assert start(root, "index", "index", "--labels", str(root / "labels.csv")) == 0
    assert start(root, "recognize", "undisturbed", "--index", str(root / "index")) == 0
    return root


def start(root, command, output, *flags):
    images = root / ("images" if "index" in command else "queries")
    given = ["--images", str(images), "--output", str(root / output), "--direct_num_workers=1"]
    return main([*command.split(), *given, *flags])


def results(run):
    return {
        path.name: path.read_bytes()
        for path in [run / "submission.csv", *sorted((run / "predictions").iterdir())]
    }


def counts(run):
    manifest = json.loads((run / "manifest.json").read_text())
    return manifest["complete"], {
        key: manifest["counts"][key] for key in ("queries", "predicted", "verified", "out_of_time")
    }


def check_that_it_goes_on(data, name):
    """Started again, without a budget, it ends as if it had never had one."""
    assert len(pd.read_csv(data / name / "submission.csv")) == 12
    assert start(data, "recognize", name, "--index", str(data / "index")) == 0
    assert results(data / name) == results(data / "undisturbed")
    assert counts(data / name) == (True, dict(queries=12, predicted=12, verified=12, out_of_time=0))
    assert not (data / name / "failures").exists() or not list((data / name / "failures").iterdir())


def test_a_hopeless_budget(data, capsys):
    assert start(data, "recognize", "hopeless", "--index", str(data / "index"), "--time_budget", "1s") == 0
    assert "too short for any work here" in capsys.readouterr().out
    assert counts(data / "hopeless") == (False, dict(queries=12, predicted=0, verified=0, out_of_time=12))
    failures = pd.read_parquet(data / "hopeless" / "failures")
    assert set(zip(failures.stage, failures.kind)) == {("extract", "out_of_time")} and len(failures) == 12
    check_that_it_goes_on(data, "hopeless")


def scheduled(monkeypatch, deadline, verify=None):
    """Stands in for the pilot, whose findings depend on the machine."""
    verify = verify or deadline
    until = budget.Deadlines(deadline, verify, verify)
    monkeypatch.setattr(
        pilot,
        "schedule",
        lambda given, sample: budget.Schedule(given, None, until) if given else budget.Schedule(),
    )


def time_runs_out_in_the_second_unit(monkeypatch):
    now, extract = [time.time()], features.extract_unit
    scheduled(monkeypatch, now[0] + 3600)
    monkeypatch.setattr(extraction, "time", types.SimpleNamespace(time=lambda: now[0]))

    def extract_or_not(unit, *rest):
        if not unit.name.startswith("000001"):
            return extract(unit, *rest)
        now[0] += 7200
        return None

    monkeypatch.setattr(features, "extract_unit", extract_or_not)


def test_extraction_that_does_not_end(data, monkeypatch):
    with monkeypatch.context() as patch:
        time_runs_out_in_the_second_unit(patch)
        assert start(data, "recognize", "cut", "--index", str(data / "index"), "--time_budget", "1h") == 0
    assert counts(data / "cut") == (False, dict(queries=12, predicted=8, verified=8, out_of_time=4))
    assert all(
        ".provisional" in name or name == "unpredicted.parquet"
        for name in results(data / "cut")
        if name != "submission.csv"
    )
    check_that_it_goes_on(data, "cut")


def test_verification_that_does_not_end(data, monkeypatch):
    with monkeypatch.context() as patch:
        soon = time.time() + 3600
        clock = FakeClock(patch, verification, recognize, start=soon)
        a_second_each(patch, clock)
        scheduled(patch, soon, verify=soon + 12.5)  # four queries of three candidates, and half of a pair
        assert start(data, "recognize", "half", "--index", str(data / "index"), "--time_budget", "1h") == 0
    assert counts(data / "half") == (False, dict(queries=12, predicted=12, verified=4, out_of_time=0))
    predictions = pd.read_parquet(data / "half" / "predictions").set_index("image_id")
    best = predictions.candidates.map(lambda candidates: max(c["similarity"] for c in candidates))
    assert best[predictions.verified].min() >= best[~predictions.verified].max()
    assert all(
        (c["inliers"] is None or np.isnan(c["inliers"]))
        for row in predictions.candidates[~predictions.verified]
        for c in row
    )
    check_that_it_goes_on(data, "half")


def test_an_index_that_is_cut_short(data, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        time_runs_out_in_the_second_unit(patch)
        assert (
            start(data, "index", "index2", "--labels", str(data / "labels.csv"), "--time_budget", "1h") == 0
        )
    manifest = json.loads((data / "index2" / "manifest.json").read_text())
    assert (
        not manifest["complete"]
        and manifest["counts"]["indexed"] == 8
        and manifest["counts"]["out_of_time"] == 2
    )
    assert start(data, "recognize", "on part", "--index", str(data / "index2")) == 0, (
        "what there is of it can be used"
    )
    assert start(data, "index", "index2", "--labels", str(data / "labels.csv")) == 0
    manifests = [json.loads((data / name / "manifest.json").read_text()) for name in ("index", "index2")]
    assert manifests[0]["shards"] == manifests[1]["shards"] and manifests[1]["complete"]


class Loses(FnApiRunner):
    """An engine that loses what a step takes: all whose name begins so."""

    def __init__(self, step, name):
        super().__init__()
        self._step, self._name = step, name

    def run_pipeline(self, pipeline, options):
        pipeline.visit(self)
        return super().run_pipeline(pipeline, options)

    def visit_transform(self, node):
        if f"/{node.full_label}".endswith(f"/{self._step}"):
            node.transform.fn = LosesSome(node.transform.fn, self._name)

    def visit_value(self, *arguments):
        pass

    enter_composite_transform = leave_composite_transform = visit_value


class LosesSome(beam.DoFn):
    def __init__(self, fn, name):
        self._fn, self._name = fn, name

    def process(self, element, *side_inputs):
        named = element
        while type(named) is tuple:
            named = named[0]
        lost = str(getattr(named, "name", named)).startswith(self._name)
        return [] if lost else self._fn.process(element, *side_inputs)


OPTIONS = PipelineOptions(["--direct_num_workers=1"])


def test_an_engine_that_loses_photographs_of_an_index(data):
    made = config.IndexConfig((str(data / "images"),), str(data / "labels.csv"), str(data / "lossy"))
    with pytest.raises(config.PipelineError, match="1 of 2 units of photographs were not extracted"):
        index.run(made, OPTIONS, Loses("ReadUnit", "000001"))
    assert not (data / "lossy" / "manifest.json").exists()
    assert index.run(made, OPTIONS) == 0
    assert (data / "lossy" / "manifest.json").exists()


NOT_AUGMENTED = "the augmented descriptors of 2 units were not all made, and no deadline had passed"


@pytest.mark.parametrize(
    "step, name, message",
    [
        ("Labels", "000001", NOT_AUGMENTED),
        ("Together", "L3", "1 of 4 landmarks of unit 000000-[0-9a-f]+ were lost by the engine"),
        ("Augment", "000001", NOT_AUGMENTED),
        ("List", "", NOT_AUGMENTED),
    ],
)
def test_an_engine_that_loses_what_is_augmented(data, tmp_path, step, name, message):
    made = config.IndexConfig((str(data / "images"),), str(data / "labels.csv"), str(tmp_path))
    with pytest.raises(config.PipelineError, match=f"{message}.*; the same command goes on from here"):
        index.run(made, OPTIONS, Loses(step, name))
    assert not (tmp_path / "manifest.json").exists()
    assert index.run(made, OPTIONS) == 0
    augmented, undisturbed = (
        {path.name: path.read_bytes() for path in (root / "augmented").iterdir()}
        for root in (tmp_path, data / "index")
    )
    assert augmented == undisturbed and len(augmented) == 3


@pytest.mark.parametrize(
    "job, made", [(cleaning, config.CleanConfig("", remove=("i9",))), (whiten, config.WhitenConfig(""))]
)
def test_an_engine_that_loses_what_is_augmented_of_a_changed_index(data, tmp_path, job, made):
    root, model = str(tmp_path / "index"), str(tmp_path / "tiny.onnx")
    tiny_onnx.build(model, "both")
    indexed = config.IndexConfig((str(data / "images"),), str(data / "labels.csv"), root, model=model)
    assert index.run(indexed, OPTIONS) == 0
    before = outputs.read_manifest(root, IndexManifest)
    made = dataclasses.replace(made, **{"output" if job is cleaning else "index": root})
    with pytest.raises(config.PipelineError, match=NOT_AUGMENTED):
        job.run(made, OPTIONS, Loses("Augment", "000001"))
    assert outputs.read_manifest(root, IndexManifest) == before
    assert job.run(made, OPTIONS) == 0
    after = outputs.read_manifest(root, IndexManifest)
    assert after != before and augmented_shards(root).complete(after.derived_list)


@pytest.mark.parametrize("job, made", [(audit, config.AuditConfig), (calibrate, config.CalibrateConfig)])
def test_an_engine_that_loses_what_is_searched_for_though_there_is_time(data, tmp_path, job, made):
    given = config.TimeBudget(3600.0, time.time())
    asked = made(index=str(data / "index"), output=str(tmp_path / "found"), budget=given)
    with pytest.raises(config.PipelineError, match="were not searched for, and no deadline had passed"):
        job.run(asked, OPTIONS, Loses("WriteShard", ""))


def test_an_index_without_time_for_augmented_descriptors(data, monkeypatch):
    with monkeypatch.context() as patch:
        scheduled(patch, time.time() + 3600)
        FakeClock(patch, database_augmentation, index_parts, start=time.time() + 3600)
        assert start(data, "index", "late", "--labels", str(data / "labels.csv"), "--time_budget", "1h") == 0
    made = outputs.read_manifest(str(data / "late"), IndexManifest)
    assert made.complete and not (data / "late" / "augmented").exists()


@pytest.mark.parametrize(
    "step, name, message",
    [
        ("ReadUnit", "000001", "1 of 2 units of photographs were not extracted, and no deadline had passed"),
        ("WriteShard", "", "12 of 12 queries were not predicted, and no deadline had passed"),
    ],
)
def test_an_engine_that_loses_queries(data, step, name, message):
    made = config.RecognizeConfig((str(data / "queries"),), str(data / "index"), str(data / step))
    with pytest.raises(config.PipelineError, match=message):
        recognize.run(made, OPTIONS, Loses(step, name))
    check_that_it_goes_on(data, step)


def test_an_early_submission_is_not_taken_for_the_last_one(data):
    made = config.RecognizeConfig((str(data / "queries"),), str(data / "index"), str(data / "early"))
    with pytest.raises(config.PipelineError, match="12 of 12 queries were not predicted"):
        recognize.run(made, OPTIONS, Loses("WriteShard", ""))
    assert ",L" not in (data / "early" / "submission.csv").read_text()
    assert recognize.run(made, OPTIONS, Loses("Write", "")) == 0
    assert results(data / "early") == results(data / "undisturbed")


@pytest.mark.parametrize("step, lost", [("Nearest", "1 of 1 groups"), ("Queries", "the queries")])
def test_an_engine_that_loses_what_is_searched(data, step, lost):
    made = config.RecognizeConfig((str(data / "queries"),), str(data / "index"), str(data / step))
    message = f"{lost} of block 00000 from 0 on were lost by the engine; the same command goes on from here"
    with pytest.raises(config.PipelineError, match=message):
        recognize.run(made, OPTIONS, Loses(step, ""))
    assert not (data / step / "submission.csv").exists()
    assert start(data, "recognize", step, "--index", str(data / "index")) == 0
    assert results(data / step) == results(data / "undisturbed")


NOT_SCORED = "12 of 12 queries were not scored"


@pytest.mark.parametrize(
    "runs, step, name, message",
    [
        (1, "Read", "", NOT_SCORED),
        (1, "WriteShard", "", NOT_SCORED),
        (2, "Read 0", "", NOT_SCORED),
        (2, "Read 1", "", "query q[0-9]+ of run 2 was lost by the engine"),
        (2, "Join", "q03", "1 of 12 queries were not scored"),
        (2, "Unit", "", NOT_SCORED),
    ],
)
def test_an_engine_that_loses_what_is_scored_anew(data, tmp_path, runs, step, name, message):
    run = str(data / "undisturbed")
    made = config.RescoreConfig(run, str(tmp_path / "out"), more_runs=(run,) * (runs - 1))
    with pytest.raises(config.PipelineError, match=f"{message}.*; the same command goes on from here"):
        rescore.run(made, OPTIONS, Loses(step, name))
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert rescore.run(made, OPTIONS) == 0
    assert results(tmp_path / "out") == results(data / "undisturbed")


@pytest.mark.parametrize(
    "step, message",
    [("Evaluate", "the metrics"), ("Write", "the metrics"), ("Shards/Map(decode)", "12 of 12")],
)
def test_an_engine_that_loses_what_is_evaluated(data, tmp_path, step, message):
    truth = tmp_path / "truth.csv"
    truth.write_text("id,landmark_id\n" + "".join(f"q{i:02d},L{i // 2}\n" for i in range(12)))
    made = config.EvaluateConfig(str(data / "undisturbed"), str(truth), str(tmp_path / "metrics.json"))
    metrics = evaluate.run(made, OPTIONS)
    with pytest.raises(config.PipelineError, match=f"{message}.* were not .*the engine lost them"):
        evaluate.run(made, OPTIONS, Loses(step, ""))
    assert not (tmp_path / "metrics.json").exists()
    assert evaluate.run(made, OPTIONS) == metrics


def test_a_run_may_lack_queries_of_another(data, tmp_path):
    few = config.RecognizeConfig(
        (str(data / "queries" / "q1*"),), str(data / "index"), str(tmp_path / "few"), num_to_rerank=3
    )
    assert recognize.run(few, OPTIONS) == 0
    made = config.RescoreConfig(str(data / "undisturbed"), str(tmp_path / "out"), more_runs=(few.output,))
    assert rescore.run(made, OPTIONS) == 0
    assert len(pd.read_csv(tmp_path / "out" / "submission.csv")) == 12


def test_no_time_for_an_index(data, capsys):
    assert start(data, "index", "index3", "--labels", str(data / "labels.csv"), "--time_budget", "1s") == 1
    assert (
        "no image can be extracted in time: the same `landmarks index` goes on from here, given more of it"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    "command, flags", [("index", ("--labels", "labels.csv")), ("recognize", ("--index", "index"))]
)
def test_a_plan_alone_writes_nothing(data, monkeypatch, capsys, command, flags):
    monkeypatch.setattr(pilot, "run", lambda sample, timeout=None: MEASURED)
    monkeypatch.chdir(data)
    assert start(data, f"plan {command}", "planned", *flags) == 0
    out = capsys.readouterr().out
    assert f"{12 if command == 'recognize' else 10} images in 2 units" in out and ("36 pairs" in out) == (
        command == "recognize"
    )
    assert not (data / "planned").exists()


def test_an_ample_budget_and_its_plan(data, capsys):
    assert start(data, "recognize", "ample", "--index", str(data / "index"), "--time_budget", "10h") == 0
    out = capsys.readouterr().out
    assert "12 images in 2 units" in out and "36 pairs" in out and "10h00m: enough" in out
    assert "forecast: extract" in out and "12 verified" in out
    assert results(data / "ample") == results(data / "undisturbed")
    manifest = json.loads((data / "ample" / "manifest.json").read_text())
    assert (
        manifest["time_budget"]["seconds"] == 36000
        and manifest["time_budget"]["stages"]["verify"]["number"] == 36
    )
