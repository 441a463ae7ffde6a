"""What the commands of Google Landmarks v2 are told, checked."""

import dataclasses

from beam_pipeline.config import ConfigError, TimeBudget, holds
from beam_pipeline.gldv2 import published
from transforms.storage.uris import is_local, join


@dataclasses.dataclass(frozen=True)
class DownloadConfig:
    """Arguments of `landmarks gldv2 download`; see its --help.

    Attributes:
      archives: their numbers; None for all of the part.
    """

    part: str
    output: str
    base_url: str = published.BASE_URL
    archives: tuple[int, ...] | None = None
    keep: str = "tar"
    parallel: int = 4
    budget: TimeBudget | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "base_url", self.base_url.rstrip("/"))
        if not self.base_url.startswith(("http://", "https://")):
            raise ConfigError(f"--base_url {self.base_url!r} is no http:// or https:// address")
        if not is_local(self.output):
            raise ConfigError(
                f"--output {self.output}: archives arrive in parts, on a disk; copy them to a store then"
            )
        count = published.PARTS[self.part].archives
        beyond = [number for number in self.archives or () if number >= count]
        if beyond:
            has = f"has archives 0 to {count - 1}" if count else "has no archives"
            raise ConfigError(f"--archives: {self.part} {has}, not {beyond[0]}")

    @property
    def numbers(self) -> tuple[int, ...]:
        """Of the archives asked for."""
        return tuple(range(published.PARTS[self.part].archives)) if self.archives is None else self.archives


@dataclasses.dataclass(frozen=True)
class SubsetConfig:
    """Arguments of `landmarks gldv2 subset`; see its --help."""

    data: str
    output: str
    landmarks: int
    seed: int = 0

    def __post_init__(self) -> None:
        for part in published.PARTS:
            if holds(self.output, join(self.data, part)):
                raise ConfigError(
                    f"--output {self.output} is or holds a part of the data set; name another folder"
                )
