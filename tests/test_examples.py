"""The programs in examples/, and the steps as a library and in Beam YAML."""

import ast
import dataclasses
import html
import json
import pathlib
import shutil
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
from apache_beam.yaml import main as beam_yaml
from PIL import Image

import transforms
from beam_pipeline import jobs
from beam_pipeline.config import ConfigError, IndexConfig, PipelineError
from beam_pipeline.report.notebook import cards
from examples import near_duplicates, recognize_photographs
from tests import finished_runs, tiny_models
from transforms import FeatureStore, Prediction, image_units, match_images


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, labelled photographs of four landmarks, and a query that shows one of them again."""
    root = tmp_path_factory.mktemp("examples")
    tiny_models.build("delg_tf2", root / "model")
    for part in ("photographs", "queries"):
        (root / part).mkdir()
    for n in range(8):  # two each, alike
        texture = Image.fromarray(tiny_models.textured(160, 220, n // 2))
        texture.crop((n % 2 * 8, 0, 200, 150)).save(root / "photographs" / f"p{n}.png")
    Image.fromarray(tiny_models.textured(160, 220, 1)).save(root / "queries" / "again.png")
    (root / "labels.csv").write_text("id,landmark_id\n" + "".join(f"p{n},L{n // 2}\n" for n in range(8)))
    return root


def test_the_jobs_from_python(folder, capsys):
    arguments = [str(folder / name) for name in ("photographs", "labels.csv", "queries", "out")]
    for _ in range(2):  # started again, it finds what is done
        recognize_photographs.main([*arguments, "--model", str(folder / "model")])
        lines = capsys.readouterr().out.splitlines()
        assert "8 photographs indexed" in lines
        image_id, landmark, score = lines[-1].split()
        assert (image_id, landmark) == ("again", "L1") and float(score) > 1


def _show(source: str, names: dict) -> str:
    """What a notebook would show of a cell: its last expression as HTML; "" for a cell without one."""
    *statements, last = ast.parse(source).body
    exec(compile(ast.Module(statements, []), "cell", "exec"), names)
    if not isinstance(last, ast.Expr):
        exec(compile(ast.Module([last], []), "cell", "exec"), names)
        return ""
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names)._repr_html_()


def test_the_notebook(tmp_path):
    index = finished_runs.make_index(tmp_path / "index", {"a": "tower", "b": "<bridge>"})
    found = tuple(finished_runs.candidate(i, n, 0.9) for i, n in (("a", "tower"), ("b", "<bridge>")))
    predictions = [Prediction(f"q{n}", "tower", 0.9 - n / 10, found, True) for n in range(5)]
    run = finished_runs.make_run(tmp_path / "run", index, predictions)
    truth = finished_runs.write_truth(tmp_path / "truth.csv", {f"q{n}": "tower" for n in range(5)})
    cells = json.loads(pathlib.Path(near_duplicates.__file__).with_name("look_at_a_run.ipynb").read_text())[
        "cells"
    ]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    sources[0] = sources[0].replace("demo/run", run).replace("demo/data/truth.csv", truth)
    names: dict = {}
    _, unsure, chosen, table = (_show(source, names) for source in sources)
    page = html.unescape(unsure)
    assert [page.index(f'data-id="q{n}"') for n in (4, 3, 2, 1)] == sorted(
        page.index(f'data-id="q{n}"') for n in range(1, 5)
    )
    assert 'data-id="q0"' not in page and "<iframe sandbox srcdoc=" in unsure
    assert page.count("data:image/webp;base64,") == 4 * 4 and "&lt;bridge&gt;" in page
    assert (
        'data-id="q0"' in html.unescape(chosen)
        and "q1" in chosen
        and 'data-id="q2"' not in html.unescape(chosen)
    )
    assert "<caption>q0: tower, score 0.900</caption>" in table and "&lt;bridge&gt;" in table
    with pytest.raises(ConfigError, match="no prediction for a query 'nobody'"):
        cards(run, ["q1", "nobody"])


def test_a_job_with_too_many_failures_is_an_error(folder, tmp_path):
    (tmp_path / "photographs").mkdir()
    shutil.copy(next((folder / "photographs").iterdir()), tmp_path / "photographs" / "one.png")
    (tmp_path / "photographs" / "two.png").write_bytes(b"no picture")
    (tmp_path / "labels.csv").write_text("id,landmark_id\none,1\ntwo,2\n")
    arguments = [str(tmp_path / name) for name in ("labels.csv", "index")]
    config = IndexConfig((str(tmp_path / "photographs"),), *arguments, str(folder / "model"))
    with pytest.raises(PipelineError, match="more images failed than max_failure_rate allows"):
        jobs.index(config)


def test_a_pipeline_of_ones_own(folder, tmp_path, capfd):
    arguments = [str(folder / "photographs"), str(tmp_path / "features"), "--runner=FnApiRunner"]
    for _ in range(2):
        near_duplicates.main([*arguments, "--model", "rootsift-vlad", "--min_inliers", "100"])
        found = sorted(tuple(line.split()[:2]) for line in capfd.readouterr().out.splitlines())
        assert found == [("p0", "p1"), ("p2", "p3"), ("p4", "p5"), ("p6", "p7")]
    store = FeatureStore(str(tmp_path / "features"))
    assert sum(shard.images for shard in store.summaries(store.units())) == 8


@pytest.fixture(scope="module")
def index(folder):
    """An index of the photographs."""
    output = str(folder / "index")
    photographs, labels = str(folder / "photographs"), str(folder / "labels.csv")
    jobs.index(IndexConfig((photographs,), labels, output, str(folder / "model")))
    return output


def test_units_of_a_program_are_those_of_the_command(folder, index):
    labelled = [
        dataclasses.replace(ref, landmark_id=f"L{int(ref.image_id[1:]) // 2}")
        for ref in match_images([str(folder / "photographs")]).images
    ]
    units = image_units(labelled, str(folder / "model"))
    assert [unit.name for unit in units] == FeatureStore(index).units()


_PIPELINE = """
pipeline:
  type: chain
  transforms:
    - type: MatchImages
      config: {images: [FOLDER/queries], model: FOLDER/model, reading: {max_image_pixels: 1000000}}
    - type: ExtractFeatures
      config: {store: STORE, model: FOLDER/model, reading: {max_image_pixels: 1000000}}
    - type: RetrieveNearest
      config: {index: FOLDER/index, queries: STORE, k: 3}
    - type: VerifyCandidates
      config: {index: FOLDER/index, queries: STORE, settings: {mutual_check: true}}
    - type: AggregatePredictions
    - type: WriteToParquet
      config: {path: OUTPUT}
providers:
  - include: STEPS
"""


def test_a_pipeline_in_yaml(folder, index, tmp_path):
    places = {
        "FOLDER": folder,
        "STORE": tmp_path / "store",
        "OUTPUT": tmp_path / "predictions",
        "STEPS": pathlib.Path(transforms.__file__).with_name("steps.yaml"),
    }
    text = _PIPELINE
    for name, place in places.items():
        text = text.replace(name, str(place))
    (tmp_path / "pipeline.yaml").write_text(text)
    beam_yaml.run([f"--yaml_pipeline_file={tmp_path / 'pipeline.yaml'}", "--runner=FnApiRunner"])
    [row] = pq.ParquetFile(next(tmp_path.glob("predictions*"))).read().to_pylist()
    assert row["image_id"] == "again" and row["landmark_id"] == "L1" and row["score"] > 1 and row["verified"]


def test_steps_are_imported_when_they_are_asked_for():
    code = "import sys, transforms; transforms.ImageRef; print('apache_beam' in sys.modules)"
    code += "; transforms.ExtractFeatures; print('apache_beam' in sys.modules)"
    child = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    assert child.stdout.split() == ["False", "True"]


def test_every_name_of_the_library_is_there_and_known_to_type_checkers():
    for name in transforms.__all__:
        assert getattr(transforms, name).__name__ == name and name in dir(transforms)
    with pytest.raises(AttributeError, match="module 'transforms' has no attribute 'ExtractFeature'"):
        transforms.ExtractFeature
    tree = ast.parse(pathlib.Path(transforms.__file__).read_text("utf-8"))
    imported = {
        f"{node.module}.{alias.asname}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname
    }
    assert imported == {f"transforms.{module}.{name}" for name, module in transforms._MODULES.items()}
