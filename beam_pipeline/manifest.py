"""What the manifest.json of a finished index or run says; read and written as a whole, and checked."""

import dataclasses
import hashlib
import importlib.metadata
import json
import platform
from collections import Counter
from collections.abc import Mapping
from typing import Any, ClassVar, Self, TypeVar

from beam_pipeline import __version__
from beam_pipeline.recipe import Recipe
from transforms.file_formats import READS_HEIF
from transforms.storage import files
from transforms.storage.derived_shards import list_name, unit_state
from transforms.storage.feature_store import ShardSummary
from transforms.storage.files import FileRecord
from transforms.storage.overlays import planned
from transforms.types import ScoringSettings, VerificationSettings

S = TypeVar("S", VerificationSettings, ScoringSettings)

MANIFEST = "manifest.json"
FORMAT = 2  # raised when older outputs cannot be read any more


def versions() -> dict[str, str]:
    """Versions of landmarks, Python and the packages that decode, compute and store, by name."""
    packages = ["apache-beam", "numpy", "onnxruntime", "opencv-python-headless", "pillow", "pyarrow"]
    packages += ["pillow-heif"] if READS_HEIF else []
    found = {name: importlib.metadata.version(name) for name in packages}
    return {"landmarks": __version__, "python": platform.python_version(), **found}


def digest(value: Any) -> str:
    """Short fingerprint of a JSON-able value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class _Counts:
    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isinstance(value, int) or value < 0:
                raise ValueError(f"{name} must be a count, not {value!r}")


@dataclasses.dataclass(frozen=True)
class IndexCounts(_Counts):
    """Photographs of an index: those matched, and what became of them; labels, of the table that was given
    last, that none of them has; and files that the last look at their folders passed over.
    """

    matched: int
    indexed: int
    failed: int
    out_of_time: int
    without_label: int
    labels_without_image: int = 0
    passed_over: int = 0

    def __add__(self, other: "IndexCounts") -> "IndexCounts":
        total = IndexCounts(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other))))
        return dataclasses.replace(total, passed_over=other.passed_over)  # they may be the same files

    def __sub__(self, other: "IndexCounts") -> "IndexCounts":
        other = dataclasses.replace(other, passed_over=0)
        return IndexCounts(*(a - b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other))))

    def without(self, indexed: int, failed: int) -> "IndexCounts":
        """The counts without some of the photographs."""
        left = dict(matched=self.matched - indexed - failed, indexed=self.indexed - indexed)
        return dataclasses.replace(self, **left, failed=self.failed - failed)


@dataclasses.dataclass(frozen=True)
class CohortCounts(_Counts):
    """Photographs of a cohort, and how many of them failed; files that their suffix passed over."""

    photographs: int
    failed: int
    passed_over: int = 0


@dataclasses.dataclass(frozen=True)
class RunCounts(_Counts):
    """Queries of a run, and what became of them; files that their suffix passed over; and queries whose truth
    names a landmark that the index lacks.
    """

    queries: int
    predicted: int
    verified: int
    failed: int
    out_of_time: int
    passed_over: int = 0
    landmark_not_indexed: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a finished output says of itself. Places are as this process finds them; in the file they are as
    `files.place_in` says, so that outputs can be moved.

    Attributes:
      recipe: how its features were made.
      shards: of features; of a run, those of its queries.
      seconds: that it took: "total", and worker seconds by step.
      complete: False where time ran out: the same command goes on.
      time_budget: see `budget.Schedule.report`; None where there was none.
      versions: of landmarks, Python and the packages that what it holds may depend on, by name.
      passed_over: how many files beside the photographs were not looked at, by suffix; of what was added
        last.
    """

    COMMAND: ClassVar[str]

    recipe: Recipe
    shards: tuple[ShardSummary, ...]
    seconds: Mapping[str, float]
    complete: bool = True
    time_budget: Mapping[str, Any] | None = None
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    passed_over: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def to_json(self, root: str) -> dict[str, Any]:
        """The content of manifest.json in `root`."""
        values = dataclasses.asdict(self)
        del values["recipe"]
        if self.time_budget is None:
            del values["time_budget"]
        return {"command": self.COMMAND, "format": FORMAT, **self.recipe.to_json(root), **values}

    @classmethod
    def from_json(cls, value: dict[str, Any], root: str) -> Self:
        """Reads what `to_json` made.

        Raises:
          ValueError: something is missing or makes no sense; the text says what.
        """
        try:
            names = {field.name for field in dataclasses.fields(cls)}
            known = {name: part for name, part in value.items() if name in names}
            shards = tuple(ShardSummary.from_json(shard) for shard in value["shards"])
            recipe = Recipe.from_json(value, root)
            return cls(**{**known, "recipe": recipe, "shards": shards, **cls._parts(value, root)})
        except KeyError as e:
            raise ValueError(f"it lacks {e}") from e
        except (TypeError, AttributeError) as e:
            raise ValueError(str(e)) from e

    @classmethod
    def _parts(cls, value: dict[str, Any], root: str) -> dict[str, Any]:
        """Of the fields of one command, those that are records or places."""
        raise NotImplementedError

    def digest(self, root: str) -> str:
        """Fingerprint of all that the manifest in `root` says but the time it took, and by which versions."""
        aside = ("seconds", "time_budget", "versions", "passed_over")
        said = {k: v for k, v in self.to_json(root).items() if k not in aside}
        return digest({k: v for k, v in said.items() if (k, v) != ("image_ids", "name")})

    def records(self, root: str) -> dict[str, FileRecord]:
        """The record, by URI, of every file that the output in `root` vouches for."""
        return {files.join(root, name): record for s in self.shards for name, record in s.files.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class IndexManifest(Manifest):
    """The manifest of an index.

    Attributes:
      global_dimensions: width of the global descriptor.
      has_local_features: whether the model has any.
      counts: of photographs.
      failures: failure rows by kind.
      image_ids: what the photographs' ids are, see `patterns.match_images`.
      appended: counts of what was added later, by the digest of its units.
    """

    COMMAND = "index"

    global_dimensions: int
    has_local_features: bool
    counts: IndexCounts
    failures: Mapping[str, int]
    image_ids: str = "name"
    appended: Mapping[str, IndexCounts] = dataclasses.field(default_factory=dict)

    @classmethod
    def _parts(cls, value: dict[str, Any], root: str) -> dict[str, Any]:
        return {
            "counts": IndexCounts(**value["counts"]),
            "appended": {name: IndexCounts(**counts) for name, counts in value["appended"].items()},
        }

    @property
    def changed_units(self) -> list[str]:
        """Names of the units that photographs were removed from, or relabelled in."""
        return [shard.unit for shard in self.shards if planned(shard.unit) != shard.unit]

    @property
    def derived_list(self) -> str:
        """The name of the lists of its derived shards, see `transforms.storage.derived_shards`."""
        return list_name(unit_state(shard.unit, shard.images) for shard in self.shards if shard.images)

    def with_first(
        self, first: "IndexManifest", added: tuple[ShardSummary, ...], failures: Mapping[str, int]
    ) -> "IndexManifest":
        """The manifest of an index whose `first` part was made again; `added` and `failures` are shards and
        failure rows of what was added to it.
        """
        return dataclasses.replace(
            first,
            shards=first.shards + added,
            counts=dataclasses.replace(
                sum(self.appended.values(), first.counts), passed_over=first.counts.passed_over
            ),
            failures=dict(sorted((Counter(first.failures) + Counter(failures)).items())),
            appended=self.appended,
        )

    def with_labels_lacking(self, count: int) -> "IndexManifest":
        """The manifest with another number of labels that no photograph of the index has."""
        return dataclasses.replace(self, counts=dataclasses.replace(self.counts, labels_without_image=count))

    def with_more(self, more: "IndexManifest", name: str) -> "IndexManifest":
        """The manifest of an index to which what `more` tells of was added under `name`."""
        failures = Counter(self.failures) + Counter(more.failures)
        return dataclasses.replace(
            more,
            recipe=dataclasses.replace(more.recipe, model=self.recipe.model),
            shards=self.shards + more.shards,
            counts=self.counts + more.counts,
            failures=dict(sorted(failures.items())),
            appended={**self.appended, name: more.counts},
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CohortManifest(Manifest):
    """The manifest of a cohort.

    Attributes:
      counts: of photographs.
    """

    COMMAND = "cohort"

    counts: CohortCounts

    @classmethod
    def _parts(cls, value: dict[str, Any], root: str) -> dict[str, Any]:
        return {"counts": CohortCounts(**value["counts"])}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunManifest(Manifest):
    """The manifest of a run.

    Attributes:
      index: folder of the index.
      query_store: folder of the queries' features.
      hyperparameters: what predictions depend on beside the features.
      reranked: whether candidates were verified.
      counts: of queries.
      files: records, by path below the run, of the files that are no shards of features.
    """

    COMMAND = "recognize"

    index: str
    query_store: str
    hyperparameters: Mapping[str, Any]
    reranked: bool
    counts: RunCounts
    files: Mapping[str, FileRecord]

    @classmethod
    def _parts(cls, value: dict[str, Any], root: str) -> dict[str, Any]:
        return {
            "index": files.place_of(root, value["index"]),
            "query_store": files.place_of(root, value["query_store"]),
            "counts": RunCounts(**value["counts"]),
            "files": {name: FileRecord(**record) for name, record in value["files"].items()},
        }

    def to_json(self, root: str) -> dict[str, Any]:
        """See Manifest."""
        places = {name: files.place_in(root, getattr(self, name)) for name in ("index", "query_store")}
        return {**super().to_json(root), **places}

    @property
    def verification(self) -> VerificationSettings:
        """How candidates were verified."""
        return self._settings(VerificationSettings)

    @property
    def scoring(self) -> ScoringSettings:
        """How they were scored."""
        return self._settings(ScoringSettings)

    def _settings(self, kind: type[S]) -> S:
        names = {field.name for field in dataclasses.fields(kind)}
        return kind(**{k: v for k, v in self.hyperparameters.items() if k in names})

    def records(self, root: str) -> dict[str, FileRecord]:
        """See Manifest; the shards are those of the queries."""
        own = {files.join(root, name): record for name, record in self.files.items()}
        return {**super().records(self.query_store), **own}
