"""What is computed once from the features of an index: shards beside those of the features.

    <index>/<kind>/<unit>-<digest>.parquet    of the images of a unit, in its order; the digest is of the
                                              names of all units that it is made of
    <index>/<kind>/<digest>.json              name of the shard of each unit; the digest is of their names.
                                              It is written last: what is named there is done

So an index to which units are added has the old shards and the new ones beside each other, until the old ones
are pruned.
"""

import dataclasses
import hashlib
import re
from collections.abc import Iterable, Mapping

import pyarrow as pa

from transforms.storage import files
from transforms.storage.overlays import CHANGED_UNIT

SHARD_NAME = CHANGED_UNIT + r"-[0-9a-f]{16}"  # regular expressions
LIST_NAME = r"[0-9a-f]{16}"


def unit_state(unit: str, images: int) -> str:
    """A unit by name and number of images: a later start may have more under that name, where a limit kept
    some out.
    """
    return f"{unit}:{images}"


def list_name(units: Iterable[str]) -> str:
    """The name of the list of the shards of an index that has just these units, see `unit_state`."""
    return hashlib.sha256("\n".join(sorted(units)).encode()).hexdigest()[:16]


def shard_name(unit: str, made_of: Iterable[str]) -> str:
    """The name of the shard of `unit` that is made of the units `made_of`, see `unit_state`."""
    return f"{unit}-{list_name(made_of)}"


@dataclasses.dataclass(frozen=True)
class DerivedShards:
    """The derived shards of one kind in the folder of an index.

    Attributes:
      root: of the index.
      kind: the folder's name.
    """

    root: str
    kind: str

    def _uri(self, name: str) -> str:
        return files.join(self.root, self.kind, name)

    def has(self, name: str) -> bool:
        """Whether a shard is there."""
        return files.exists(self._uri(name + ".parquet"))

    def write(self, name: str, table: pa.Table) -> None:
        """Writes a shard."""
        files.write_parquet(self._uri(name + ".parquet"), table)

    def read(self, name: str) -> pa.Table:
        """Reads a shard."""
        return files.read_parquet(self._uri(name + ".parquet"))

    def complete(self, listed: str) -> bool:
        """Whether every unit of an index has its shard, by the name of the list."""
        return files.exists(self._uri(listed + ".json"))

    def write_list(self, listed: str, names: Mapping[str, str]) -> None:
        """Says that the shards of an index are there: the list's name, and theirs by unit."""
        files.write_json(self._uri(listed + ".json"), dict(sorted(names.items())))

    def read_list(self, listed: str) -> dict[str, str]:
        """The names of the shards by unit."""
        found: dict[str, str] = files.read_json(self._uri(listed + ".json"))
        return found

    def prune(self, listed: str) -> None:
        """Deletes all that another list than this one, which is there, names."""
        keep = {name + ".parquet" for name in self.read_list(listed).values()} | {listed + ".json"}
        for suffix, pattern in ((".parquet", SHARD_NAME), (".json", LIST_NAME)):
            for uri in files.list_files(files.join(self.root, self.kind), suffix):
                name = uri.rsplit("/", 1)[-1]
                if re.fullmatch(pattern, name.removesuffix(suffix)) and name not in keep:
                    files.delete(uri)
