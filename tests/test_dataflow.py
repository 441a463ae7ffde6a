"""The jobs as Dataflow gets them, built without the cloud by `--dry_run=True --no_auth`; the image and the
flex template, as far as files tell.
"""

import dataclasses
import functools
import importlib.util
import json
import pathlib
import re
import shlex
import socket
import sys
import tarfile

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.coders import registry
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.pipeline import PipelineVisitor
from apache_beam.portability.api import beam_runner_api_pb2 as proto
from apache_beam.runners.dataflow.dataflow_runner import DataflowRunner
from apache_beam.runners.pipeline_context import PipelineContext
from apache_beam.runners.portability.stager import Stager
from apache_beam.runners.runner import PipelineResult, PipelineRunner, PipelineState
from PIL import Image

from beam_pipeline import runner
from beam_pipeline.main import beam_options, build_parser, main
from tests import tiny_models
from transforms import features, retrieval, types, verification
from transforms.processes.tensorflow_runtime import import_tensorflow
from transforms.storage import worklist

ROOT = pathlib.Path(__file__).parent.parent
DATAFLOW = [
    "--runner=DataflowRunner",
    "--dry_run=True",
    "--no_auth",
    "--project=some-project",
    "--region=europe-west4",
    "--temp_location=gs://bucket/temp",
    "--experiments=disable_logging_submission_environment",
]
PACKAGE = f"--setup_file={ROOT / 'setup.py'}"
IMAGE = "europe-docker.pkg.dev/some-project/some-repository/landmarks:cpu"
GPU = "type:nvidia-l4;count:1;install-nvidia-driver"

STEPS = {
    "index": {"Extract", "Augment"},
    "recognize": {
        "Extract",
        "Blocks",
        "Retrieve",
        "Pending",
        "Verify",
        "Augmented",
        "Aggregate",
        "WritePredictions",
    },
    "evaluate": {"Shards", "Score", "Write"},
}
MIN_RAM = {"Extract": features.MIN_RAM, "Retrieve": retrieval.MIN_RAM, "Verify": verification.MIN_RAM}


@dataclasses.dataclass(frozen=True)
class Job:
    """A job as it would be submitted, and the declared type of each step's outputs, by the step's name."""

    pipeline: proto.Pipeline
    types: dict[str, list]

    def steps(self):
        """Steps that have no parts."""
        return [step for step in self.pipeline.components.transforms.values() if not step.subtransforms]

    def steps_of_workers(self):
        """Name and environment of those that workers do."""
        environments = self.pipeline.components.environments
        return [
            (step.unique_name, environments[step.environment_id])
            for step in self.steps()
            if step.spec.urn == "beam:transform:pardo:v1"
        ]


@dataclasses.dataclass
class Types(PipelineVisitor):
    """Collects the types of the outputs of steps."""

    types: dict[str, list] = dataclasses.field(default_factory=dict)

    def visit_transform(self, node):
        self.types[node.full_label] = [output.element_type for output in node.outputs.values()]


@pytest.fixture(scope="session")
def dry_run(tmp_path_factory):
    """A function: runs a command line and returns the Job that it built, having reached for no network; the
    package is made for the first.
    """
    package = functools.cache(Stager._build_setup_package)
    made_in = str(tmp_path_factory.mktemp("package"))

    def build(*argv):
        jobs, reached = [], []

        def run_pipeline(self, pipeline, options, *rest):
            declared = Types()
            pipeline.visit(declared)
            result = unchanged(self, pipeline, options, *rest)
            jobs.append(Job(result.job.proto_pipeline, declared.types))
            return result

        unchanged = DataflowRunner.run_pipeline
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(DataflowRunner, "run_pipeline", run_pipeline)
            patch.setattr(
                Stager, "_build_setup_package", lambda setup_file, *rest: package(setup_file, made_in)
            )
            patch.setattr(socket.socket, "connect", lambda self, address: reached.append(address))
            patch.setattr(socket, "getaddrinfo", lambda *address, **rest: reached.append(address))
            assert main([*map(str, argv), *DATAFLOW]) == 0
        assert not reached
        [job] = jobs
        return job

    return build


@pytest.fixture(scope="session")
def jobs(dry_run, tmp_path_factory):
    """The Job of each command by its name; where one needs what another makes, that is made on the local
    runner.
    """
    root = tmp_path_factory.mktemp("dataflow")
    for i in range(6):
        folder = root / ("index" if i < 4 else "queries")
        folder.mkdir(exist_ok=True)
        Image.fromarray(tiny_models.textured(96, 128, i)).save(folder / f"{i}.jpg")
    (root / "labels.csv").write_text("id,landmark_id\n0,a\n1,a\n2,b\n3,b\n")
    (root / "truth.csv").write_text("id,landmarks\n4,a\n5,b\n")
    commands = {
        "index": ["--images", root / "index", "--labels", root / "labels.csv", "--output", root / "store"],
        "recognize": ["--images", root / "queries", "--index", root / "store", "--output", root / "run"],
        "evaluate": ["--predictions", root / "run", "--truth", root / "truth.csv"],
    }
    built = {}
    for name, given in commands.items():
        built[name] = dry_run(name, *given, PACKAGE)
        # Goes on from what the dry run left.
        assert main([name, *map(str, given), "--direct_num_workers=1"]) == 0
    on_gpus = ["index", *commands["index"][:-1], root / "other"]
    built["image"] = dry_run(*on_gpus, f"--sdk_container_image={IMAGE}", f"--resource_hint=accelerator={GPU}")
    return built


@pytest.mark.parametrize("command", STEPS)
def test_the_steps_of_a_job(jobs, command):
    assert {step.unique_name.partition("/")[0] for step in jobs[command].steps()} == STEPS[command]


@pytest.mark.parametrize("command", STEPS)
def test_workers_get_the_whole_package(jobs, command):
    for environment in jobs[command].pipeline.components.environments.values():
        payload = proto.DockerPayload.FromString(environment.payload)
        assert payload.container_image.endswith(
            f"/beam_python{sys.version_info[0]}.{sys.version_info[1]}_sdk:{beam.__version__}"
        )
        [package] = environment.dependencies
        assert (
            proto.ArtifactStagingToRolePayload.FromString(package.role_payload).staged_name
            == "workflow.tar.gz"
        )
        with tarfile.open(proto.ArtifactFilePayload.FromString(package.type_payload).path) as archive:
            names = {name.partition("/")[2] for name in archive.getnames()}
        wanted = [
            path
            for folder in ("beam_pipeline", "transforms")
            for path in (ROOT / folder).rglob("*")
            if path.suffix in (".py", ".npz", ".onnx", ".yaml")
        ]
        assert {str(path.relative_to(ROOT)) for path in wanted} | {
            "setup.py",
            "README.md",
            "LICENSE",
            "NOTICE",
        } <= names


def test_with_an_image_no_package_is_staged(jobs):
    for environment in jobs["image"].pipeline.components.environments.values():
        assert (
            proto.DockerPayload.FromString(environment.payload).container_image == IMAGE
            and not environment.dependencies
        )


def test_a_gpu_goes_with_the_memory(jobs):
    hints = {
        name: dict(environment.resource_hints)
        for name, environment in jobs["image"].steps_of_workers()
        if name.startswith("Extract/")
    }
    assert hints and all(
        set(h) == {"beam:resources:accelerator:v1", "beam:resources:min_ram_bytes:v1"} for h in hints.values()
    )
    assert {h["beam:resources:accelerator:v1"] for h in hints.values()} == {GPU.encode()}


@pytest.mark.parametrize("command", STEPS)
def test_resource_hints(jobs, command):
    for name, environment in jobs[command].steps_of_workers():
        wanted = MIN_RAM.get(name.partition("/")[0])
        assert dict(environment.resource_hints) == (
            {"beam:resources:min_ram_bytes:v1": wanted.replace("GB", "000000000").encode()} if wanted else {}
        ), name


@pytest.mark.parametrize(
    "engine, given",
    [
        ("DataflowRunner", True),
        ("apache_beam.runners.dataflow.dataflow_runner.DataflowRunner", True),
        ("DirectRunner", False),
        ("FlinkRunner", False),
        ("PortableRunner", False),
        ("PrismRunner", False),
    ],
)
def test_only_dataflow_gets_hints(engine, given):
    assert runner.resource_hints(PipelineOptions([f"--runner={engine}"]), "4GB") == (
        {"min_ram": "4GB"} if given else {}
    )
    assert runner.resource_hints(PipelineOptions([]), "4GB") == {}


@pytest.mark.parametrize("command", STEPS)
def test_every_step_declares_what_it_gives(jobs, command):
    types_of = {
        step: str(declared).replace("Dict[Any, Any]", "dict")
        for step, declared in jobs[command].types.items()
    }
    undeclared = {step for step, declared in types_of.items() if "Any" in declared}
    # Inside Beam's own, read at once by a step of the same stage.
    assert {
        step
        for step in undeclared
        if not re.search(r"/(CoGroupByKeyImpl|CombineGlobally\(\w+\)|BatchElements)/", step)
    } == set()


@pytest.mark.parametrize("command", STEPS)
def test_keys_have_one_encoding(jobs, command):
    context = PipelineContext(jobs[command].pipeline.components)
    for step in jobs[command].steps():
        if step.spec.urn == "beam:transform:group_by_key:v1":
            [keyed] = step.inputs.values()
            coder = context.coders[jobs[command].pipeline.components.pcollections[keyed].coder_id]
            assert coder.key_coder().is_deterministic(), f"{step.unique_name}: {coder}"


REF = types.ImageRef("a", "gs://bucket/a.jpg", 7, "landmark")
LOCATION = types.FeatureLocation("unit", 0, 7)
CANDIDATE = types.Candidate("b", "landmark", 0.5, LOCATION, 7, 0.75)
IDS = np.array([[b"b", b""]])
RECORDS = [
    worklist.ListedUnit("unit", 1, 0, 0),
    types.ImageUnit("unit", (REF,)),
    retrieval.QueryBlock("block", ("unit",)),
    retrieval.IndexGroup("group", ("unit",)),
    types.Neighbors(
        np.array([[0.5, -np.inf]], np.float32),
        IDS,
        IDS,
        IDS,
        np.array([[7, 0]]),
        np.array([[7, 0]], np.int32),
    ),
    retrieval._Locations(IDS[0], IDS[0], np.array([7, 0]), np.array([7, 0], np.int32)),
    types.CandidateUnit(
        "unit",
        (types.QueryCandidates("a", LOCATION, (CANDIDATE,), True),),
        (types.Failure("verify", "b", "uri", "kind", "text"),),
    ),
    types.PredictionUnit("unit", (types.Prediction("a", "landmark", 0.75, (CANDIDATE,), True),)),
]


def test_the_records_of_all_jobs_are_known_here(jobs):
    declared = " ".join(str(jobs[command].types) for command in STEPS)
    assert set(re.findall(r"<class '(?:transforms|beam_pipeline)\.[\w.]*?(\w+)'>", declared)) == {
        type(record).__name__ for record in RECORDS
    }


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_records_come_out_of_their_coder_as_they_went_in(record):
    coder = registry.get_coder(type(record))
    decoded = coder.decode(coder.encode(record))
    assert type(decoded) is type(record)
    for field in dataclasses.fields(record):
        before, after = getattr(record, field.name), getattr(decoded, field.name)
        assert np.array_equal(before, after) and getattr(before, "dtype", None) == getattr(
            after, "dtype", None
        )


class OnlySubmits(PipelineRunner):
    """An engine whose jobs end elsewhere, as those of a template do."""

    def run_pipeline(self, pipeline, options):
        result = PipelineResult(PipelineState.UNKNOWN)
        result.wait_until_finish = lambda duration=None: pytest.fail("waited")
        return result


def evaluate(folder, *flags):
    """Scores a prediction that is right; returns where the metrics go."""
    (folder / "submission.csv").write_text("id,landmarks\n4,a 0.5\n")
    (folder / "truth.csv").write_text("id,landmarks\n4,a\n")
    given = {"predictions": "submission.csv", "truth": "truth.csv", "output": "metrics.json"}
    assert main(["evaluate", *(f"--{flag}={folder / name}" for flag, name in given.items()), *flags]) == 0
    return folder / "metrics.json"


@pytest.mark.parametrize(
    "flag, said",
    [
        ("--dry_run=True", "dry run: the job was built, nothing was submitted"),
        (
            "--template_location=gs://bucket/template",
            "gs://bucket/template was made; once a job made from it has ended",
        ),
    ],
)
def test_a_job_that_nobody_waits_for(tmp_path, capsys, flag, said):
    assert not evaluate(tmp_path, "--runner=tests.test_dataflow.OnlySubmits", flag).exists()
    assert capsys.readouterr().out.startswith(said)


def test_the_local_runner_runs_whatever_dataflow_would_do(tmp_path):
    assert json.loads(evaluate(tmp_path, "--dry_run=True").read_text())["all"]["gap"] == 1


def test_gpu_memory_is_taken_as_needed(monkeypatch):
    config = import_tensorflow().config
    grown = []

    def set_memory_growth(gpu, enable):
        if gpu == "running":
            raise RuntimeError("Physical devices cannot be modified after being initialized")
        grown.append((gpu, enable))

    monkeypatch.setattr(
        config, "list_physical_devices", lambda kind: ["running", "idle"] if kind == "GPU" else []
    )
    monkeypatch.setattr(config.experimental, "set_memory_growth", set_memory_growth)
    import_tensorflow()
    assert grown == [("idle", True)]


def test_the_image_copies_what_is_there():
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text().replace("\\\n", " ")
    copied = [
        shlex.split(line)[1:-1]
        for line in dockerfile.splitlines()
        if line.startswith("COPY ") and "--from" not in line
    ]
    sources = {source for line in copied for source in line}
    assert {"setup.py", "beam_pipeline", "transforms"} <= sources and all(
        (ROOT / source).exists() for source in sources
    )
    assert re.search(r"^ARG BEAM=2\.\d+\.\d+$", dockerfile, re.M)
    [launcher] = re.findall(r"^ENV FLEX_TEMPLATE_PYTHON_PY_FILE=/template/(.+)$", dockerfile, re.M)
    assert f"docker/{launcher}" in sources
    # The list of what the build may see names each of them.
    seen = [
        line[1:]
        for line in (ROOT / "docker" / "Dockerfile.dockerignore").read_text().splitlines()
        if line.startswith("!")
    ]
    assert {line.partition("/**")[0] for line in seen} == sources


def test_the_template_knows_the_flags():
    spec = importlib.util.spec_from_file_location("launch", ROOT / "docker" / "launch.py")
    launch = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(launch)
    metadata = json.loads((ROOT / "docker" / "flex_template.json").read_text())
    examples = {
        "images": "gs://bucket/photos",
        "labels": "gs://bucket/labels.csv",
        "output": "gs://bucket/out",
        "index": "gs://bucket/index",
        "model": "embedded",
        "score_threshold": "175",
        "preset": "accurate",
        "query_store": "gs://bucket/queries",
        "sdk_container_image": IMAGE,
        "number_of_worker_harness_threads": "2",
        "experiments": "no_use_multiple_sdk_containers",
        "resource_hint": "min_ram=8GB",
    }
    parameters = {parameter["name"]: parameter for parameter in metadata["parameters"]}
    assert set(parameters) == {"command", *examples} and all(
        p["label"] and p["helpText"] for p in parameters.values()
    )
    for command, others in (
        ("index", ("index", "query_store")),
        ("recognize", ("labels", "score_threshold")),
    ):
        flags = {
            "command": command,
            **{name: value for name, value in examples.items() if name not in others},
        }
        for name, value in flags.items():
            assert all(re.fullmatch(regex, value) for regex in parameters[name].get("regexes", [])), name
        _, rest = build_parser().parse_known_args(
            launch.arguments([f"--{name}={value}" for name, value in flags.items()])
        )
        beam_options(rest)  # raises where Beam does not know one either


def test_the_commands_of_the_page_are_ones():
    text = (ROOT / "docs" / "dataflow.md").read_text().replace("\\\n", " ")
    commands = re.findall(r"^ +landmarks (.+)$", text, re.M)
    assert len(commands) >= 5
    for command in commands:
        _, rest = build_parser().parse_known_args(shlex.split(command))
        beam_options(rest)
