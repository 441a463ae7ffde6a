"""Runs one benchmark: `python benchmarks/run.py NAME`, NAME a module of this folder with a `main(argv) ->
int`.
"""

import importlib
import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
NAMES = sorted(
    p.stem
    for p in HERE.glob("*.py")
    if p.stem not in ("__init__", "run", "goals") and "def main(" in p.read_text()
)


def main(argv: list[str]) -> int:
    names = [n.replace("_", "-") for n in NAMES]
    if not argv or argv[0] not in names:
        print(
            f"usage: python benchmarks/run.py NAME [options]; NAME is one of {', '.join(names)}",
            file=sys.stderr,
        )
        return 2
    sys.path.insert(0, str(HERE.parent))
    return importlib.import_module("benchmarks." + argv[0].replace("-", "_")).main(argv[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
