"""Flags that commands share, and the configurations that flags make."""

import argparse
import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from beam_pipeline.config import (
    DEFAULT_PRESET,
    EXTRACTION_PRESETS,
    MAX_FAILURE_RATE,
    PRESETS,
    TUNED,
    CalibrateConfig,
    CleanConfig,
    ConfigError,
    ExtractionOverrides,
    IndexConfig,
    Preset,
    RecognizeConfig,
    RescoreConfig,
    TimeBudget,
)
from beam_pipeline.gldv2 import kaggle
from transforms.models.card import DEVICES, PRECISIONS
from transforms.storage.uris import IMAGE_IDS
from transforms.types import ReadingConfig, ScoringSettings, VerificationSettings

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

R = TypeVar("R", bound="DataclassInstance")


def number(
    kind: Callable[[str], Any], low: float, high: float = math.inf, open_low: bool = False
) -> Callable[[str], Any]:
    """An argparse type: a finite number in [low, high], or (low, high] with open_low; an int of 32 bits at
    most.
    """
    high = min(high, 2**31 - 1) if kind is int else high

    def parse(text: str) -> Any:
        value = kind(text)
        if (
            value != value
            or value in (math.inf, -math.inf)
            or value < low
            or value > high
            or (open_low and value == low)
        ):
            bounds = f"above {low:g}" if open_low else f"at least {low:g}"
            raise argparse.ArgumentTypeError(
                f"{text} is not {bounds}" + (f" and at most {high:.10g}" if high < math.inf else "")
            )
        return value

    parse.__name__ = kind.__name__
    return parse


def duration(text: str) -> float:
    """Seconds of a time such as 12h, 90m, 2h30m or 45s; an argparse type."""
    match = re.fullmatch(r"(?:(\d{1,9})h)?(?:(\d{1,9})m)?(?:(\d{1,9})s)?", text)
    hours, minutes, seconds = (int(part or 0) for part in match.groups()) if match else (0, 0, 0)
    if not (total := 3600 * hours + 60 * minutes + seconds):
        raise argparse.ArgumentTypeError(f"{text!r} is no time such as 12h, 90m, 2h30m or 45s")
    return float(total)


def numbers(text: str) -> tuple[int, ...]:
    """The numbers of a list such as 0-9,12, ascending; an argparse type."""
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last:
            raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers such as 0-9,12")
        found |= {*range(first, last + 1)}
    return tuple(sorted(found))


def _scales(text: str) -> tuple[float, ...]:
    scales = tuple(number(float, 0, 16, open_low=True)(part) for part in text.split(","))
    if len(set(scales)) != len(scales):
        raise argparse.ArgumentTypeError(f"{text} names a scale twice")
    return scales


def add_image_flags(parser: argparse.ArgumentParser, default: str | None) -> None:
    """Adds the flags about which photographs --images names, and what they are called."""
    parser.add_argument(
        "--image_ids",
        choices=IMAGE_IDS,
        default=default,
        help="what tables call a photograph: name, its file's without the suffix, or path, that below the "
        f"pattern (default: {default or 'name; with --append as in the index'})",
    )
    parser.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="PATTERN",
        help="leave out what a glob matches: without a slash any file's or folder's name, else a path below "
        "the pattern or from the working folder on; may come several times",
    )


def add_extraction_flags(parser: argparse.ArgumentParser, of_index: bool) -> None:
    """Adds the flags of ReadingConfig and ExtractionOverrides: those of the index job, or of one that has to
    follow its index.
    """
    if of_index:
        group = parser.add_argument_group(
            "extraction (default: the model's card, else the official DELG settings)"
        )
        group.add_argument(
            "--preset",
            choices=sorted(EXTRACTION_PRESETS),
            help="scales, features and threshold of the preset, for a model without a card",
        )
    else:
        group = parser.add_argument_group("extraction (as in the index; another value is an error)")
    group.add_argument("--image_scales", type=_scales, metavar="S,S,...", help="image pyramid factors")
    group.add_argument(
        "--max_local_features", type=number(int, 1), metavar="N", help="local features kept per image"
    )
    group.add_argument(
        "--score_threshold",
        type=number(float, -math.inf),
        metavar="T",
        help="least attention of a local feature",
    )
    group.add_argument(
        "--max_image_side", type=number(int, 16), metavar="PX", help="longer images are shrunk to this side"
    )
    group.add_argument(
        "--global_dimensions",
        type=number(int, 1),
        metavar="N",
        help="leading axes kept of the global descriptor, of a model that orders them (default: all)",
    )
    group.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="bfloat16: faster on processors that multiply it in hardware, features move a little",
    )
    group.add_argument(
        "--device",
        choices=DEVICES,
        help="what runs an ONNX model of your own, where the installed ONNX Runtime has it (default: cpu); "
        "an error for other models",
    )
    group.add_argument(
        "--exif_orientation",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="turn photographs by their EXIF orientation (default: "
        + ("yes; with --append as the index does)" if of_index else "as the index does)"),
    )
    group.add_argument(
        "--max_image_pixels",
        type=number(int, 1),
        default=ReadingConfig.max_image_pixels,
        metavar="N",
        help="larger photographs become failure rows (default: %(default)s)",
    )
    group.add_argument(
        "--max_image_memory",
        type=number(int, 1),
        default=ReadingConfig.max_image_memory,
        metavar="MB",
        help="so do those that take more memory to decode (default: %(default)s)",
    )


def add_query_flags(parser: argparse.ArgumentParser) -> None:
    """Adds --preset and the query-time hyperparameters, each defaulting to the preset's value."""
    entry = _values(PRESETS[DEFAULT_PRESET])
    group = parser.add_argument_group(
        "hyperparameters (default: the preset's; the value of 'entry' in brackets)"
    )
    group.add_argument(
        "--preset",
        choices=[*sorted(PRESETS), TUNED],
        default=DEFAULT_PRESET,
        help="sets all of these together; tuned: as `landmarks calibrate` found best for this index, with "
        "probabilities (default: %(default)s)",
    )
    group.add_argument(
        "--min_probability",
        type=number(float, 0, 1),
        default=0.0,
        metavar="P",
        help="with --preset tuned: a query whose landmark is less probable has none (default: 0)",
    )

    def add(name: str, kind: Callable[[str], Any], metavar: str, text: str) -> None:
        group.add_argument("--" + name, type=kind, metavar=metavar, help=f"{text} [{entry[name]}]")

    add("num_to_rerank", number(int, 1, 1000), "N", "candidates retrieved and verified per query")
    add_scoring_flags(group, entry)
    add(
        "max_reprojection_error",
        number(float, 0, open_low=True),
        "PX",
        "of an inlier, both points together, pixels of the image fed",
    )
    add("max_ransac_iterations", number(int, 1), "N", "tries for a homography")
    add(
        "homography_confidence",
        number(float, 0, 0.999999, open_low=True),
        "P",
        "stop trying at this confidence",
    )
    add(
        "max_distance",
        number(float, 0, 2, open_low=True),
        "D",
        "Euclidean distance of matching descriptors; the model's card goes before the preset",
    )
    add(
        "ratio_test",
        number(float, 0, 1, open_low=True),
        "R",
        "nearest over second nearest distance at most this",
    )
    group.add_argument(
        "--mutual_check",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="matches must be nearest in both directions [no]",
    )


def add_scoring_flags(parser: argparse._ActionsContainer, defaults: Mapping[str, Any] | None = None) -> None:
    """Adds the flags of ScoringSettings, each with no default but one to tell in brackets."""

    def add(name: str, kind: Callable[[str], Any], metavar: str, text: str) -> None:
        shown = f" [{defaults[name]}]" if defaults else ""
        parser.add_argument("--" + name, type=kind, metavar=metavar, help=text + shown)

    add("top_k", number(int, 1, 1000), "N", "best candidates summed per landmark")
    add("max_inlier_score", number(int, 1), "N", "inliers beyond this count no more")
    add("global_weight", number(float, 0), "A", "weight of the cosine in the total score")
    add("augmented_weight", number(float, 0), "A", "weight of the cosine to the label-augmented descriptor")


def _values(preset: Preset) -> dict[str, Any]:
    """The hyperparameters of a preset by the names of their flags."""
    return {
        "num_to_rerank": preset.num_to_rerank,
        **dataclasses.asdict(preset.verification),
        **dataclasses.asdict(preset.scoring),
    }


def add_output_flags(parser: argparse.ArgumentParser, time_budget: bool = True) -> None:
    """Adds the flags about an output that is already there, about what is taken for a success, and about
    time.
    """
    add_overwrite(
        parser,
        "start anew where the output is finished or has other settings; deletes only what the same command "
        "wrote",
    )
    parser.add_argument(
        "--max_failure_rate",
        type=number(float, 0, 1),
        default=MAX_FAILURE_RATE,
        metavar="R",
        help="exit with 1 where more than this part of the images failed (default: %(default)s)",
    )
    if time_budget:
        add_time_budget(parser, ": a pilot prints a plan, and what does not fit is left for a later start")


def add_overwrite(
    parser: argparse.ArgumentParser, text: str = "start anew where the output is another"
) -> None:
    """Adds --overwrite; `text` says what it does."""
    parser.add_argument("--overwrite", action="store_true", help=text)


def add_search_flags(parser: argparse.ArgumentParser, of: str, neighbors: int) -> None:
    """Adds the flags of a job that searches photographs among themselves; `of` says which."""
    parser.add_argument(
        "--neighbors",
        type=number(int, 1, 1000),
        default=neighbors,
        metavar="N",
        help=f"nearest others that each {of} is compared with (default: %(default)s)",
    )
    add_overwrite(parser)
    add_time_budget(parser)


def add_min_probability(parser: argparse.ArgumentParser) -> None:
    """Adds --min_probability of a run that is finished."""
    parser.add_argument(
        "--min_probability",
        type=number(float, 0, 1),
        metavar="P",
        help="a query whose landmark is less probable has none",
    )


def add_time_budget(parser: argparse.ArgumentParser, text: str = "; what does not fit is left") -> None:
    """Adds --time_budget; `text` says more of it."""
    parser.add_argument(
        "--time_budget",
        type=duration,
        metavar="TIME",
        help="be done within this time, such as 12h, 2h30m or 90m" + text,
    )


def add_size_flags(parser: argparse.ArgumentParser, of_index: bool) -> None:
    """Adds the flags of FullSize."""
    group = parser.add_argument_group("size of the plan (default: what there is)")
    what = "photographs" if of_index else "queries"
    group.add_argument(
        "--photographs",
        type=number(int, 1),
        metavar="N",
        help=f"plan for so many {what}; --images are a sample of them",
    )
    if not of_index:
        group.add_argument(
            "--index_photographs",
            type=number(int, 1),
            metavar="N",
            help="plan for an index of so many; --index is a sample of it",
        )
    group.add_argument("--prices", metavar="JSON", help="a copy of the package's prices.json, edited")


def add_clean_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of CleanConfig but --output."""
    group = parser.add_argument_group("changes of a finished index, with --output alone")
    group.add_argument(
        "--remove",
        nargs="+",
        metavar="ID",
        help="take photographs out of it: ids, @list.txt with an id per line, or a CSV with a column id",
    )
    group.add_argument("--relabel", metavar="CSV", help="give its photographs other labels: id,landmark_id")
    group.add_argument(
        "--compact", action="store_true", help="rewrite shards of which more than a third was removed"
    )


def record(kind: type[R], args: argparse.Namespace, **others: Any) -> R:
    """A record of the flags that are named as its fields, of what several flags make together, and of
    `others`; a time budget counts from `args.started`.

    Raises:
      ConfigError: options that do not go together.
    """
    names = {field.name for field in dataclasses.fields(kind)}
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in vars(args).items()}
    values |= {name: make(args) for name, make in _MADE_OF_FLAGS.items() if name in names - others.keys()}
    return kind(**{name: value for name, value in (values | others).items() if name in names})


def maker(kind: type[R]) -> Callable[[argparse.Namespace], R]:
    """What makes such records of parsed flags."""
    return functools.partial(record, kind)


def _budget(args: argparse.Namespace) -> TimeBudget | None:
    return None if args.time_budget is None else TimeBudget(args.time_budget, args.started)


_MADE_OF_FLAGS: dict[str, Callable[[argparse.Namespace], Any]] = {
    "budget": _budget,
    "overrides": maker(ExtractionOverrides),
    # The limits alone: the orientation is a setting of the extraction.
    "reading": lambda args: record(ReadingConfig, args, exif_orientation=ReadingConfig.exif_orientation),
}


def clean_config(args: argparse.Namespace) -> CleanConfig | None:
    """Parsed flags of `landmarks index` as changes of a finished index; None where it is made or added to.

    Raises:
      ConfigError: flags of both are given.
    """
    if not (args.remove or args.relabel or args.compact):
        return None
    for name in ("images", "labels", "model", "local_model", "append", "update", "overwrite", "time_budget"):
        if getattr(args, name):
            raise ConfigError(
                f"--{name} does not go with --remove, --relabel and --compact: they change what there is"
            )
    return record(CleanConfig, args, remove=tuple(args.remove or ()))


def index_config(args: argparse.Namespace) -> IndexConfig:
    """Parsed flags of `landmarks index` as a configuration; see `record`.

    Raises:
      ConfigError: there are no labels, or options do not go together.
    """
    if args.images is None:
        raise ConfigError("--images is missing: a folder, a glob, or @list.txt")
    images, labels = kaggle.index_inputs(tuple(args.images), args.labels)
    if labels is None:
        raise ConfigError(
            "--labels is missing: a CSV id,landmark_id, or the word folders where each landmark has its own"
        )
    return record(IndexConfig, args, images=images, labels=labels)


def recognize_config(args: argparse.Namespace) -> RecognizeConfig:
    """Parsed flags of `landmarks recognize` as a configuration; see `record`.

    Raises:
      ConfigError: options that do not go together.
    """
    tuned = args.preset == TUNED
    values = _values(PRESETS[DEFAULT_PRESET if tuned else args.preset])
    given = _given(args, values)
    if tuned and given:
        raise ConfigError(
            f"--preset tuned takes all of these from the index's calibration: --{next(iter(given))} does not "
            "go with it"
        )
    values.update(given)
    num_to_rerank = values.pop("num_to_rerank")
    if args.top_k is None:  # a smaller --num_to_rerank takes the preset's top_k down with it
        values["top_k"] = min(values["top_k"], num_to_rerank)
    scoring = {name: values.pop(name) for name in _SCORING}
    images, sample = kaggle.query_inputs(tuple(args.images), args.sample_submission)
    return record(
        RecognizeConfig,
        args,
        images=images,
        sample_submission=sample,
        overrides=record(ExtractionOverrides, args, preset=None),
        num_to_rerank=num_to_rerank,
        verification=VerificationSettings(**values),
        scoring=ScoringSettings(**scoring),
        tuned=tuned,
    )


def calibrate_config(args: argparse.Namespace) -> CalibrateConfig:
    """Parsed flags of `landmarks calibrate` as a configuration."""
    return record(CalibrateConfig, args, runs=tuple(args.run))


def rescore_config(args: argparse.Namespace) -> RescoreConfig:
    """Parsed flags of `landmarks rescore` as a configuration."""
    run, *more = args.run
    return record(RescoreConfig, args, run=run, more_runs=tuple(more), scoring=_given(args, _SCORING))


_SCORING = tuple(field.name for field in dataclasses.fields(ScoringSettings))


def _given(args: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
    """The values of the flags among `names` that were given."""
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}
