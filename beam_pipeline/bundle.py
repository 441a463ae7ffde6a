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


def _pip(arguments: Sequence[str]) -> None:
    try:
        subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments], check=True)
    except subprocess.CalledProcessError as e:
        raise OSError(f"pip {arguments[0]} failed, see above") from e


def run(output: str, without: Sequence[str] = (), pip: Callable[[Sequence[str]], None] = _pip) -> int:
    """Makes the wheels, for this Python on a machine like this one.

    Args:
      output: folder for them.
      without: requirements that are left out, such as tensorflow, which only SavedModels need.
      pip: runs pip with arguments.

    Raises:
      ConfigError: the package's source is not there, there is no such requirement, or `output` holds anything
        but wheels.
      OSError: pip failed.
    """
    if not all((_SOURCE / name).exists() for name in _FILES):
        raise ConfigError(f"{_SOURCE} is no source of landmarks: make the bundle from a checkout of it")
    if not outputs.is_empty(output):
        others = [os.path.basename(uri) for uri in files.list_files(output, "") if not uri.endswith(".whl")]
        if others:
            raise ConfigError(
                f"{output} is not empty and was not made by `landmarks bundle` (it holds {others[0]}); name "
                "another folder"
            )
    with tempfile.TemporaryDirectory(prefix="landmarks-") as scratch:  # pip leaves a build/ behind
        for name in _FILES:
            shutil.copy(_SOURCE / name, scratch)
        for name in _PACKAGES:
            shutil.copytree(_SOURCE / name, os.path.join(scratch, name))
        pip(["wheel", "--no-deps", "--wheel-dir", output, scratch])
    needed = _requirements(max(pathlib.Path(output).glob("landmarks-*.whl"), key=os.path.getmtime))
    unknown = {*without} - {*map(_name, needed)}
    if unknown:
        names = ", ".join(sorted(map(_name, needed)))
        raise ConfigError(f"--without {sorted(unknown)[0]}: the package needs {names}")
    pip(["wheel", "--wheel-dir", output, *(r for r in needed if _name(r) not in without)])
    wheels = sorted(pathlib.Path(output).glob("*.whl"))
    size = sum(path.stat().st_size for path in wheels)
    print(f"{output}: {len(wheels):,} wheels, {size / 1e6:,.0f} MB; without a network:")
    print(f"  pip install --no-index --no-deps {output}/*.whl")
    return 0


def _requirements(wheel: pathlib.Path) -> list[str]:
    """What a wheel needs, extras left out."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        told = email.message_from_bytes(archive.read(name)).get_all("Requires-Dist") or []
    return [requirement for requirement in told if "extra ==" not in requirement]


def _name(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower()
