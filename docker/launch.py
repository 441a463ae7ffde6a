"""What the flex template's launcher runs: parameters come as flags only, so that the command is one of them,
`--command=index`.
"""

import argparse
import sys
from collections.abc import Sequence

from beam_pipeline.main import main


def arguments(flags: Sequence[str]) -> list[str]:
    """The command line of `landmarks` for a template's flags."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--command", choices=("index", "recognize"), required=True)
    args, rest = parser.parse_known_args(flags)
    return [args.command, *rest]


if __name__ == "__main__":
    sys.exit(main(arguments(sys.argv[1:])))
