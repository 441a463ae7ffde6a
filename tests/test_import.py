"""Importing the packages is free of side effects: whoever takes a step into a program of their own keeps the
process as it was.
"""

import json
import os
import subprocess
import sys

# What the packages stand on is imported first: its own effects are not ours.
_IMPORT_ALL = """
import importlib, json, logging, os, pkgutil, signal, sys, threading, warnings
import apache_beam, apache_beam.runners.portability.fn_api_runner, cv2, numpy, onnxruntime, pandas, PIL.Image
import pyarrow.parquet, skimage.data, threadpoolctl

def state():
    loggers = [logging.getLogger(), *map(logging.getLogger, sorted(logging.root.manager.loggerDict))]
    return {
        "Pillow's limit of pixels": PIL.Image.MAX_IMAGE_PIXELS,
        "OpenCV's threads": cv2.getNumThreads(),
        "thread pools": {pool["filepath"]: pool["num_threads"] for pool in threadpoolctl.threadpool_info()},
        "environment": dict(os.environ),
        "logging": {l.name: [l.level, l.propagate, len(l.handlers), len(l.filters)] for l in loggers
                    if l.handlers or l.filters or l.level},
        "signals": [repr(signal.getsignal(number)) for number in sorted(signal.valid_signals())],
        "warnings": [repr(entry) for entry in warnings.filters],
        "threads": [thread.name for thread in threading.enumerate()],
        "exceptions": [sys.excepthook is sys.__excepthook__],
        "folder": os.getcwd(),
    }

before, names = state(), []
for package in ("transforms", "beam_pipeline"):
    found = importlib.import_module(package)
    names += [module.name for module in pkgutil.walk_packages(found.__path__, package + ".")]
for name in names:
    if not name.endswith("__main__"):
        importlib.import_module(name)
after = state()
print(json.dumps([names, [[key, before[key], after[key]] for key in before if before[key] != after[key]]]))
"""


def test_importing_every_module_changes_nothing_in_the_process():
    child = subprocess.run([sys.executable, "-c", _IMPORT_ALL], stdout=subprocess.PIPE, text=True, check=True)
    names, changes = json.loads(child.stdout)
    assert {"transforms.images", "transforms.models.saved_model", "beam_pipeline.recognize"} <= {*names}
    assert changes == []


_WORK = """
import io, json, os
from concurrent.futures import ThreadPoolExecutor
import apache_beam, cv2, PIL.Image, threadpoolctl
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions
from transforms.images import decode_image
from transforms.storage import object_stores
from transforms.types import CandidateUnit, FeatureLocation, QueryCandidates, VerificationSettings
from transforms.verification import VerifyCandidates

def state():
    pools = {pool["filepath"]: pool["num_threads"] for pool in threadpoolctl.threadpool_info()}
    options = repr(FileSystems._pipeline_options)
    return [PIL.Image.MAX_IMAGE_PIXELS, cv2.getNumThreads(), pools, dict(os.environ), options]

PIL.Image.MAX_IMAGE_PIXELS = 12
cv2.setNumThreads(3)
steps, found = {}, [state()]

content = io.BytesIO()
PIL.Image.new("RGB", (60, 40)).save(content, "JPEG")
with ThreadPoolExecutor(4) as pool:
    decoded = list(pool.map(decode_image, [content.getvalue()] * 50, [60] * 50))
steps["decoded"] = {pixels.shape for pixels, *_ in decoded} == {(40, 60, 3)}
found.append(state())

with object_stores.using(PipelineOptions(["--s3_secret_access_key=secret", "--s3_endpoint_url=http://none"])):
    steps["options"] = os.environ["AWS_SECRET_ACCESS_KEY"] == "secret"
found.append(state())

query = QueryCandidates("q", FeatureLocation("u", 0, 0), ())
with apache_beam.Pipeline("FnApiRunner") as pipeline:
    units = pipeline | apache_beam.Create([CandidateUnit("u", (query,))])
    verified = units | VerifyCandidates("index", "queries", VerificationSettings())
    verified | apache_beam.Map(lambda unit: print(cv2.getNumThreads()))
found.append([*state()[:-1], found[0][-1]])  # a Pipeline gives its options to Beam's file systems
print(json.dumps([steps, found]))
"""


def test_what_work_sets_in_the_process_is_given_back():
    environment = {**os.environ, "AWS_SECRET_ACCESS_KEY": "mine"}
    environment.pop("AWS_ENDPOINT_URL", None)
    child = subprocess.run(
        [sys.executable, "-c", _WORK], stdout=subprocess.PIPE, text=True, check=True, env=environment
    )
    threads, report = child.stdout.splitlines()
    steps, found = json.loads(report)
    assert threads == "1" and steps == {"decoded": True, "options": True}
    assert found[0][:2] == [12, 3] and found[0][3]["AWS_SECRET_ACCESS_KEY"] == "mine"
    assert found[1:] == found[:1] * 3
