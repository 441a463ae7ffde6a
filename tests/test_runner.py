"""What a pipeline's options say of its processes and threads."""

import os

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions

from beam_pipeline import runner

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
