"""The closing lines of a benchmark: one per goal, and the exit code they add up to."""

import dataclasses


@dataclasses.dataclass
class Goals:
    """Collects measured ratios against goals and agreements of answers, printing each as it comes."""

    failed: int = 0

    def at_least(self, name: str, value: float, goal: float) -> None:
        """`value` should reach `goal`; prints e.g. `retrieval vs faiss, k=3: 2.9 (goal 2.5) ok`."""
        self._line(f"{name}: {value:.3g} (goal {goal:g})", value >= goal)

    def at_most(self, name: str, value: float, goal: float) -> None:
        """`value` should not pass `goal`."""
        self._line(f"{name}: {value:.3g} (goal at most {goal:g})", value <= goal)

    def agree(self, name: str, same: bool) -> None:
        """Two ways should give the same answer."""
        self._line(f"{name}: {'same' if same else 'DIFFERENT'}", same)

    def _line(self, text: str, ok: bool) -> None:
        print(f"{text} {'ok' if ok else 'FAILED'}", flush=True)
        self.failed += not ok

    @property
    def exit_code(self) -> int:
        """1 where anything fell short, else 0."""
        return 1 if self.failed else 0
