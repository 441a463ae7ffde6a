"""What is shown of a query, and of a landmark: what the templates take, and what the pages filter by.

A page does not build a card: it gets each as HTML, made and escaped here, beside the values that it filters
and sorts by.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from beam_pipeline.matches import with_name
from beam_pipeline.report.answers import CHANGES, OUTCOMES
from beam_pipeline.report.pictures import GUTTER, SIDE, Lines, Photograph

TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("beam_pipeline.report"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)
TEMPLATES.filters["number"] = lambda value: f"{value:,}"
TEMPLATES.filters["share"] = lambda value: "-" if value is None else f"{value:.1%}"
TEMPLATES.filters["decimal"] = lambda value, places=3: "-" if value is None else f"{value:.{places}f}"
TEMPLATES.globals.update(OUTCOMES=OUTCOMES, CHANGES=CHANGES, GUTTER=GUTTER, SIDE=SIDE)


def template_text(name: str) -> str:
    """A file beside the templates, as it is."""
    assert TEMPLATES.loader is not None
    return TEMPLATES.loader.get_source(TEMPLATES, name)[0]


@dataclasses.dataclass(frozen=True)
class CandidateCard:
    """A candidate beside its query.

    Attributes:
      photograph: of the index; None where it cannot be found there any more.
      landmark: its name and id.
      similarity, augmented, inliers, score: see `transforms.types.Candidate`.
      right: whether the query shows its landmark; None where that is not known.
      lines: between the points that agree.
    """

    photograph: Photograph
    landmark: str
    similarity: float
    augmented: float | None
    inliers: int | None
    score: float
    right: bool | None
    lines: Sequence[Lines]


@dataclasses.dataclass(frozen=True)
class QueryCard:
    """A query with what it got.

    Attributes:
      photograph: of the query.
      landmark_id, landmark: what it got, and that with its name; None for nothing.
      measure, confidence: see `Answers`; None where there is none.
      verified: see `transforms.types.Prediction`.
      candidates: the best ones.
      more: how many others there are.
      sums: of the scores that vote, by landmark, the highest first.
      outcome: a key of OUTCOMES; None where there is no truth.
      truth: the landmarks that it shows, with their names; None where that is not known.
      truth_ids: their ids.
      cost: what it takes from a GAP of 1.
      change: a key of CHANGES; None without another run.
      before: what it got in the other run, with its name.
      gain: of GAP over the other run.
    """

    photograph: Photograph
    landmark_id: str | None
    landmark: str | None
    measure: str
    confidence: float | None
    verified: bool
    candidates: Sequence[CandidateCard]
    more: int = 0
    sums: Sequence[tuple[str, float]] = ()
    outcome: str | None = None
    truth: Sequence[str] | None = None
    truth_ids: Sequence[str] = ()
    cost: float = 0.0
    change: str | None = None
    before: str | None = None
    gain: float | None = None

    def html(self, review: bool = False) -> str:
        """The card; with buttons to decide by, which only the report's pages serve."""
        return TEMPLATES.get_template("query.html").render(card=self, review=review)

    def record(self) -> dict[str, Any]:
        """The card and what the gallery filters and sorts by; JSON-able."""
        texts = (self.photograph.image_id, self.landmark or "", *(self.truth or ()))
        return {
            "id": self.photograph.image_id,
            "landmark": self.landmark_id,
            "truth": list(self.truth_ids),
            "confidence": self.confidence,
            "verified": "yes" if self.verified else "no",
            "outcome": self.outcome,
            "cost": self.cost,
            "change": self.change,
            "gain": self.gain,
            "text": " ".join(texts).lower(),
            "html": self.html(review=True),
        }


@dataclasses.dataclass(frozen=True)
class LandmarkCard:
    """A landmark that queries got.

    Attributes:
      landmark_id, landmark: its id, and that with its name.
      queries: how many got it.
      right: how many of them show it; None without a truth.
      images: photographs in the index.
      expected, magnet: see `Landmarks`.
      photographs: some of the index.
      accepted, borderline: some of the queries, with their confidence; see `threshold_of`.
    """

    landmark_id: str
    landmark: str
    queries: int
    right: int | None
    images: int
    expected: float
    magnet: bool
    photographs: Sequence[tuple[Photograph, None]]
    accepted: Sequence[tuple[Photograph, float]]
    borderline: Sequence[tuple[Photograph, float]]

    def record(self) -> dict[str, Any]:
        """The card and what the page filters and sorts by; JSON-able."""
        return {
            "id": self.landmark_id,
            "queries": self.queries,
            "excess": self.queries - self.expected,
            "magnet": "yes" if self.magnet else "no",
            "text": self.landmark.lower(),
            "html": TEMPLATES.get_template("landmark.html").render(card=self),
        }


def class_sums(
    candidates: Sequence[Mapping[str, Any]], top_k: int, names: Mapping[str, str]
) -> list[tuple[str, float]]:
    """Sums of the scores of the best `top_k` candidates by landmark, with its name, the highest first."""
    sums: dict[str, float] = defaultdict(float)
    for candidate in candidates[:top_k]:
        sums[with_name(candidate["landmark_id"], names)] += candidate["score"]
    return sorted(sums.items(), key=lambda item: (-item[1], item[0]))
