"""The pages of a report, written: `landmarks report`."""

import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import pyarrow.compute as pc

from beam_pipeline import evaluate, outputs, runner
from beam_pipeline.config import ConfigError, ReportConfig
from beam_pipeline.matches import MOVED, StoredImage
from beam_pipeline.report import answers as columns
from beam_pipeline.report.cards import TEMPLATES, LandmarkCard, QueryCard, template_text
from beam_pipeline.report.pictures import SIDE, Pairs, Photograph, href, in_threads, thumbnails
from beam_pipeline.report.source import Shown, Source, landmark_cards, photographs, query_cards
from transforms.processes import crash_notes
from transforms.storage import files
from transforms.submission import SUBMISSION
from transforms.types import FeatureLocation, ImageRef

_MARKER = "report.json"  # written first; says that the folder is a report
_INDEX = "index.html"  # written last: a report without it is not whole
_OWN = re.compile(
    r"(index|queries|landmarks|mistakes|changes|failures)\.html|(queries|landmarks|ids|report)\.js"
)
_MAX_LANDMARKS = 500
_MAX_PAIRS = 30  # of confused landmarks
_MAX_FAILURES = 1000  # listed
_EXAMPLES = 6  # of queries, on a page that tells of many
_CURVE = 200  # points

T = TypeVar("T")


def write_report(config: ReportConfig) -> str:
    """Writes the report of a run and says what it found; returns its first page.

    Photographs that are gone are shown as that.

    Raises:
      ConfigError: there is no such run, or the output is something else than a report.
      TableError, ValueError: a table is wrong, or does not fit the run.
      OSError: a file cannot be read or written.
    """
    _check_output(config.output)
    source = Source.read(config)
    pick = source.pick()
    _clear(config)
    landmarks = source.landmarks.ids[:_MAX_LANDMARKS]
    shown = Shown.find(source, pick.positions, landmarks)
    in_index = shown.in_index()
    failed = _decoded_failures(source, shown)
    wanted = [*shown.queries.values(), *failed, *in_index.values()]

    def write(number: int, content: bytes) -> None:
        files.write_bytes(files.join(config.output, href(number)), content)

    wrong = list(
        _counted("photographs", len(wanted), thumbnails(wanted, source.manifest.recipe.reading, write))
    )
    cut = len(shown.queries) + len(failed)
    queries = photographs(wanted[:cut], wrong[:cut], href, config.run)
    root = source.manifest.index
    index = photographs(wanted[cut:], wrong[cut:], lambda number: href(cut + number), root, source.index)
    asked = [(query, shown.candidates(image_id)) for image_id, query in shown.queries.items()]
    drawn = _counted("matches", len(asked), in_threads(Pairs.of(source.manifest), asked))
    lines = dict(zip(shown.queries, drawn))
    cards = query_cards(source, pick.positions, shown, queries, index, lines)
    of_landmarks = landmark_cards(source, pick.positions, shown, queries, index)
    _write_records(config, "queries", (card.record() for card in cards))
    _write_records(config, "landmarks", (card.record() for card in of_landmarks))
    _write_text(config, "ids.js", f"window.IDS = {_json(source.answers.ids.to_pylist())};\n")
    for asset in ("style.css", "report.js"):
        _write_text(config, asset, template_text(asset))
    context = _context(source, pick, cards, of_landmarks, Counter(filter(None, wrong)))
    context["gone"] = next((i.ref.uri for i, kind in zip(wanted, wrong) if kind == "not_found"), "")
    context["failures"] = _failures(source, queries)
    for name in ("queries", "landmarks", "failures", "mistakes", "changes", "index"):
        if name in context["pages"]:
            _write_text(
                config, f"{name}.html", TEMPLATES.get_template(f"{name}.html").render(page=name, **context)
            )
    first = files.join(config.output, _INDEX)
    print(_summary(source, context, first))
    return first


def _check_output(output: str) -> None:
    """Refuses a folder that holds anything but a report."""
    if not files.exists(files.join(output, _MARKER)) and not outputs.is_empty(output):
        raise ConfigError(
            f"{output} is not empty and was not made by `landmarks report`; name another folder"
        )


def _clear(config: ReportConfig) -> None:
    """Makes the output a report that is not whole, without what an earlier one left."""
    files.delete(files.join(config.output, _INDEX))
    files.write_json(files.join(config.output, _MARKER), {"made_by": "landmarks report", "run": config.run})
    old = [uri for uri in files.list_files(config.output, "") if _OWN.fullmatch(uri.rsplit("/", 1)[-1])]
    old += files.list_files(files.join(config.output, "photographs"), ".webp")
    for uri in old:
        files.delete(uri)


def _counted(label: str, total: int, items: Iterable[T]) -> Iterator[T]:
    """The items, while a line says how many there were."""
    done = 0
    with runner.progress([runner.Phase(label, total, lambda: done)]):
        for item in items:
            done += 1
            yield item


def _json(value: Any) -> str:
    """JSON that is JavaScript too; ASCII alone, so that no encoding can be mistaken."""
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def _write_text(config: ReportConfig, name: str, text: str) -> None:
    files.write_bytes(files.join(config.output, name), text.encode())


def _write_records(config: ReportConfig, name: str, records: Iterable[Mapping[str, Any]]) -> None:
    _write_text(config, f"{name}.js", "window.RECORDS = [\n" + ",\n".join(map(_json, records)) + "\n];\n")


def _context(
    source: Source,
    pick: columns.Pick,
    cards: Sequence[QueryCard],
    landmarks: Sequence[LandmarkCard],
    unreadable: Counter[str],
) -> dict[str, Any]:
    """What the templates are told."""
    answers, judged, compared = source.answers, source.judged, source.compared
    pages = ["index", "queries", "landmarks"]
    pages += ["mistakes"] * (judged is not None) + ["changes"] * (compared is not None)
    pages += ["failures"] * (len(source.failures) > 0)
    answered = answers.confidence[pc.is_valid(answers.landmarks).to_numpy()]
    counts = source.manifest.counts
    return {
        "pages": pages,
        "config": source.config,
        "manifest": source.manifest,
        "index_manifest": source.index,
        "run_key": source.manifest.digest(source.config.run),
        "made": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "measure": answers.measure,
        "total": len(answers),
        "predicted": len(answers) - answers.landmarks.null_count,
        "verified": pc.sum(answers.table["verified"].cast("int64"), min_count=0).as_py(),
        "failed": counts.failed,
        "expected_right": float(np.nansum(answered)) if answers.measure == "probability" else None,
        "pick": pick,
        "cards": cards,
        "landmarks": landmarks,
        "all_landmarks": len(source.landmarks.ids),
        "magnets": int(source.landmarks.magnet.sum()),
        "unreadable": unreadable,
        "threshold": source.threshold,
        "histogram_bins": _histogram(source),
        "ends": _ends(cards),
        "places": _places(source),
        "versions": source.manifest.versions,
        "judged": judged,
        "metrics": judged.metrics["all"] if judged else None,
        "table": evaluate.format_metrics(judged.metrics) if judged else None,
        "compared": compared,
        "total_failures": len(source.failures),
        "failure_kinds": Counter(
            zip(*(source.failures[c].to_pylist() for c in ("stage", "kind")))
        ).most_common(),
        "shown_landmarks": sorted({c.landmark_id for c in cards if c.landmark_id is not None}),
        **(_judged_context(source, judged, cards) if judged else {}),
        **(_compared_context(compared, cards) if compared else {}),
    }


def _judged_context(
    source: Source, judged: columns.JudgedAnswers, cards: Sequence[QueryCard]
) -> dict[str, Any]:
    """What the templates are told where there is a truth."""
    answers, precision = source.answers, judged.precision()
    confidence = answers.confidence[judged.ranked]
    counted, (threshold, _) = judged.metrics["all"]["counts"]["queries"], source.threshold
    points = [
        (float(c), (r + 1) / counted, float(p))
        for r, (c, p) in enumerate(zip(confidence.tolist(), precision))
    ]
    at = np.unique(np.linspace(0, len(points) - 1, min(len(points), _CURVE)).round().astype(int))
    accepted = [point for point in points if threshold is not None and point[0] >= threshold]
    return {
        "causes": [
            (outcome, n, cost, _examples(cards, lambda c: c.outcome == outcome, lambda c: c.cost))  # noqa: B023
            for outcome, n, cost in judged.causes()
        ],
        "confused": [
            (source.named(a), a, source.named(b), b, n) for a, b, n in judged.confused(answers, _MAX_PAIRS)
        ],
        "curve": [points[r] for r in at.tolist()],
        "at_threshold": accepted[-1] if accepted else None,
        "start": int(np.searchsorted(at, max(0, len(accepted) - 1))) if accepted else len(at) - 1,
        "reliability": columns.reliability(confidence, judged.correct, answers.measure),
    }


def _compared_context(compared: columns.Comparison, cards: Sequence[QueryCard]) -> dict[str, Any]:
    """What the templates are told where there is another run."""
    counts = Counter(compared.change.tolist())
    gains = {
        name: None if compared.gain is None else float(compared.gain[compared.change == name].sum())
        for name in counts
    }
    return {
        "changes": [
            (
                change,
                counts[change],
                gains[change],
                _examples(cards, lambda c: c.change == change, lambda c: abs(c.gain or 0.0)),  # noqa: B023
            )
            for change in columns.CHANGES
            if counts[change]
        ]
    }


def _examples(
    cards: Sequence[QueryCard], belongs: Callable[[QueryCard], bool], weight: Callable[[QueryCard], float]
) -> list[QueryCard]:
    """Some of the cards that belong, those of the greatest weight first."""
    return sorted(filter(belongs, cards), key=lambda card: -weight(card))[:_EXAMPLES]


def _ends(cards: Sequence[QueryCard]) -> list[QueryCard]:
    """The least sure cards and the surest ones, in this order."""
    sure = sorted((c for c in cards if c.confidence is not None), key=lambda card: card.confidence or 0.0)
    return sure if len(sure) <= 2 * _EXAMPLES else sure[:_EXAMPLES] + sure[-_EXAMPLES:]


def _decoded_failures(source: Source, shown: Shown) -> list[StoredImage]:
    """Photographs that the model could do nothing with, though they are pictures: these too can be shown.
    None that ended a process is touched again.
    """
    rows = source.failures.filter(pc.equal(source.failures["stage"], "extract")).slice(0, _MAX_FAILURES)
    return [
        StoredImage(ImageRef(row["image_id"], row["uri"], 0), FeatureLocation("", 0, 0), SIDE, SIDE, 1.0)
        for row in rows.to_pylist()
        if row["kind"] != crash_notes.CRASHED and row["image_id"] not in shown.queries
    ]


def _failures(source: Source, queries: Mapping[str, Photograph]) -> list[dict[str, Any]]:
    """Failure rows, each with its photograph."""
    return [
        {
            **row,
            "photograph": queries.get(row["image_id"]) or Photograph(row["image_id"], row["uri"], "", 0, 0),
        }
        for row in source.failures.slice(0, _MAX_FAILURES).to_pylist()
    ]


def _places(source: Source) -> list[tuple[str, str]]:
    """Where what the report was made of lies."""
    config, manifest = source.config, source.manifest
    places = [
        ("run", config.run),
        ("submission", files.join(config.run, SUBMISSION)),
        ("predictions", files.join(config.run, "predictions")),
        ("failures", files.join(config.run, "failures")),
        ("index", manifest.index),
        ("queries' features", manifest.query_store),
        ("truth", config.truth),
        ("names", config.names),
        ("against", config.against),
    ]
    return [
        *((name, files.absolute(place)) for name, place in places if place),
        ("model", manifest.recipe.model),
    ]


def _histogram(source: Source, bins: int = 30) -> list[tuple[float, float, int, int]]:
    """Answers by confidence: from, to, how many are right (all of them, without a truth), and the others."""
    confidence = source.answers.confidence
    there = ~np.isnan(confidence) & pc.is_valid(source.answers.landmarks).to_numpy()
    if not there.any():
        return []
    top = 1.0 if source.answers.measure == "probability" else float(confidence[there].max())
    edges = np.linspace(min(0.0, float(confidence[there].min())), top, bins + 1)
    right = there if source.judged is None else there & (source.judged.outcome == "right")
    of_right, of_others = (np.histogram(confidence[m], edges)[0] for m in (right, there & ~right))
    return list(zip(edges[:-1].tolist(), edges[1:].tolist(), of_right.tolist(), of_others.tolist()))


def _summary(source: Source, context: Mapping[str, Any], first: str) -> str:
    """What a person at the terminal is told."""
    lines = [f"{first}: {len(context['cards']):,} of {context['total']:,} queries"]
    if context["unreadable"]:
        kinds = ", ".join(f"{n:,} {kind}" for kind, n in context["unreadable"].most_common())
        lines[0] += f"; photographs that could not be read: {kinds}"
        if "not_found" in context["unreadable"]:
            lines[0] += f", such as {context['gone']}; {MOVED}"
    landmarks = source.landmarks
    for at in np.flatnonzero(landmarks.magnet)[:3].tolist():
        lines.append(
            f"magnet: {source.named(landmarks.ids[at])}, {landmarks.queries[at]:,} queries where its share "
            f"of the index would be {landmarks.expected[at]:,.1f}"
        )
    if context["metrics"]:
        lines += [
            f"GAP: {cost:.4f} lost by {n:,} queries, each of which {columns.OUTCOMES[outcome]}"
            if outcome in ("other", "unindexed", "unanswered")
            else f"GAP: {cost:.4f} lost by {n:,} queries: {columns.OUTCOMES[outcome]}"
            for outcome, n, cost, _ in context["causes"]
        ]
    if source.compared is not None and source.compared.gain is not None:
        lines.append(f"GAP against {source.config.against}: {float(source.compared.gain.sum()):+.4f}")
    return "\n".join(lines)
