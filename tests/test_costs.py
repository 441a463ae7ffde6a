"""What a plan takes beside time."""

import json
import os

import pytest

from beam_pipeline import budget, costs, pilot, prediction_rule
from beam_pipeline.budget import Measured, Work
from beam_pipeline.config import ConfigError, FullSize
from beam_pipeline.main import main
from transforms.types import ScoringSettings, VerificationSettings

CORES = len(os.sched_getaffinity(0))
MEASURED = Measured(image=0.03, search=1e-9, pair=0.001, image_bytes=50_000, memory=600_000_000, images=16)


def prices(tmp_path, **changes):
    value = json.loads(open(costs._PRICES, encoding="utf-8").read())
    value["dataflow"].update(changes.pop("dataflow", {}))
    path = tmp_path / "prices.json"
    path.write_text(json.dumps({**value, **changes}))
    return str(path)


def test_work_at_another_size():
    sample = Work(images=100, units=2, queries=120, index_images=50, pairs=2400, shards=1, workers=2)
    assert costs.at_size(sample, FullSize()) == sample
    full = costs.at_size(sample, FullSize(117_577, 1_580_470), 20)
    assert full == Work(117_577, 1_838, 117_577, 1_580_470, 2_351_540, full.shards, 2)
    assert full.shards > 100
    index = costs.at_size(Work(images=100, units=2), FullSize(1_580_470))
    assert (index.images, index.units, index.queries, index.pairs) == (1_580_470, 24_695, 0, 0)


def test_what_does_not_fit_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(costs, "_free", lambda output: 50_000_000_000)
    monkeypatch.setattr(costs, "_memory", lambda: 500_000_000)
    plan = budget.make_plan(Work(images=1_580_470, units=24_695), MEASURED)
    text = costs.format_costs(plan, "out", None)
    assert "disk: 79.0 GB for out, 50.0 GB are free: does not fit" in text
    assert "memory: about 0.6 GB, this machine has 0.5: does not fit" in text
    small = budget.make_plan(Work(images=100, units=2), MEASURED)
    monkeypatch.setattr(costs, "_memory", lambda: 24_000_000_000)
    assert "does not fit" not in costs.format_costs(small, str(tmp_path / "not" / "yet"), None)


def test_money_follows_the_prices(tmp_path):
    plan = budget.make_plan(Work(images=1_000_000, units=15_625), MEASURED)
    own = prices(tmp_path, machine_hour=0.5, currency="EUR", dataflow={"memory_gb": 0.5, "vcpu_hour": 1.0})
    found = costs.read_prices(own)
    lines = costs.format_costs(plan, "gs://bucket/out", found).splitlines()
    hours = plan.seconds / 3600
    assert f"  {hours:,.1f} hours of this machine: {hours * 0.5:,.2f} EUR" in lines
    assert "  in a bucket 50.0 GB: 1.00 EUR a month" in lines
    assert any("(2 vCPUs, 0.5 GB: does not fit)" in line for line in lines)
    at_work = CORES * 1_000_000 * 0.03 / (4 * 2 * 0.5)
    four = (budget.ENGINE_START + at_work + budget.ENGINE_END) / 3600
    (line,) = (line for line in lines if line.startswith("    4 workers"))
    assert line.endswith(f"{4 * four * found.dataflow.hour:,.2f} EUR")
    assert found.dataflow.hour == pytest.approx(2.0 + 0.5 * 0.003557 + 30 * 0.000054)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"currency": 3}, "currency is 3"),
        ({"machine_hour": "free"}, "machine_hour is 'free'"),
        ({"machine_hour": -1}, "machine_hour is -1"),
        ({"petrol": 2}, "unexpected keyword argument 'petrol'"),
        ({"dataflow": {"vcpus": None}}, "vcpus is None"),
    ],
)
def test_a_table_that_is_none_is_named(changes, problem, tmp_path):
    with pytest.raises(ConfigError, match=rf"prices.json is no table of prices: .*{problem}"):
        costs.read_prices(prices(tmp_path, **changes))


def test_a_plan_at_full_size_from_a_sample(tmp_path, capsys, monkeypatch):
    from PIL import Image

    from tests import pictures

    (tmp_path / "images").mkdir()
    for name in "abcd":
        Image.fromarray(pictures.textured(90, 120, ord(name))).save(tmp_path / "images" / f"{name}.png")
    (tmp_path / "labels.csv").write_text("id,landmark_id\na,1\nb,1\nc,2\nd,2\n")
    index = ["index", "--images", str(tmp_path / "images"), "--labels", str(tmp_path / "labels.csv")]
    index += ["--output", str(tmp_path / "index"), "--model", "rootsift-vlad", "--direct_num_workers", "1"]
    assert main(["plan", *index, "--photographs", "1580470"]) == 0
    said = capsys.readouterr().out
    assert "1,580,470 images in 24,695 units" in said and "on Dataflow, workers n2d-standard-2" in said
    assert not (tmp_path / "index").exists()
    assert main(index) == 0
    monkeypatch.setattr(pilot, "run", lambda sample, timeout=None: MEASURED)
    recognize = ["recognize", "--images", str(tmp_path / "images"), "--index", str(tmp_path / "index")]
    recognize += ["--output", str(tmp_path / "run"), "--direct_num_workers", "1"]
    size = ["--photographs", "117577", "--index_photographs", "1580470"]
    assert main(["plan", *recognize, *size]) == 0
    said = capsys.readouterr().out
    assert "117,577 queries" in said and "352,731 pairs" in said
    assert main(["plan", *recognize]) == 0
    said = capsys.readouterr().out
    assert "Dataflow" not in said and "disk: " in said
    tuned = prediction_rule.TunedSettings("", 20, VerificationSettings(), ScoringSettings(), None)
    monkeypatch.setattr("beam_pipeline.recognize.tuned_settings_of", lambda *of: tuned)
    assert main(["plan", *recognize, *size, "--preset", "tuned"]) == 0
    assert "2,351,540 pairs" in capsys.readouterr().out
