"""`landmarks bundle`: the package and all that it needs as wheels, for a notebook without a network.

pip install --no-index --no-deps OUTPUT/*.whl
"""

import importlib.metadata
import pathlib
import re
import subprocess
import sys
from collections.abc import Callable, Sequence

from beam_pipeline.config import ConfigError

_SOURCE = pathlib.Path(__file__).parents[1]


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
      ConfigError: the package's source is not there, or a requirement is none.
      OSError: pip failed.
    """
    if not (_SOURCE / "pyproject.toml").exists():
        raise ConfigError(f"{_SOURCE} is no source of landmarks: make the bundle from a checkout of it")
    needed = [r for r in importlib.metadata.requires("landmarks") or [] if "extra ==" not in r]
    unknown = {*without} - {*map(_name, needed)}
    if unknown:
        raise ConfigError(
            f"--without {sorted(unknown)[0]}: the package needs {', '.join(sorted(map(_name, needed)))}"
        )
    pip(["wheel", "--no-deps", "--wheel-dir", output, str(_SOURCE)])
    pip(["wheel", "--wheel-dir", output, *(r for r in needed if _name(r) not in without)])
    wheels = sorted(pathlib.Path(output).glob("*.whl"))
    size = sum(path.stat().st_size for path in wheels)
    print(f"{output}: {len(wheels):,} wheels, {size / 1e6:,.0f} MB; without a network:")
    print(f"  pip install --no-index --no-deps {output}/*.whl")
    return 0


def _name(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower()
