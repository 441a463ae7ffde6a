"""The command line: `landmarks COMMAND`, also `python -m beam_pipeline COMMAND`.

Parses and calls; the work is in the modules of the commands, imported when they are needed.
"""

import argparse
import difflib
import sys
import time
from collections.abc import Sequence
from typing import Any

from beam_pipeline import __version__, memory

with memory.told():
    from beam_pipeline import config, flags, quiet, terminal
    from beam_pipeline.gldv2 import published

EXIT_DONE, EXIT_FAILED, EXIT_USAGE = 0, 1, 2

_NAMES = "landmark_id,name (or GLDv2's label_to_category): names beside the ids"
_MODELS = "the folder or URI of a DELG SavedModel or an ONNX model"
_PATTERNS = "a folder (searched recursively), a glob, or @list.txt"


def build_parser() -> argparse.ArgumentParser:
    """The parser of every command; each sets `command` to the function that runs it."""
    parser = argparse.ArgumentParser(
        prog="landmarks",
        description="Recognises landmarks in photographs without training: index labelled photographs, "
        "recognize others, evaluate.",
        epilog="Options of Apache Beam (--runner, --direct_num_workers, --project, ...) may follow those of "
        "any command that runs a pipeline.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"landmarks {__version__}")
    commands = parser.add_subparsers(
        title="commands", metavar="COMMAND", required=True, help="`landmarks COMMAND --help` explains each"
    )

    _add_index(commands, _index, "extract the features of labelled photographs, once")
    _add_recognize(commands, _recognize, "predict the landmark of each query photograph")

    plan = commands.add_parser(
        "plan",
        help="how long index or recognize will take, by a pilot",
        allow_abbrev=False,
        description="Tries a sample of the work of index or recognize, and prints how long all of it will "
        "take; nothing is written.",
    )
    planned = plan.add_subparsers(
        title="commands",
        metavar="COMMAND",
        required=True,
        help="what to plan; with the options of the command itself",
    )
    of_index = _add_index(planned, _plan_index, "plan `landmarks index`")
    of_recognize = _add_recognize(planned, _plan_recognize, "plan `landmarks recognize`")
    flags.add_size_flags(of_index, of_index=True)
    flags.add_size_flags(of_recognize, of_index=False)

    evaluate = _add_command(commands, "evaluate", _evaluate, "score predictions: GAP@1, top-1")
    evaluate.add_argument(
        "--predictions", required=True, metavar="RUN_OR_CSV", help="a run's folder, or any submission CSV"
    )
    evaluate.add_argument("--truth", required=True, metavar="CSV", help="id,landmarks,Usage")
    evaluate.add_argument(
        "--output",
        metavar="JSON",
        help="where to write the metrics (default: RUN/metrics.json; nowhere for a CSV)",
    )
    evaluate.add_argument(
        "--non_landmark_share",
        type=flags.number(float, 0.001, 0.999),
        metavar="P",
        help="judge as if this part of the queries showed no landmark; 0.98 in Google Landmarks v2",
    )

    calibrate = _add_command(
        commands, "calibrate", _calibrate, "let an index tune itself and learn probabilities, once"
    )
    calibrate.add_argument(
        "--index", metavar="INDEX", help="made by `landmarks index` (default: that of RUN)"
    )
    calibrate.add_argument(
        "--run",
        action="append",
        default=[],
        metavar="RUN",
        help="made by `landmarks recognize --preset accurate`: its queries are learned from too, by --truth; "
        "or several of the same queries, by other models: their indexes are calibrated as an ensemble",
    )
    calibrate.add_argument("--truth", metavar="CSV", help="id,landmarks,Usage: of RUN's queries")
    calibrate.add_argument(
        "--sample",
        type=flags.number(int, 1),
        default=config.CalibrateConfig.sample,
        metavar="N",
        help="photographs of the index that are asked for, about (default: %(default)s)",
    )
    calibrate.add_argument(
        "--negatives",
        nargs="+",
        default=[],
        metavar="STORE",
        help="made by `landmarks cohort`, `recognize` or `index` of photographs that show no landmark of the "
        "index, beside the cohort that comes with the embedded model",
    )
    calibrate.add_argument(
        "--non_landmark_share",
        type=flags.number(float, 0.001, 0.999),
        default=config.CalibrateConfig.non_landmark_share,
        metavar="P",
        help="the part of the queries to come that shows no landmark of the index (default: %(default)s)",
    )
    calibrate.add_argument(
        "--output", metavar="JSON", help="where to write it (default: INDEX/calibration.json)"
    )

    audit = _add_command(
        commands, "audit", _audit, "look for photographs that are twice in an index, and for wrong labels"
    )
    audit.add_argument("--index", required=True, metavar="INDEX", help="made by `landmarks index`")
    audit.add_argument("--output", required=True, metavar="AUDIT", help="folder to make")
    audit.add_argument(
        "--neighbors",
        type=flags.number(int, 1, 1000),
        default=config.AuditConfig.neighbors,
        metavar="N",
        help="nearest others that each photograph is compared with (default: %(default)s)",
    )
    audit.add_argument("--overwrite", action="store_true", help="start anew where the output is another")
    flags.add_time_budget(audit)

    discover = _add_command(
        commands,
        "discover",
        _discover,
        "group the queries without a landmark that show one place, to name them",
    )
    discover.add_argument("--run", required=True, metavar="RUN", help="made by `landmarks recognize`")
    discover.add_argument("--output", required=True, metavar="FOLDER", help="folder to make")
    discover.add_argument(
        "--min_probability",
        type=flags.number(float, 0, 1),
        metavar="P",
        help="a query whose landmark is less probable has none",
    )
    discover.add_argument(
        "--min_score", type=float, metavar="S", help="a query whose landmark has a lower score has none"
    )
    discover.add_argument(
        "--neighbors",
        type=flags.number(int, 1, 1000),
        default=config.DiscoverConfig.neighbors,
        metavar="N",
        help="nearest others that each query is compared with (default: %(default)s)",
    )
    discover.add_argument("--overwrite", action="store_true", help="start anew where the output is another")
    flags.add_time_budget(discover)

    cohort = _add_command(
        commands, "cohort", _cohort, "extract photographs of other places, for `landmarks calibrate`"
    )
    cohort.add_argument("--images", nargs="+", required=True, metavar="PATTERN", help=_PATTERNS)
    cohort.add_argument("--output", required=True, metavar="STORE", help="folder to make")
    _add_model_flags(cohort, "default: embedded")
    flags.add_image_flags(cohort, default=config.CohortConfig.image_ids)
    flags.add_output_flags(cohort, time_budget=False)
    flags.add_extraction_flags(cohort, of_index=True)

    rescore = _add_command(
        commands, "rescore", _rescore, "make a run with other scores of a finished one, without photographs"
    )
    rescore.add_argument(
        "--run",
        action="append",
        required=True,
        metavar="RUN",
        help="made by `landmarks recognize`; several of the same queries are joined, as an ensemble",
    )
    rescore.add_argument("--output", required=True, metavar="RUN", help="folder to make")
    rescore.add_argument("--truth", metavar="CSV", help="id,landmarks,Usage: also write RUN/metrics.json")
    rescore.add_argument("--calibration", metavar="FILE", help="scores and probabilities of a calibration")
    rescore.add_argument(
        "--min_probability",
        type=flags.number(float, 0, 1),
        metavar="P",
        help="a query whose landmark is less probable has none",
    )
    rescore.add_argument(
        "--num_to_rerank",
        type=flags.number(int, 1, 1000),
        metavar="N",
        help="candidates that count, the most similar ones (default: all that RUN has)",
    )
    flags.add_scoring_flags(rescore)
    rescore.add_argument("--overwrite", action="store_true", help="start anew where the output is another")

    verify = _add_command(
        commands, "verify", _verify, "check that every shard of a finished output is as it was written"
    )
    verify.add_argument("store", metavar="STORE", help="made by `landmarks index` or `landmarks recognize`")

    info = _add_command(
        commands, "info", _info, "what an index or a run holds, and whether it is finished or stale"
    )
    info.add_argument(
        "store", metavar="INDEX_OR_RUN", help="made by `landmarks index` or `landmarks recognize`"
    )
    info.add_argument("--json", action="store_true", help="print all of it as JSON, every landmark too")

    models = commands.add_parser(
        "model", help="look at a model, or whiten its descriptors", allow_abbrev=False
    )
    model = models.add_subparsers(title="commands", metavar="COMMAND", required=True, help="what to do")
    inspect = _add_command(
        model, "inspect", _inspect, "what a model offers, its outputs on a test image, and a card to edit"
    )
    inspect.add_argument("model", metavar="MODEL", help=f"embedded, rootsift-vlad, or {_MODELS}")

    report = _add_command(
        commands, "report", _report, "make pages that show a run: queries, landmarks, mistakes"
    )
    report.add_argument("--run", required=True, metavar="RUN", help="made by `landmarks recognize`")
    report.add_argument("--output", required=True, metavar="REPORT", help="folder to make")
    report.add_argument(
        "--truth", metavar="CSV", help="id,landmarks,Usage: also show what costs the most GAP"
    )
    report.add_argument("--names", metavar="CSV", help=_NAMES)
    report.add_argument("--against", metavar="RUN2", help="another run of these queries: show what changed")
    report.add_argument(
        "--max_queries",
        type=flags.number(int, 1),
        default=config.ReportConfig.max_queries,
        metavar="N",
        help="queries shown whole; of more a sample is taken (default: %(default)s)",
    )

    whiten = _add_command(
        model,
        "whiten",
        _whiten,
        "whiten an index's global descriptors by what they have in common, and its queries' from then on",
    )
    whiten.add_argument("--index", required=True, metavar="INDEX", help="made by `landmarks index`")
    whiten.add_argument(
        "--dimensions",
        type=flags.number(int, 1),
        default=config.WhitenConfig.dimensions,
        metavar="N",
        help="leading axes kept (default: %(default)s, at most half as many as there are photographs)",
    )
    whiten.add_argument(
        "--shrinkage",
        type=flags.number(float, 0),
        default=config.WhitenConfig.shrinkage,
        metavar="S",
        help="this part of the largest variance is added to that of each axis (default: %(default)s)",
    )

    demo = _add_command(
        commands, "demo", _demo, "make a small data set to try everything on", beam_options=False
    )
    demo.add_argument("--output", required=True, metavar="DIR", help="folder to make")

    _add_gldv2(commands)

    bundle = _add_command(
        commands, "bundle", _bundle, "make wheels of all that a machine without a network needs", False
    )
    bundle.add_argument("--output", required=True, metavar="DIR", help="folder for the wheels")
    bundle.add_argument(
        "--without",
        nargs="+",
        default=[],
        metavar="PACKAGE",
        help="requirements to leave out, such as tensorflow, which only SavedModels need",
    )

    matches = _add_command(
        commands, "matches", _matches, "draw a query, its best candidates and their inliers"
    )
    matches.add_argument("--run", required=True, metavar="RUN", help="made by `landmarks recognize`")
    matches.add_argument("--image_id", required=True, metavar="ID", help="the query")
    matches.add_argument("--output", required=True, metavar="PNG", help="picture to write")
    matches.add_argument("--truth", metavar="CSV", help="frame right candidates green and wrong ones red")
    matches.add_argument("--names", metavar="CSV", help=_NAMES)
    matches.add_argument(
        "--max_candidates",
        type=flags.number(int, 1),
        default=3,
        metavar="N",
        help="candidates drawn (default: %(default)s)",
    )
    return parser


def _add_gldv2(commands: Any) -> None:
    gldv2 = commands.add_parser(
        "gldv2", help="Google Landmarks v2: download it, choose a part of it", allow_abbrev=False
    ).add_subparsers(title="commands", metavar="COMMAND", required=True, help="what to do with it")
    download = _add_command(
        gldv2, "download", _download, "fetch a part of the data set, or what of it is missing", False
    )
    download.add_argument("--part", required=True, choices=list(published.PARTS), help="what to fetch")
    download.add_argument("--output", required=True, metavar="DATA", help="folder for all parts")
    download.add_argument(
        "--base_url",
        default=published.BASE_URL,
        metavar="URL",
        help="where it is published (default: %(default)s)",
    )
    download.add_argument(
        "--archives", type=flags.numbers, metavar="N-N,N", help="some of the part, such as 0-9 (default: all)"
    )
    download.add_argument(
        "--keep",
        choices=("tar", "files"),
        default="tar",
        help="archives as they are, whose photographs are read by range, or photographs as files (default: "
        "%(default)s)",
    )
    download.add_argument(
        "--parallel",
        type=flags.number(int, 1, 64),
        default=4,
        metavar="N",
        help="archives at a time (default: %(default)s)",
    )
    download.add_argument(
        "--time_budget", type=flags.duration, metavar="TIME", help="stop after this time, such as 8h"
    )

    subset = _add_command(
        gldv2, "subset", _subset, "choose some landmarks of what was downloaded, for a trial", False
    )
    subset.add_argument("--data", required=True, metavar="DATA", help="made by `landmarks gldv2 download`")
    subset.add_argument("--output", required=True, metavar="DIR", help="folder to make")
    subset.add_argument(
        "--landmarks",
        type=flags.number(int, 1),
        required=True,
        metavar="N",
        help="landmarks, with all their photographs and as many distractors",
    )
    subset.add_argument(
        "--seed",
        type=flags.number(int, 0),
        default=0,
        metavar="S",
        help="of the choice (default: %(default)s)",
    )


def _add_index(commands: Any, run: Any, text: str) -> argparse.ArgumentParser:
    index = _add_command(commands, "index", run, text)
    index.add_argument("--images", nargs="+", metavar="PATTERN", help=_PATTERNS)
    index.add_argument(
        "--labels",
        metavar="CSV_OR_FOLDERS",
        help="id,landmark_id (or id,url,landmark_id, or landmark_id,images); or the word folders: the nearest"
        " folder's name is the landmark, folders:2: the nearest two; a folder of the Kaggle competition has "
        "its own",
    )
    flags.add_image_flags(index, default=None)
    index.add_argument("--output", required=True, metavar="INDEX", help="folder to make")
    _add_model_flags(index, "default: embedded; with --append the index's")
    index.add_argument(
        "--append",
        action="store_true",
        help="add the images to a finished index, which stays readable meanwhile; those that failed in it "
        "and were mended are tried again",
    )
    index.add_argument(
        "--update",
        action="store_true",
        help="with --append: photographs that were changed, moved or relabelled replace those of their ids; "
        "what the index has beside --images stays, and is counted",
    )
    flags.add_clean_flags(index)
    flags.add_output_flags(index)
    flags.add_extraction_flags(index, of_index=True)
    return index


def _add_model_flags(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument("--model", metavar="MODEL", help=f"embedded, rootsift-vlad, or {_MODELS} ({default})")
    parser.add_argument(
        "--local_model",
        metavar="MODEL",
        help="takes the local features, by which candidates are verified, from another model",
    )


def _add_recognize(commands: Any, run: Any, text: str) -> argparse.ArgumentParser:
    recognize = _add_command(commands, "recognize", run, text)
    recognize.add_argument("--images", nargs="+", required=True, metavar="PATTERN", help=_PATTERNS)
    flags.add_image_flags(recognize, default=config.RecognizeConfig.image_ids)
    recognize.add_argument("--index", required=True, metavar="INDEX", help="made by `landmarks index`")
    recognize.add_argument("--output", required=True, metavar="RUN", help="folder to make")
    recognize.add_argument("--truth", metavar="CSV", help="id,landmarks,Usage: also write RUN/metrics.json")
    recognize.add_argument(
        "--sample_submission",
        metavar="CSV",
        help="submission.csv has its ids in its order (default: a row for each image, by id; a folder of the "
        "Kaggle competition has its own)",
    )
    recognize.add_argument(
        "--model", metavar="MODEL", help="where the index's model lies now (default: where it lay)"
    )
    recognize.add_argument("--local_model", metavar="MODEL", help="likewise, of the index's --local_model")
    recognize.add_argument(
        "--query_store",
        metavar="DIR",
        help="keep the queries' features here, to share them between runs (default: RUN/queries)",
    )
    flags.add_output_flags(recognize)
    flags.add_query_flags(recognize)
    flags.add_extraction_flags(recognize, of_index=False)
    return recognize


def _add_command(
    commands: Any, name: str, run: Any, text: str, beam_options: bool = True
) -> argparse.ArgumentParser:
    command = commands.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False
    )
    command.set_defaults(command=run, beam_options=beam_options)
    return command


def beam_options(given: Sequence[str]) -> Any:
    """Beam's PipelineOptions from the flags that are not ours.

    Raises:
      config.ConfigError: a flag that Beam does not know either; the text proposes the nearest one.
    """
    from apache_beam.options import pipeline_options

    # Beam itself only warns of unknown options, so ask its parsers first.
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, conflict_handler="resolve")
    pending = list(pipeline_options.PipelineOptions.__subclasses__())
    while pending:
        options_class = pending.pop()
        pending.extend(options_class.__subclasses__())
        if "_add_argparse_args" in vars(options_class):
            options_class._add_argparse_args(parser)
    try:
        _, unknown = parser.parse_known_args(list(given))
    except SystemExit:
        raise config.ConfigError(f"wrong value for an option of Beam in: {' '.join(given)}") from None
    if unknown:
        known = [o for action in [*build_parser()._actions, *parser._actions] for o in action.option_strings]
        known += [
            o
            for name in (
                "index",
                "recognize",
                "calibrate",
                "audit",
                "discover",
                "cohort",
                "rescore",
                "evaluate",
                "verify",
                "info",
                "matches",
                "report",
            )
            for o in _own_flags(name)
        ]
        near = difflib.get_close_matches(unknown[0].split("=")[0], known, n=1)
        raise config.ConfigError(
            f"unknown option {unknown[0]!r}" + (f"; did you mean {near[0]}?" if near else "")
        )
    return pipeline_options.PipelineOptions(list(given))


def _own_flags(command: str) -> list[str]:
    subparsers = next(a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    return [o for action in subparsers.choices[command]._actions for o in action.option_strings]


def _index(args: argparse.Namespace, options: Any) -> int:
    if (clean := flags.clean_config(args)) is not None:
        from beam_pipeline import cleaning

        return cleaning.run(clean, options)

    from beam_pipeline import index

    return index.run(flags.index_config(args), options)


def _recognize(args: argparse.Namespace, options: Any) -> int:
    from beam_pipeline import recognize

    return recognize.run(flags.recognize_config(args), options)


def _plan_index(args: argparse.Namespace, options: Any) -> int:
    from beam_pipeline import index

    return index.plan(flags.index_config(args), options, flags.full_size(args))


def _plan_recognize(args: argparse.Namespace, options: Any) -> int:
    from beam_pipeline import recognize

    return recognize.plan(flags.recognize_config(args), options, flags.full_size(args))


def _evaluate(args: argparse.Namespace, options: Any) -> int:
    from beam_pipeline import evaluate

    evaluate.run(
        config.EvaluateConfig(args.predictions, args.truth, args.output, args.non_landmark_share), options
    )
    return EXIT_DONE


def _calibrate(args: argparse.Namespace, options: Any) -> int:
    from beam_pipeline import calibrate

    return calibrate.run(flags.calibrate_config(args), options)


def _audit(args: argparse.Namespace, options: Any) -> int:
    from beam_pipeline import audit
    from beam_pipeline.report import audit_page

    code = audit.run(flags.audit_config(args), options)
    print(f"see it: {audit_page.write_page(args.output)}")
    return code


def _discover(args: argparse.Namespace, options: Any) -> int:
    from beam_pipeline import discover

    return discover.run(flags.discover_config(args), options)


def _cohort(args: argparse.Namespace, options: Any) -> int:
    from beam_pipeline import cohort

    return cohort.run(flags.cohort_config(args), options)


def _rescore(args: argparse.Namespace, options: Any) -> int:
    from beam_pipeline import rescore

    return rescore.run(flags.rescore_config(args), options)


def _verify(args: argparse.Namespace, options: Any) -> int:
    from beam_pipeline import integrity

    return integrity.run(args.store)


def _info(args: argparse.Namespace, options: Any) -> int:
    from beam_pipeline import info

    return info.run(args.store, args.json)


def _inspect(args: argparse.Namespace, options: Any) -> int:
    from transforms.models import catalog

    print(catalog.inspect(args.model))
    return EXIT_DONE


def _whiten(args: argparse.Namespace, options: Any) -> int:
    from beam_pipeline import whiten

    return whiten.run(config.WhitenConfig(args.index, args.dimensions, args.shrinkage), options)


def _demo(args: argparse.Namespace, options: Any) -> int:
    from beam_pipeline import demo

    paths = demo.make_demo(args.output)
    print(
        f"{args.output}: {'already there' if paths.already_there else 'made'}; labels {paths.labels}, truth "
        f"{paths.truth}"
    )
    return EXIT_DONE


def _download(args: argparse.Namespace, options: Any) -> int:
    from beam_pipeline.gldv2 import download

    return download.run(flags.download_config(args))


def _bundle(args: argparse.Namespace, options: Any) -> int:
    from beam_pipeline import bundle

    return bundle.run(args.output, args.without)


def _subset(args: argparse.Namespace, options: Any) -> int:
    from beam_pipeline.gldv2 import subset
    from beam_pipeline.gldv2.config import SubsetConfig

    return subset.run(SubsetConfig(args.data, args.output, args.landmarks, args.seed))


def _matches(args: argparse.Namespace, options: Any) -> int:
    from beam_pipeline import matches

    matches.write_match_picture(
        args.run, args.image_id, args.output, args.max_candidates, args.truth, args.names
    )
    return EXIT_DONE


def _report(args: argparse.Namespace, options: Any) -> int:
    from beam_pipeline.report import pages

    pages.write_report(
        config.ReportConfig(args.run, args.output, args.truth, args.names, args.against, args.max_queries)
    )
    return EXIT_DONE


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns 0 when it is done, 1 when it failed, 2 for wrong usage. Errors go to standard
    error.
    """
    with memory.told():
        return _main(argv)


def _main(argv: Sequence[str] | None) -> int:
    started = time.time()  # a time budget begins here
    if argv is None:  # called from Python with arguments, the work is done in the caller's process
        terminal.hold_streams()
        terminal.on_interrupt(_release_locks)
        memory.watch_threads(_release_locks)
    parser = build_parser()
    try:
        args, rest = parser.parse_known_args(argv, argparse.Namespace(started=started))
    except SystemExit as e:  # argparse has printed the help or the error
        return terminal.ended(EXIT_DONE if not e.code else EXIT_USAGE)
    if little := memory.lack(memory.TO_START):
        print(f"landmarks: error: {little}", file=sys.stderr)
        return EXIT_FAILED
    quiet.silence()
    with terminal.resolved(args):
        if argv is not None:
            return _run(args, rest)
        if args.command in (_index, _recognize, _cohort) and _runner(rest) in config.LOCAL_RUNNERS:
            from beam_pipeline import supervisor

            stores = [args.output, getattr(args, "query_store", None) or args.output]
            return supervisor.run(lambda: terminal.ended(_run(args, rest)), stores)
        return terminal.ended(_run(args, rest))


def _runner(given: Sequence[str]) -> str | None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--runner", nargs="?")
    return parser.parse_known_args(given)[0].runner


def _release_locks() -> None:
    if "beam_pipeline.lock" in sys.modules:
        from beam_pipeline import lock

        lock.release()


def _run(args: argparse.Namespace, rest: Sequence[str]) -> int:
    try:
        for name, value in vars(args).items():
            if value == "" or (isinstance(value, list) and "" in value):
                raise config.ConfigError(f"--{name} is empty")
        if rest and not args.beam_options:
            raise config.ConfigError(f"unknown option {rest[0]!r}")
        if getattr(args, "output", None):
            from beam_pipeline import outputs

            outputs.check_outside(args.output)
        if not args.beam_options:
            return args.command(args, None)
        options = beam_options(rest)
        from transforms.storage import object_stores

        with object_stores.using(options):
            return args.command(args, options)
    except config.NotAwaited as e:
        print(e)
        return EXIT_DONE
    except config.ConfigError as e:
        print(f"landmarks: error: {e}", file=sys.stderr)
        return EXIT_USAGE
    except (ValueError, OSError, config.PipelineError) as e:
        little = memory.limit() if memory.is_lack(e) else ""
        print(f"landmarks: error: {_text(e)}{little}", file=sys.stderr)
        return EXIT_FAILED


def _text(error: Exception) -> str:
    """What an error says, without the numbers of the system's."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror[0].lower()}{error.strerror[1:]}"
    return str(error)
