"""How the photographs of a job differ from those that its output was made of."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from transforms.storage import files, worklist
from transforms.storage.feature_store import images_let_in, read_failures
from transforms.types import ImageRef, ReadingConfig

_NAMED = 3  # photographs named of each kind of change


@dataclasses.dataclass(frozen=True)
class Changes:
    """Photographs by what is different, each list in ascending order of image_id.

    Attributes:
      more: that are new.
      fewer: that are gone.
      moved: that lie elsewhere.
      changed: that were changed where they lie.
      relabelled: that have another label.
    """

    more: tuple[str, ...] = ()
    fewer: tuple[str, ...] = ()
    moved: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    relabelled: tuple[str, ...] = ()

    @classmethod
    def between(cls, before: Iterable[ImageRef], after: Iterable[ImageRef]) -> "Changes":
        """What is different `after`; versions are not compared where an earlier plan knows none."""
        old, new = ({ref.image_id: ref for ref in refs} for refs in (before, after))
        both = sorted(old.keys() & new.keys())
        here = [name for name in both if files.absolute(old[name].uri) == new[name].uri]
        return cls(
            tuple(sorted(new.keys() - old.keys())),
            tuple(sorted(old.keys() - new.keys())),
            tuple(sorted({*both} - {*here})),
            tuple(name for name in here if is_changed(old[name], new[name].size_bytes, new[name].version)),
            tuple(name for name in both if old[name].landmark_id != new[name].landmark_id),
        )

    def __bool__(self) -> bool:
        return any(dataclasses.astuple(self))

    def __str__(self) -> str:
        said = (
            (self.more, "photograph more", "photographs more"),
            (self.fewer, "photograph less", "photographs fewer"),
            (self.moved, "photograph lies elsewhere", "photographs lie elsewhere"),
            (self.changed, "photograph was changed", "photographs were changed"),
            (self.relabelled, "label changed", "labels changed"),
        )
        return ", ".join(
            f"{len(names):,} {one if len(names) == 1 else many} ({some(names)})"
            for names, one, many in said
            if names
        )

    def only_of(self, names: Iterable[str]) -> bool:
        """Whether none came or went, and all that is different is different about these."""
        different = {*self.moved, *self.changed, *self.relabelled}
        return not self.more and not self.fewer and different <= {*names}


def let_in(root: str, reading: ReadingConfig, of: Iterable[ImageRef]) -> list[str]:
    """The ids of those photographs that an output has as failures for a limit which lets them in now."""
    found = images_let_in(read_failures(files.join(root, "failures")), reading)
    return sorted(found & {ref.image_id for ref in of}) if found else []


def is_changed(old: ImageRef, size: int, version: int) -> bool:
    """Whether a photograph is another now that its file has this size and version."""
    return old.size_bytes != size or old.version not in (version, worklist.NO_VERSION)


def some(names: Sequence[str]) -> str:
    """The first of `names`, for people."""
    return ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")


def failed(*roots: str) -> set[str]:
    """The ids of photographs that gave no features, by the failure rows of outputs and stores."""
    return {row["image_id"] for root in roots for row in _failures(root)}


def kinds_failed(root: str) -> str:
    """How many photographs of an output gave no features, by kind, for people, and the limit that would let
    them in: "4 too_large: --max_image_pixels 212000 lets them in; 2 corrupt".
    """
    kinds: dict[tuple[str, str], list[int]] = {}
    for row in _failures(root):
        kinds.setdefault((row["kind"], row["limit"] or ""), []).append(row["needed"] or 0)
    return "; ".join(
        f"{len(needed):,} {kind}"
        + (f": --{limit} {max(needed)} lets {'it' if len(needed) == 1 else 'them'} in" if limit else "")
        for (kind, limit), needed in sorted(kinds.items(), key=lambda item: (-len(item[1]), item[0]))
    )


def _failures(root: str) -> list[dict[str, Any]]:
    """The failure rows of photographs that gave no features; see FAILURE_SCHEMA."""
    rows = read_failures(files.join(root, "failures")).to_pylist()
    own = ("read", "decode", "extract")
    return [row for row in rows if row["stage"] in own and row["kind"] != "out_of_time"]
