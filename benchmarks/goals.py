"""The closing lines of a benchmark: one per goal, and the exit code they add up to; and on which processor.

Some goals hold with some instruction sets only. Such a goal names them; where none of them is there, its line
says so and nothing fails.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping

INSTRUCTION_SETS = {
    "AMX": {"amx_int8", "amx_bf16"},
    "VNNI": {"avx512_vnni", "avx_vnni"},
    "bfloat16": {"avx512_bf16", "amx_bf16"},
    "AVX-512": {"avx512f"},
    "AVX2": {"avx2"},
}
"""What goals and tables call instruction sets, the widest first, and the flags of /proc/cpuinfo for them."""


@functools.cache
def processor() -> tuple[str, tuple[str, ...]]:
    """The processor's name, and which of INSTRUCTION_SETS it has, in their order."""
    fields: dict[str, str] = {}
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    flags = {*fields.get("flags", "").split()}
    name = fields.get("model name", "unknown")
    if "cpu family" in fields:
        name += f", family {fields['cpu family']}, model {fields['model']}"
    return name, tuple(name for name, needed in INSTRUCTION_SETS.items() if needed & flags)


@dataclasses.dataclass
class Goals:
    """Collects measured ratios against goals and agreements of answers, printing each as it comes."""

    failed: int = 0

    def at_least(self, name: str, value: float, goal: float | Mapping[str, float]) -> None:
        """`value` should reach `goal`; prints e.g. `a vs b, CPU time: 1.56 (goal 1.5) ok`.

        Args:
          goal: or goals by instruction set, of which the first of INSTRUCTION_SETS counts that is here.
        """
        if isinstance(goal, Mapping):
            here = [goal[kind] for kind in processor()[1] if kind in goal]
            if not here:
                print(
                    f"{name}: {value:.3g} (goal with {' or '.join(goal)}; not on this processor)", flush=True
                )
                return
            goal = here[0]
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
