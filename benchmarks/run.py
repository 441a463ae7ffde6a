"""Runs one benchmark: `python benchmarks/run.py NAME`, NAME a module of this folder with a `main(argv) ->
int`.
"""

import importlib.util
import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
NAMES = sorted(
    p.stem
    for p in HERE.glob("*.py")
    if p.stem not in ("__init__", "run", "goals") and "def main(" in p.read_text()
)

# Modules of the extra "bench" that a benchmark cannot do without.
NEEDS = {
    "retrieval": ("faiss", "usearch"),
    "retrieval_full": ("psutil",),
    "scale": ("psutil",),
    "verification": ("pydegensac",),
}


def main(argv: list[str]) -> int:
    names = [n.replace("_", "-") for n in NAMES]
    if not argv or argv[0] not in names:
        print(
            f"usage: python benchmarks/run.py NAME [options]; NAME is one of {', '.join(names)}",
            file=sys.stderr,
        )
        return 2
    sys.path.insert(0, str(HERE.parent))
    name = argv[0].replace("-", "_")
    missing = [package for package in NEEDS.get(name, ()) if importlib.util.find_spec(package) is None]
    if missing and not {"-h", "--help"} & {*argv}:  # said now, not in the middle of the measurements
        print(f"{argv[0]} needs {', '.join(missing)}: pip install '.[bench]'", file=sys.stderr)
        return 2
    from benchmarks.goals import processor  # found by the path set above

    print(f"{processor()[0]}: {', '.join(processor()[1]) or 'none of the instruction sets that goals know'}")
    return importlib.import_module("benchmarks." + name).main(argv[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
