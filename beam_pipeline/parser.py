"""The parser of the command line: which commands there are, and their flags."""

import argparse
from collections.abc import Iterator
from typing import Any

from beam_pipeline import __version__, commands, config, flags
from beam_pipeline.gldv2 import published

_NAMES = "landmark_id,name (or GLDv2's label_to_category): names beside the ids"
_MODELS = "the folder or URI of a DELG SavedModel or an ONNX model"
_PATTERNS = "a folder (searched recursively), a glob, or @list.txt"
_OF_INDEX = "made by `landmarks index`"
_OF_RUN = "made by `landmarks recognize`"
_TO_MAKE = "folder to make"
_TO_MEASURE = "id,landmarks,Usage: also write RUN/metrics.json"


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
    top = parser.add_subparsers(
        title="commands", metavar="COMMAND", required=True, help="`landmarks COMMAND --help` explains each"
    )
    _add_index(top, commands.index, "extract the features of labelled photographs, once")
    _add_recognize(top, commands.recognize, "predict the landmark of each query photograph")
    _add_plan(top)
    _add_evaluate(top)
    _add_calibrate(top)
    _add_searches(top)
    _add_cohort(top)
    _add_rescore(top)
    verify = _add(
        top, "verify", commands.verify, "check that every shard of a finished output is as it was written"
    )
    verify.add_argument("store", metavar="STORE", help="made by `landmarks index` or `landmarks recognize`")
    info = _add(
        top, "info", commands.info, "what an index or a run holds, and whether it is finished or stale"
    )
    info.add_argument(
        "store", metavar="INDEX_OR_RUN", help="made by `landmarks index` or `landmarks recognize`"
    )
    info.add_argument("--json", action="store_true", help="print all of it as JSON, every landmark too")
    _add_model(top)
    _add_report(top)
    demo = _add(top, "demo", commands.demo, "make a small data set to try everything on", beam_options=False)
    demo.add_argument("--output", required=True, metavar="DIR", help=_TO_MAKE)
    _add_gldv2(top)
    _add_bundle(top)
    _add_matches(top)
    return parser


def below(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """`parser` and those of all commands below it."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from below(command)


def _add(
    group: Any, name: str, run: commands.Command, text: str, beam_options: bool = True
) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = group.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False
    )
    command.set_defaults(command=run, beam_options=beam_options)
    return command


def _add_group(top: Any, name: str, text: str, of: str, description: str | None = None) -> Any:
    group = top.add_parser(name, help=text, description=description, allow_abbrev=False)
    return group.add_subparsers(title="commands", metavar="COMMAND", required=True, help=of)


def _add_index(group: Any, run: commands.Command, text: str) -> argparse.ArgumentParser:
    index = _add(group, "index", run, text)
    index.add_argument("--images", nargs="+", metavar="PATTERN", help=_PATTERNS)
    index.add_argument(
        "--labels",
        metavar="CSV_OR_FOLDERS",
        help="id,landmark_id (or id,url,landmark_id, or landmark_id,images); or the word folders: the nearest"
        " folder's name is the landmark, folders:2: the nearest two; a folder of the Kaggle competition has "
        "its own",
    )
    flags.add_image_flags(index, default=None)
    index.add_argument("--output", required=True, metavar="INDEX", help=_TO_MAKE)
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


def _add_place_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", metavar="MODEL", help="where the index's model lies now (default: where it lay)"
    )
    parser.add_argument("--local_model", metavar="MODEL", help="likewise, of the index's --local_model")


def _add_recognize(group: Any, run: commands.Command, text: str) -> argparse.ArgumentParser:
    recognize = _add(group, "recognize", run, text)
    recognize.add_argument("--images", nargs="+", required=True, metavar="PATTERN", help=_PATTERNS)
    flags.add_image_flags(recognize, default=config.RecognizeConfig.image_ids)
    recognize.add_argument("--index", required=True, metavar="INDEX", help=_OF_INDEX)
    recognize.add_argument("--output", required=True, metavar="RUN", help=_TO_MAKE)
    recognize.add_argument("--truth", metavar="CSV", help=_TO_MEASURE)
    recognize.add_argument(
        "--sample_submission",
        metavar="CSV",
        help="submission.csv has its ids in its order (default: a row for each image, by id; a folder of the "
        "Kaggle competition has its own)",
    )
    _add_place_flags(recognize)
    recognize.add_argument(
        "--query_store",
        metavar="DIR",
        help="keep the queries' features here, to share them between runs (default: RUN/queries)",
    )
    flags.add_output_flags(recognize)
    flags.add_query_flags(recognize)
    flags.add_extraction_flags(recognize, of_index=False)
    return recognize


def _add_plan(top: Any) -> None:
    planned = _add_group(
        top,
        "plan",
        "how long index or recognize will take, by a pilot",
        "what to plan; with the options of the command itself",
        description="Tries a sample of the work of index or recognize, and prints how long all of it will "
        "take; nothing is written.",
    )
    of_index = _add_index(planned, commands.plan_index, "plan `landmarks index`")
    of_recognize = _add_recognize(planned, commands.plan_recognize, "plan `landmarks recognize`")
    flags.add_size_flags(of_index, of_index=True)
    flags.add_size_flags(of_recognize, of_index=False)


def _add_evaluate(top: Any) -> None:
    evaluate = _add(top, "evaluate", commands.evaluate, "score predictions: GAP@1, top-1, top-5")
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


def _add_calibrate(top: Any) -> None:
    calibrate = _add(
        top, "calibrate", commands.calibrate, "let an index tune itself and learn probabilities, once"
    )
    calibrate.add_argument("--index", metavar="INDEX", help=f"{_OF_INDEX} (default: that of RUN)")
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
    flags.add_time_budget(calibrate, "; it learns from what was searched for until then")


def _add_searches(top: Any) -> None:
    audit = _add(
        top, "audit", commands.audit, "look for photographs that are twice in an index, and for wrong labels"
    )
    audit.add_argument("--index", required=True, metavar="INDEX", help=_OF_INDEX)
    audit.add_argument("--output", required=True, metavar="AUDIT", help=_TO_MAKE)
    flags.add_search_flags(audit, of="photograph", neighbors=config.AuditConfig.neighbors)

    discover = _add(
        top,
        "discover",
        commands.discover,
        "group the queries without a landmark that show one place, to name them",
    )
    discover.add_argument("--run", required=True, metavar="RUN", help=_OF_RUN)
    discover.add_argument("--output", required=True, metavar="FOLDER", help=_TO_MAKE)
    flags.add_min_probability(discover)
    discover.add_argument(
        "--min_score", type=float, metavar="S", help="a query whose landmark has a lower score has none"
    )
    flags.add_search_flags(discover, of="query", neighbors=config.DiscoverConfig.neighbors)


def _add_cohort(top: Any) -> None:
    cohort = _add(
        top, "cohort", commands.cohort, "extract photographs of other places, for `landmarks calibrate`"
    )
    cohort.add_argument("--images", nargs="+", required=True, metavar="PATTERN", help=_PATTERNS)
    cohort.add_argument("--output", required=True, metavar="STORE", help=_TO_MAKE)
    _add_model_flags(cohort, "default: embedded")
    flags.add_image_flags(cohort, default=config.CohortConfig.image_ids)
    flags.add_output_flags(cohort, time_budget=False)
    flags.add_extraction_flags(cohort, of_index=True)


def _add_rescore(top: Any) -> None:
    rescore = _add(
        top,
        "rescore",
        commands.rescore,
        "make a run with other scores of a finished one, without photographs",
    )
    rescore.add_argument(
        "--run",
        action="append",
        required=True,
        metavar="RUN",
        help=f"{_OF_RUN}; several of the same queries are joined, as an ensemble",
    )
    rescore.add_argument("--output", required=True, metavar="RUN", help=_TO_MAKE)
    rescore.add_argument("--truth", metavar="CSV", help=_TO_MEASURE)
    rescore.add_argument("--calibration", metavar="FILE", help="scores and probabilities of a calibration")
    flags.add_min_probability(rescore)
    rescore.add_argument(
        "--num_to_rerank",
        type=flags.number(int, 1, 1000),
        metavar="N",
        help="candidates that count, the most similar ones (default: all that RUN has)",
    )
    flags.add_scoring_flags(rescore)
    flags.add_overwrite(rescore)


def _add_model(top: Any) -> None:
    model = _add_group(top, "model", "look at a model, or whiten its descriptors", "what to do")
    inspect = _add(
        model,
        "inspect",
        commands.inspect,
        "what a model offers, its outputs on a test image, and a card to edit",
    )
    inspect.add_argument("model", metavar="MODEL", help=f"embedded, rootsift-vlad, or {_MODELS}")

    whiten = _add(
        model,
        "whiten",
        commands.whiten,
        "whiten an index's global descriptors by what they have in common, and its queries' from then on",
    )
    whiten.add_argument("--index", required=True, metavar="INDEX", help=_OF_INDEX)
    _add_place_flags(whiten)
    whiten.add_argument(
        "--dimensions",
        type=flags.number(int, 1),
        metavar="N",
        help=f"leading axes kept (default: {config.WhitenConfig.DIMENSIONS}, at most half as many as there "
        "are photographs)",
    )
    whiten.add_argument(
        "--shrinkage",
        type=flags.number(float, 0),
        metavar="S",
        help="this part of the largest variance is added to that of each axis (default: "
        f"{config.WhitenConfig.SHRINKAGE})",
    )


def _add_report(top: Any) -> None:
    report = _add(top, "report", commands.report, "make pages that show a run: queries, landmarks, mistakes")
    report.add_argument("--run", required=True, metavar="RUN", help=_OF_RUN)
    report.add_argument("--output", required=True, metavar="REPORT", help=_TO_MAKE)
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


def _add_gldv2(top: Any) -> None:
    gldv2 = _add_group(
        top, "gldv2", "Google Landmarks v2: download it, choose a part of it", "what to do with it"
    )
    download = _add(
        gldv2,
        "download",
        commands.download,
        "fetch a part of the data set, or what of it is missing",
        beam_options=False,
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

    subset = _add(
        gldv2,
        "subset",
        commands.subset,
        "choose some landmarks of what was downloaded, for a trial",
        beam_options=False,
    )
    subset.add_argument("--data", required=True, metavar="DATA", help="made by `landmarks gldv2 download`")
    subset.add_argument("--output", required=True, metavar="DIR", help=_TO_MAKE)
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


def _add_bundle(top: Any) -> None:
    bundle = _add(
        top,
        "bundle",
        commands.bundle,
        "make wheels of all that a machine without a network needs",
        beam_options=False,
    )
    bundle.add_argument("--output", required=True, metavar="DIR", help="folder for the wheels")
    bundle.add_argument(
        "--without",
        nargs="+",
        default=[],
        metavar="PACKAGE",
        help="requirements to leave out, such as tensorflow, which only SavedModels need",
    )


def _add_matches(top: Any) -> None:
    matches = _add(top, "matches", commands.matches, "draw a query, its best candidates and their inliers")
    matches.add_argument("--run", required=True, metavar="RUN", help=_OF_RUN)
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
