"""What a pipeline's options say of its processes and threads."""

import os

import apache_beam as beam
import grpc
import pytest
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions
from apache_beam.runners.portability.fn_api_runner import worker_handlers
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.transforms import core

from beam_pipeline import runner
from beam_pipeline.config import PipelineError
from transforms.storage.machine import MachineError

CORES = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    "flags, workers",
    [
        ([], CORES),
        (["--direct_num_workers=1"], 1),
        (["--direct_num_workers", "1"], 1),
        (["--direct_num_workers=0"], CORES),
        (["--direct_num_workers=3", "--direct_running_mode=multi_processing"], 3),
        (["--runner=DataflowRunner", "--direct_num_workers=3"], None),
    ],
)
def test_workers_of_the_local_runner(flags, workers):
    assert runner.local_workers(PipelineOptions(flags)) == workers


@pytest.mark.parametrize("flags", [[], ["--direct_num_workers=1"], ["--direct_num_workers=3"]])
def test_a_pipeline_has_the_workers_asked_for(flags):
    seen = []
    options = PipelineOptions(flags)
    runner.run_pipeline(
        lambda pipeline: seen.append((pipeline | beam.Create([1])).pipeline.options), options, []
    )
    assert (
        seen[0].view_as(DirectOptions).direct_num_workers
        == runner.local_workers(options)
        == runner.images_in_flight(seen[0])
    )


@pytest.mark.parametrize(
    "flags, photographs",
    [
        (["--direct_num_workers=3", "--direct_running_mode=multi_threading"], 3),
        (["--direct_num_workers=3", "--direct_running_mode=multi_processing"], None),
        (["--runner=DataflowRunner"], None),
    ],
    ids=["threads", "processes", "another engine"],
)
def test_photographs_in_the_model_at_a_time(flags, photographs):
    assert runner.images_in_flight(PipelineOptions(flags)) == photographs


@pytest.mark.parametrize(
    "flags, few, mode",
    [
        ([], True, (1, "in_memory")),
        ([], False, (2, "multi_threading")),
        (["--direct_num_workers=2"], True, (2, "multi_threading")),
        (["--direct_running_mode=multi_threading"], True, (2, "multi_threading")),
    ],
)
def test_for_a_few_photographs_one_worker_is_started_whose_model_has_all_cores(flags, few, mode, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1})
    built, run = [], []

    class Engine(runner.FnApiRunner):
        def run_pipeline(self, pipeline, options):
            run.append(options.view_as(DirectOptions))
            return super().run_pipeline(pipeline, options)

    def build(pipeline):
        built.append(runner.images_in_flight(pipeline.options))
        assert_that(pipeline | beam.Create([1, 2]) | beam.Reshuffle(), equal_to([1, 2]))

    runner.run_pipeline(build, PipelineOptions(flags), [], Engine(), few)
    assert built == [2] and (run[0].direct_num_workers, run[0].direct_running_mode) == mode


_PHASES = [runner.Phase(label, 10, lambda: 0) for label in ("extract", "retrieve", "verify")]


@pytest.mark.parametrize(
    "steps, wanted",
    [
        (
            [((4, 0, 0), False), ((10, 3, 0), False), ((10, 10, 10), True)],
            ["1/3 extract ...", "1/3 extract.", "2/3 retrieve ...", "2/3 retrieve.", "3/3 verify."],
        ),
        ([((4, 0, 0), False), ((4, 0, 0), True)], ["1/3 extract ...", "1/3 extract."]),
        (  # a time budget cut the first, the second cannot be seen
            [((4, 0, 0), False), ((4, 0, 2), False), ((4, 0, 4), True)],
            ["1/3 extract ...", "1/3 extract.", "2/3 retrieve.", "3/3 verify ...", "3/3 verify."],
        ),
        ([((10, 10, 0), False)], ["1/3 extract.", "2/3 retrieve.", "3/3 verify ..."]),
    ],
    ids=["one after the other", "stopped", "cut by a budget", "done before"],
)
def test_the_stage_at_work_is_shown_and_each_is_closed(steps, wanted):
    stages = runner.Stages(_PHASES, (0, 0, 0), 0.0)
    shown = [
        " ".join(line.split()[:2]) + ("." if last else " ...")
        for seconds, (done, ended) in enumerate(steps, 1)
        for line, last in stages.lines(done, float(seconds), ended)
    ]
    assert shown == wanted


def test_a_stage_says_how_fast_it_is_and_how_long_it_takes():
    [phase] = phases = [runner.Phase("download", 3600, lambda: 0, " MB")]
    stages = runner.Stages(phases, [600], 100.0)
    assert [*stages.lines([1200], 160.0)] == [
        ("download     1,200 of 3,600 MB  10.0 MB/s, 4m00s left", False)
    ]
    assert [*stages.lines([3600], 400.0)] == [("download     3,600 of 3,600 MB  10.0 MB/s in 5m00s", True)]
    assert [*stages.lines([3600], 500.0, ended=True)] == [] and phase.unit == " MB"
    seen_done = runner.Stages(phases, [3600], 100.0)
    assert [*seen_done.lines([3600], 100.5)] == [("download     3,600 of 3,600 MB", True)]


def test_a_stage_of_which_not_all_is_known_says_so_and_is_over_at_the_end():
    stages = runner.Stages([runner.Phase("download", 100, lambda: 0, " MB", at_least=True)], [0], 0.0)
    assert [*stages.lines([50], 10.0)] == [
        ("download        50 of at least 100 MB  5.0 MB/s, at least 10s left", False)
    ]
    assert [*stages.lines([200], 20.0)] == [("download       200 of at least 200 MB  10.0 MB/s", False)]
    assert [*stages.lines([300], 30.0, ended=True)] == [
        ("download       300 of at least 300 MB  10.0 MB/s in 30s", True)
    ]


def test_progress_is_a_live_line_on_a_terminal_and_whole_lines_elsewhere(monkeypatch, capsys):
    for terminal in (False, True):
        monkeypatch.setattr("sys.stderr.isatty", lambda terminal=terminal: terminal, raising=False)
        with runner.progress([runner.Phase("extract", 5, lambda: 5), runner.Phase("nothing", 0, lambda: 0)]):
            pass
        lines = capsys.readouterr().err
        assert lines.startswith("\r\033[Kextract" if terminal else "extract")
        assert lines.endswith("\n") and lines.count("\n") == 1


def test_worker_threads_do_not_send_what_is_half_written(monkeypatch):
    monkeypatch.setattr(worker_handlers, "DATA_BUFFER_TIME_LIMIT_MS", 1000)  # as Beam has it

    def during(_):
        return worker_handlers.DATA_BUFFER_TIME_LIMIT_MS >= 24 * 3600 * 1000

    def build(pipeline):
        assert_that(pipeline | beam.Create(range(4)) | beam.Map(during), equal_to([True] * 4))

    runner.run_pipeline(build, PipelineOptions(["--direct_num_workers=2"]), [])
    assert worker_handlers.DATA_BUFFER_TIME_LIMIT_MS == 1000


def test_signatures_are_read_once_for_all_steps_and_workers(monkeypatch):
    read, methods = core.get_signature, []

    def counted(function):
        methods.append(getattr(function, "__func__", None))
        return read(function)

    monkeypatch.setattr(core, "get_signature", counted)
    runner.run_pipeline(
        lambda pipeline: pipeline | beam.Create([1]) | beam.Reshuffle() | beam.Map(str),
        PipelineOptions(["--direct_num_workers=2"]),
        [],
    )
    methods = [method for method in methods if method]
    assert beam.DoFn.setup in methods and len({*methods}) == len(methods)
    assert core.get_signature is counted


ERRORS = [
    (OSError(28, "No space left on device", "out/x.bin"), "out/x.bin: no space left on device; the same"),
    (MachineError("p.jpg", OSError(5, "bad disk")), "the machine failed at p.jpg, not the photograph"),
    (ValueError("s.parquet is no whole Parquet file: x"), "s.parquet is no whole Parquet file: x; the same"),
    (KeyError("a bug"), "KeyError: "),
]


def _raise(number):
    raise ERRORS[number][0]


def test_a_worker_that_does_not_answer(monkeypatch):
    def silent(*ready):
        raise grpc.FutureTimeoutError()

    monkeypatch.setattr(runner.sdk_worker.grpc, "channel_ready_future", silent)
    with pytest.raises(PipelineError, match="^a worker did not answer within a minute: .*goes on from here$"):
        runner.run_pipeline(
            lambda pipeline: pipeline | beam.Create([1]) | beam.Reshuffle(),
            PipelineOptions(["--direct_num_workers=2"]),
            [],
        )


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("number", range(len(ERRORS)))
def test_the_error_that_ends_a_pipeline_is_said_once(number, workers, capsys, caplog):
    error, said = ERRORS[number]
    with pytest.raises(PipelineError) as raised:
        runner.run_pipeline(
            lambda pipeline: pipeline | beam.Create([number]) | beam.Map(_raise),
            PipelineOptions([f"--direct_num_workers={workers}"]),
            [],
        )
    is_bug = isinstance(error, KeyError)
    assert str(raised.value).startswith(said) and ("while running" in str(raised.value)) is is_bug
    # What else is logged is of a channel that an earlier pipeline has closed.
    assert ("in _raise\n" in capsys.readouterr().err) is is_bug and "in _raise\n" not in caplog.text
