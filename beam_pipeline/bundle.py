"""`landmarks bundle`: the package and all that it needs as wheels, for a notebook without a network.

pip install --no-index --no-deps OUTPUT/*.whl
"""

import email
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence

from beam_pipeline import outputs
from beam_pipeline.config import ConfigError
from transforms.storage import files

_SOURCE = pathlib.Path(__file__).parents[1]
_FILES = ("setup.py", "pyproject.toml", "README.md", "MANIFEST.in", "LICENSE", "NOTICE")
_PACKAGES = ("beam_pipeline", "transforms")

# name-version(-build)-python-abi-platform.whl, see PEP 427
_WHEEL = re.compile(r"\w[\w.]*-\d[\w.!+]*(-\d\w*)?-[\w.]+-[\w.]+-[\w.]+\.whl", re.ASCII)


def _pip(arguments: Sequence[str]) -> None:
    try:
        subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments], check=True)
    except subprocess.CalledProcessError as e:
        raise OSError(f"pip {arguments[0]} failed, see above") from e


def run(output: str, without: Sequence[str] = (), pip: Callable[[Sequence[str]], None] = _pip) -> int:
    """Makes the wheels, for this Python on a machine like this one. Those of an earlier bundle make way for
    them when all are there.

    Args:
      output: folder for them.
      without: requirements that are left out, such as tensorflow, which only SavedModels need.
      pip: runs pip with arguments.

    Raises:
      ConfigError: the package's source is not there, there is no such requirement, or `output` holds anything
        but an earlier bundle.
      OSError: pip failed.
    """
    if not all((_SOURCE / name).exists() for name in _FILES):
        raise ConfigError(f"{_SOURCE} is no source of landmarks: make the bundle from a checkout of it")
    before = _earlier(output)
    with tempfile.TemporaryDirectory(prefix="landmarks-") as scratch:  # pip leaves a build/ behind
        source, new = pathlib.Path(scratch, "source"), pathlib.Path(scratch, "wheels")
        source.mkdir()
        for name in _FILES:
            shutil.copy(_SOURCE / name, source)
        for name in _PACKAGES:
            shutil.copytree(_SOURCE / name, source / name)
        pip(["wheel", "--no-deps", "--wheel-dir", str(new), str(source)])
        (own,) = new.iterdir()
        needed = _requirements(own)
        unknown = {*without} - {*map(_name, needed)}
        if unknown:
            names = ", ".join(sorted(map(_name, needed)))
            raise ConfigError(f"--without {sorted(unknown)[0]}: the package needs {names}")
        pip(["wheel", "--wheel-dir", str(new), *(r for r in needed if _name(r) not in without)])
        wheels = sorted(new.iterdir(), key=lambda path: (path != own, path.name))
        size = sum(path.stat().st_size for path in wheels)
        for path in wheels:  # the package's first: by it an unfinished bundle is known
            files.write_bytes(files.join(output, path.name), path.read_bytes())
    old = sorted(before - {path.name for path in wheels})
    for name in old:
        files.delete(files.join(output, name))
    if old:
        print(f"{output}: deleted of the earlier bundle: {', '.join(old)}")
    print(f"{output}: {len(wheels):,} wheels, {size / 1e6:,.0f} MB; without a network:")
    print(f"  pip install --no-index --no-deps {output}/*.whl")
    return 0


def _earlier(output: str) -> set[str]:
    """The names of the wheels of the bundle that is in a folder already.

    Raises:
      ConfigError: the folder holds something else.
    """
    if outputs.is_empty(output):
        return set()
    names = {os.path.basename(uri) for uri in files.list_files(output, "")}
    others = sorted(name for name in names if not _WHEEL.fullmatch(name))
    if others or not any(name.startswith("landmarks-") for name in names):
        holds = f"it holds {others[0]}" if others else "it has no wheel of landmarks"
        raise ConfigError(
            f"{output} is not empty and was not made by `landmarks bundle` ({holds}); name another folder"
        )
    return names


def _requirements(wheel: pathlib.Path) -> list[str]:
    """What a wheel needs, extras left out."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        told = email.message_from_bytes(archive.read(name)).get_all("Requires-Dist") or []
    return [requirement for requirement in told if "extra ==" not in requirement]


def _name(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower()
