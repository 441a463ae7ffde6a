"""Kills each command at random moments, starts it again, and compares what it leaves with an undisturbed run,
byte for byte.

    python tests/survival/kill.py --kills 50 [--photos DIR] [--seed N]

A round makes an index, adds to it, replaces photographs of it, removes and relabels some, rewrites its
shards, and recognizes with it. Each command is started up to four times in a row and killed with its whole
process group by SIGKILL: at a moment drawn over the time that it takes, or shortly after it has left a number
of files that is drawn too, so that every stage is hit. Then it is left alone, and must end with the files of
the undisturbed run, no more and no less. Ends with 1 on any difference.
"""

import argparse
import collections
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from beam_pipeline import demo  # noqa: E402
from beam_pipeline.lock import LOCK  # noqa: E402
from transforms.patterns import IMAGE_SUFFIXES  # noqa: E402

INPUTS = ("images.txt", "more.txt", "queries.txt", "changed.txt", "gone.txt", "labels.csv", "right.csv")
STAGES = ("start", "load", "extract", "write", "retrieve", "verify", "end", "done")
_MODES = (
    ("--direct_num_workers=1",),
    ("--direct_num_workers=2", "--direct_running_mode=multi_threading"),
    ("--direct_num_workers=2", "--direct_running_mode=multi_processing"),
)
_MODE_WEIGHTS = (2, 2, 1)  # processes are slow to start
_MAX_KILLS_IN_A_ROW = 4
_MAX_SECONDS = 600  # a start that takes longer hangs


@dataclasses.dataclass(frozen=True)
class Command:
    """A command of a round; its paths start at the round's folder.

    Attributes:
      name: for people.
      output: the folder that it writes.
      arguments: without the options of the runner.
    """

    name: str
    output: str
    arguments: tuple[str, ...]


def _index(name: str, arguments: str) -> Command:
    return Command(name, "index", ("index", "--output", "index", *arguments.split()))


INDEX = _index("index", "--images @images.txt --labels labels.csv --max_image_side 320")
APPEND = _index("append", "--images @more.txt --labels labels.csv --append")
CLEANING = (
    _index("update", "--images @changed.txt --labels labels.csv --append --update"),
    _index("remove", "--remove @gone.txt"),
    _index("relabel", "--relabel right.csv"),
    _index("compact", "--compact"),
)
RECOGNIZE = Command(
    "recognize",
    "run",
    ("recognize", "--images", "@queries.txt", "--index", "index", "--output", "run", "--preset", "accurate"),
)
COMMANDS = (INDEX, APPEND, *CLEANING, RECOGNIZE)


@dataclasses.dataclass(frozen=True)
class Kill:
    """Where a command was when it was killed; stage "done": it had ended before the moment came."""

    command: str
    stage: str


def find_photographs(photos: str | None, folder: pathlib.Path) -> list[pathlib.Path]:
    """The photographs in `photos`, or those of the demo set, which is then made in `folder`; each stem once,
    in a fixed order.
    """
    if photos is None:
        photos = str(pathlib.Path(demo.make_demo(str(folder)).index).parent)
    paths = sorted(path for path in pathlib.Path(photos).rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    by_stem = {path.stem: path for path in paths}
    return [
        by_stem[stem] for stem in sorted(by_stem, key=lambda stem: hashlib.sha256(stem.encode()).hexdigest())
    ]


def write_inputs(folder: pathlib.Path, photographs: Sequence[pathlib.Path], counts: Sequence[int]) -> None:
    """Writes what the commands of a round read: lists of photographs to index, to add and to recognize, and
    labels, true or not; queries under the names of the first in the index, to take their places; and of what
    is indexed three eighths to remove, so that one shard at least is rewritten, and others to relabel.
    """
    start = 0
    for name, count in zip(("images", "more", "queries"), counts, strict=True):
        _write_lines(folder / f"{name}.txt", photographs[start : start + count])
        start += count
    _write_labels(folder / "labels.csv", {path.stem: n % 7 for n, path in enumerate(photographs[:start])})
    indexed = photographs[: counts[0] + counts[1]]
    (folder / "changed").mkdir()
    changed = []
    for old, new in zip(indexed[: counts[0] // 8], photographs[len(indexed) : start]):
        changed.append(folder / "changed" / f"{old.stem}{new.suffix}")
        shutil.copyfile(new, changed[-1])
    _write_lines(folder / "changed.txt", changed)
    _write_lines(folder / "gone.txt", [path.stem for n, path in enumerate(indexed) if n % 8 in (1, 3, 6)])
    right = {path.stem: (n + 1) % 7 for n, path in enumerate(indexed) if n % 8 in (0, 5)}
    _write_labels(folder / "right.csv", right)


def _write_lines(path: pathlib.Path, lines: Sequence[object]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _write_labels(path: pathlib.Path, labels: dict[str, int]) -> None:
    _write_lines(path, ["id,landmark_id", *(f"{name},{label}" for name, label in labels.items())])


def contents(folder: pathlib.Path) -> dict[str, str]:
    """A checksum of every file below `folder`, hidden ones too, by path; of a manifest without its times, and
    with the place of its index as seen from `folder`.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            if path.name == "manifest.json":
                manifest = json.loads(data)
                del manifest["seconds"]
                if "index" in manifest:
                    manifest["index"] = os.path.relpath(manifest["index"], folder)
                data = json.dumps(manifest).encode()
            found[str(path.relative_to(folder))] = hashlib.sha256(data).hexdigest()
    return found


def differences(expected: dict[str, str], found: dict[str, str]) -> list[str]:
    """What differs between two results of `contents`, a line per file."""
    lines = []
    for path in sorted({**expected, **found}):
        if path not in found:
            lines.append(f"{path}: missing")
        elif path not in expected:
            lines.append(f"{path}: should not be there")
        elif found[path] != expected[path]:
            lines.append(f"{path}: another content")
    return lines


def start(
    command: Command, folder: pathlib.Path, mode: Sequence[str], log_name: str = "log.txt"
) -> subprocess.Popen:
    """Starts a command as its own process group; what it prints is added to the log in `folder`."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with open(folder / log_name, "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "beam_pipeline", *command.arguments, *mode],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def finish(command: Command, folder: pathlib.Path, mode: Sequence[str]) -> float:
    """Runs a command to its end; returns how many seconds it took.

    Raises:
      RuntimeError: it failed or hung; the text holds the end of the log.
    """
    begun = time.monotonic()
    process = start(command, folder, mode)
    try:
        code: object = process.wait(_MAX_SECONDS)
    except subprocess.TimeoutExpired:
        code = f"none in {_MAX_SECONDS} s"
        kill_group(process)
    if code != 0:
        log = (folder / "log.txt").read_text(encoding="utf-8", errors="replace")
        raise RuntimeError(f"{command.name} in {folder}: exit code {code}; the log ends with\n{log[-3000:]}")
    return time.monotonic() - begun


def start_and_kill(
    command: Command,
    folder: pathlib.Path,
    mode: Sequence[str],
    before: dict[str, str],
    at_files: int,
    seconds: float,
) -> Kill:
    """Starts a command and kills its process group `seconds` after it has `at_files` files or more below its
    output, whose contents it had `before` it was first started.
    """
    process, output = start(command, folder, mode), folder / command.output
    while process.poll() is None and _count(output) < at_files:
        time.sleep(0.002)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    ended = process.poll() is not None
    kill_group(process)
    return Kill(command.name, "done" if ended else stage(command, folder, before))


def kill_group(process: subprocess.Popen) -> None:
    """Kills what `start` started and all its children, and waits for it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _count(folder: pathlib.Path) -> int:
    return sum(len(names) for _, _, names in os.walk(folder))


def stage(command: Command, folder: pathlib.Path, before: dict[str, str]) -> str:
    """How far a command has come, as its files tell, of which there were some `before`: one of STAGES."""
    output = folder / command.output
    if command in CLEANING:
        now = contents(output)
        if now["manifest.json"] != before["manifest.json"]:
            return "end"
        return "write" if now.keys() - before.keys() - {LOCK} else "start"
    plans = sorted(output.glob("appended/*/plan/*.parquet" if command.name == "append" else "plan/*.parquet"))
    if not plans:
        return "start"
    planned = sum(
        1
        for line in (
            folder / {"index": "images.txt", "append": "more.txt", "recognize": "queries.txt"}[command.name]
        ).open()
    )
    units = -(-planned // 8)  # of a small set
    shards = len(
        list(output.glob("queries/images/*.parquet" if command.name == "recognize" else "images/*.parquet"))
    )
    if command.name == "append":
        shards -= -(-sum(1 for line in (folder / "images.txt").open()) // 8)
    if shards < units:
        return "extract" if shards else "load"
    if command.name != "recognize" or (output / "submission.csv").exists():
        return "end"
    return "verify" if list(output.glob("predictions/*.parquet")) else "retrieve"


def attempt(
    folder: pathlib.Path,
    reference: pathlib.Path,
    seconds: dict[str, float],
    rng: random.Random,
    kills: Iterator[int],
    finish: Callable[[Command, pathlib.Path, Sequence[str]], object] = finish,
    commands: Sequence[Command] = COMMANDS,
) -> tuple[list[Kill], list[str]]:
    """One round in an empty folder.

    Args:
      reference: folder of an undisturbed round, with the contents after each command in <command>.json.
      seconds: that each command takes undisturbed.
      kills: how many times in a row each command is killed.
      finish: runs a command to its end, and raises where it fails.
      commands: of the round.

    Returns:
      The kills, and what differs in the end.
    """
    for name in INPUTS:
        (folder / name).write_bytes((reference / name).read_bytes())
    made, differing = [], []
    for command in commands:
        expected = json.loads((reference / f"{command.name}.json").read_text())
        before = contents(folder / command.output)
        most = len({*before, *expected})  # what is not needed any more is deleted at the end
        for _ in range(next(kills)):
            [mode] = rng.choices(_MODES, _MODE_WEIGHTS)
            if rng.random() < 1 / 3:
                at_files, delay = 0, rng.uniform(0, seconds[command.name])
            else:
                at_files, delay = rng.randint(len(before), most), rng.uniform(0, 0.05)
            made.append(start_and_kill(command, folder, mode, before, at_files, delay))
        finish(command, folder, rng.choice(_MODES[:2]))
        differing += [
            f"{folder}: after {command.name}: {line}"
            for line in differences(expected, contents(folder / command.output))
        ]
    return made, differing


def record(command: Command, folder: pathlib.Path) -> None:
    """Keeps the contents after a command of an undisturbed round, for `attempt`."""
    (folder / f"{command.name}.json").write_text(json.dumps(contents(folder / command.output)))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs rounds until so many kills have been made; returns 1 on any difference."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--kills",
        type=int,
        default=50,
        metavar="N",
        help="kills before a command had ended (default: %(default)s)",
    )
    parser.add_argument(
        "--photos",
        metavar="DIR",
        default=os.environ.get("LANDMARKS_PHOTOS"),
        help="photographs, read where they lie (default: $LANDMARKS_PHOTOS, else the demo set)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="another seed, other moments (default: %(default)s)"
    )
    args = parser.parse_args(argv)
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory(prefix="landmarks-kill-") as root:
        reference = pathlib.Path(root, "reference")
        reference.mkdir()
        write_inputs(reference, find_photographs(args.photos, pathlib.Path(root, "demo")), (40, 24, 48))
        seconds = {}
        for command in COMMANDS:
            seconds[command.name] = finish(command, reference, _MODES[0])
            record(command, reference)
        print(
            "undisturbed: " + ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items()),
            flush=True,
        )
        counts: collections.Counter[Kill] = collections.Counter()
        differing: list[str] = []
        rounds = 0
        while sum(n for kill, n in counts.items() if kill.stage != "done") < args.kills:
            rounds += 1
            folder = pathlib.Path(root, f"round{rounds}")
            folder.mkdir()
            kills, lines = attempt(
                folder, reference, seconds, rng, iter(lambda: rng.randint(1, _MAX_KILLS_IN_A_ROW), None)
            )
            counts.update(kills)
            differing += lines
            print(f"round {rounds}: {len(kills)} kills, {len(lines)} differences", flush=True)
            print("".join(f"  {line}\n" for line in lines), end="", flush=True)
    print_counts(counts)
    killed = sum(n for kill, n in counts.items() if kill.stage != "done")
    print(f"{killed} kills in {rounds} rounds, {len(differing)} differences from the undisturbed run")
    return 1 if differing else 0


def print_counts(counts: collections.Counter[Kill]) -> None:
    """A table of the kills by command and stage."""
    print(f"{'killed in':<12}" + "".join(f"{stage:>10}" for stage in STAGES))
    for command in COMMANDS:
        print(f"{command.name:<12}" + "".join(f"{counts[Kill(command.name, stage)]:>10}" for stage in STAGES))


if __name__ == "__main__":
    sys.exit(main())
