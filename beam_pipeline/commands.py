"""What each command runs, imported when it is asked for."""

import argparse
import importlib
from collections.abc import Callable
from typing import Any

from beam_pipeline import config, flags
from beam_pipeline.gldv2.config import DownloadConfig, SubsetConfig

# Takes the flags, and Beam's PipelineOptions or for a command without a pipeline None; returns the exit code.
Command = Callable[[argparse.Namespace, Any], int]


def _job(name: str, configuration: Callable[[argparse.Namespace], Any]) -> Command:
    """The command that is `run` of a module, with the configuration that its flags make."""

    def command(args: argparse.Namespace, options: Any) -> int:
        code: int = importlib.import_module(f"beam_pipeline.{name}").run(configuration(args), options)
        return code

    return command


recognize = _job("recognize", flags.recognize_config)
calibrate = _job("calibrate", flags.calibrate_config)
cohort = _job("cohort", flags.maker(config.CohortConfig))
rescore = _job("rescore", flags.rescore_config)
whiten = _job("whiten", flags.maker(config.WhitenConfig))


def index(args: argparse.Namespace, options: Any) -> int:
    """Makes an index or adds to it, or with the flags for that changes what it holds."""
    if (clean := flags.clean_config(args)) is not None:
        from beam_pipeline import cleaning

        return cleaning.run(clean, options)

    from beam_pipeline import index

    return index.run(flags.index_config(args), options)


def plan_index(args: argparse.Namespace, options: Any) -> int:
    """Plans the making of an index."""
    from beam_pipeline import index

    return index.plan(flags.index_config(args), options, flags.record(config.FullSize, args))


def plan_recognize(args: argparse.Namespace, options: Any) -> int:
    """Plans a run."""
    from beam_pipeline import recognize

    return recognize.plan(flags.recognize_config(args), options, flags.record(config.FullSize, args))


def evaluate(args: argparse.Namespace, options: Any) -> int:
    """Scores predictions."""
    from beam_pipeline import evaluate

    evaluate.run(flags.record(config.EvaluateConfig, args), options)
    return 0


def audit(args: argparse.Namespace, options: Any) -> int:
    """Audits an index, and makes a page of what was found."""
    from beam_pipeline import audit
    from beam_pipeline.report import audit_page

    code = audit.run(flags.record(config.AuditConfig, args), options)
    print(f"see it: {audit_page.write_page(args.output)}")
    return code


def discover(args: argparse.Namespace, options: Any) -> int:
    """Groups queries without a landmark, and makes a page to name them."""
    from beam_pipeline import discover
    from beam_pipeline.report import groups_page

    code = discover.run(flags.record(config.DiscoverConfig, args), options)
    print(f"see it: {groups_page.write_page(args.output)}")
    return code


def verify(args: argparse.Namespace, options: Any) -> int:
    """Checks the shards of an output."""
    from beam_pipeline import integrity

    return integrity.run(args.store)


def info(args: argparse.Namespace, options: Any) -> int:
    """Tells what an output holds."""
    from beam_pipeline import info

    return info.run(args.store, args.json)


def inspect(args: argparse.Namespace, options: Any) -> int:
    """Tries a model."""
    from transforms.models import catalog

    print(catalog.inspect(args.model))
    return 0


def demo(args: argparse.Namespace, options: Any) -> int:
    """Makes the demo set."""
    from beam_pipeline import demo

    paths = demo.make_demo(args.output)
    made = "already there" if paths.already_there else "made"
    print(f"{args.output}: {made}; labels {paths.labels}, truth {paths.truth}")
    return 0


def download(args: argparse.Namespace, options: Any) -> int:
    """Fetches a part of Google Landmarks v2."""
    from beam_pipeline.gldv2 import download

    return download.run(flags.record(DownloadConfig, args))


def subset(args: argparse.Namespace, options: Any) -> int:
    """Chooses some landmarks of Google Landmarks v2."""
    from beam_pipeline.gldv2 import subset

    return subset.run(flags.record(SubsetConfig, args))


def bundle(args: argparse.Namespace, options: Any) -> int:
    """Makes wheels of what is installed."""
    from beam_pipeline import bundle

    return bundle.run(args.output, args.without)


def matches(args: argparse.Namespace, options: Any) -> int:
    """Draws a query and its candidates."""
    from beam_pipeline import matches

    matches.write_match_picture(
        args.run, args.image_id, args.output, args.max_candidates, args.truth, args.names
    )
    return 0


def report(args: argparse.Namespace, options: Any) -> int:
    """Makes the pages of a run."""
    from beam_pipeline.report import pages

    pages.write_report(flags.record(config.ReportConfig, args))
    return 0


SUPERVISED = (index, recognize, cohort)  # run in a child of this process, which looks after it
