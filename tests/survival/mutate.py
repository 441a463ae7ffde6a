"""Decodes thousands of damaged photographs and checks that none crashes, hangs or takes much memory.

    python tests/survival/mutate.py --mutations 3000 [--photos DIR] [--seed N]

Every file is made from its number and the seed, so a finding can be had again: `--only N`. Files are decoded
in a child process, which the parent kills when it takes too long; its peak of resident memory is measured for
each file. Prints the counts by result and exits 1 on any crash, hang, excess of memory, error that is no
DecodeError, or undamaged file that does not decode.
"""

import argparse
import collections
import dataclasses
import json
import os
import pathlib
import random
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.survival import mutations  # noqa: E402  (a script as well as a module)

MAX_SIDES = (512, 1024, 100_000)  # the last shrinks nothing


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one file.

    Attributes:
      number: of the mutation.
      what: how the file was made.
      result: "decoded", the kind of a DecodeError, or "VIOLATION ...".
      seconds: it took.
      memory: extra bytes at the peak.
    """

    number: int
    what: str
    result: str
    seconds: float
    memory: int

    @property
    def bad(self) -> bool:
        return self.result.startswith("VIOLATION")


class Decoder:
    """A child process that decodes what it is sent."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-u", __file__, "--child"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def decode(self, data: bytes, max_side: int, max_seconds: float) -> dict:
        """{"result", "seconds", "memory"}; a child that died or was killed is no longer usable (`alive`)."""
        self._process.stdin.write(json.dumps([len(data), max_side]).encode() + b"\n" + data)
        self._process.stdin.flush()
        started = time.monotonic()
        ready, _, _ = select.select([self._process.stdout], [], [], max_seconds)
        answer = self._process.stdout.readline() if ready else b""
        if answer:
            return json.loads(answer)
        self.close()
        seconds = time.monotonic() - started
        result = f"died with {self._process.returncode}" if ready else f"took over {max_seconds:g} s"
        return {"result": f"VIOLATION {result}", "seconds": seconds, "memory": 0}

    @property
    def alive(self) -> bool:
        return self._process.returncode is None

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def child() -> None:
    """Decodes what comes on standard input until it ends."""
    from transforms.images import DecodeError, decode_image

    while header := sys.stdin.buffer.readline():
        size, max_side = json.loads(header)
        data = sys.stdin.buffer.read(size)
        before = _reset_peak()
        started = time.monotonic()
        try:
            pixels, width, height, scale = decode_image(data, max_side)
            good = (
                pixels.shape[2] == 3
                and pixels.dtype == "uint8"
                and max(pixels.shape) <= max(max_side, 3)
                and min(width, height) >= 1
            )
            result = (
                "decoded"
                if good and 0 < scale <= 1
                else f"VIOLATION gave {pixels.dtype} {pixels.shape} of {width} x {height}"
            )
        except DecodeError as e:
            result = e.kind
        except BaseException as e:
            result = f"VIOLATION {type(e).__name__}: {e}"[:200]
        pixels = None
        print(
            json.dumps(
                {"result": result, "seconds": time.monotonic() - started, "memory": _status("VmHWM") - before}
            ),
            flush=True,
        )


def _reset_peak() -> int:
    """Sets the peak of resident memory back to what is resident now, and returns that in bytes."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(field: str) -> int:
    line = next(
        line
        for line in pathlib.Path("/proc/self/status").read_text().splitlines()
        if line.startswith(field + ":")
    )
    return 1024 * int(line.split()[1])


def decode_all(
    numbers: Sequence[int], seed: int, photos: str | None, max_seconds: float, max_megabytes: float
) -> Iterator[Outcome]:
    """Makes and decodes the mutations of these numbers, one after the other."""
    sources = mutations.sources(photos)
    decoder = Decoder()
    for number in numbers:
        rng = random.Random(f"{seed}/{number}")
        what, data, whole = mutations.mutation(sources, rng)
        if not decoder.alive:
            decoder = Decoder()
        answer = decoder.decode(data, rng.choice(MAX_SIDES), max_seconds)
        result = answer["result"]
        if whole and result != "decoded":
            result = f"VIOLATION undamaged, but {result}"
        elif answer["memory"] > 1e6 * max_megabytes:
            result = f"VIOLATION {answer['memory'] / 1e6:.0f} MB ({result})"
        yield Outcome(number, what, result, answer["seconds"], answer["memory"])
    decoder.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the check; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--mutations", type=int, default=3000, metavar="N", help="files tried (default: %(default)s)"
    )
    parser.add_argument(
        "--photos",
        metavar="DIR",
        default=os.environ.get("LANDMARKS_PHOTOS"),
        help="make them from these photographs too, as they are (default: $LANDMARKS_PHOTOS)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="another seed, other files (default: %(default)s)"
    )
    parser.add_argument("--only", type=int, metavar="N", help="this one alone")
    parser.add_argument(
        "--max_seconds", type=float, default=10, help="longer is a hang (default: %(default)s)"
    )
    parser.add_argument(
        "--max_megabytes", type=float, default=500, help="extra memory allowed (default: %(default)s)"
    )
    args = parser.parse_args(argv)
    numbers = range(args.mutations) if args.only is None else [args.only]
    by_way: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    bad, slowest, largest = [], Outcome(0, "", "", 0, 0), Outcome(0, "", "", 0, 0)
    for outcome in decode_all(numbers, args.seed, args.photos, args.max_seconds, args.max_megabytes):
        by_way[outcome.what.split(" of ")[0].split(":")[0]][
            "VIOLATION" if outcome.bad else outcome.result
        ] += 1
        slowest, largest = (
            max(slowest, outcome, key=lambda o: o.seconds),
            max(largest, outcome, key=lambda o: o.memory),
        )
        if outcome.bad:
            bad.append(outcome)
            print(f"{outcome.number}: {outcome.what}: {outcome.result}", flush=True)
    for way, counts in sorted(by_way.items()):
        print(f"{way:<22} {', '.join(f'{n} {result}' for result, n in counts.most_common())}")
    total = sum(by_way.values(), collections.Counter())
    print(f"{total.total()} files: {', '.join(f'{n} {result}' for result, n in total.most_common())}")
    print(
        f"slowest {slowest.seconds:.1f} s ({slowest.what}, {slowest.number}), most memory "
        f"{largest.memory / 1e6:.0f} MB ({largest.what}, {largest.number})"
    )
    return 1 if bad else 0


if __name__ == "__main__":
    if "--child" in sys.argv:
        child()
    else:
        sys.exit(main())
