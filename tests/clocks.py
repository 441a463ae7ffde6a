"""A clock that goes only when a test says so."""

import time
import types

import pytest


class FakeClock:
    """Stands for the module `time` in the modules given.

    Attributes:
      start: what it shows at first; by default the time at which it was made.
    """

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, *modules: types.ModuleType, start: float | None = None
    ) -> None:
        self.start = self._now = time.time() if start is None else start
        for module in modules:
            monkeypatch.setattr(module, "time", self)

    def time(self) -> float:
        return self._now

    monotonic = time

    def pass_by(self, seconds: float) -> None:
        self._now += seconds
