"""The jobs: what runs. `python -m beam_pipeline --help`."""

import importlib.util
import os
import sys

__version__ = "0.1.0"


def _check_neighbour() -> None:
    """Says so where another `transforms` comes first on the path; its name is not rare."""
    found = importlib.util.find_spec("transforms")
    ours = os.path.join(os.path.dirname(os.path.dirname(__file__)), "transforms", "__init__.py")
    if found is None or not found.origin or os.path.realpath(found.origin) != os.path.realpath(ours):
        where = "nothing" if found is None else found.origin or list(found.submodule_search_locations or ())
        # As a program it ends with a line; a program that imports it gets an error to catch.
        as_program = os.path.basename(sys.argv[0] if sys.argv else "") in ("-m", "landmarks")
        raise (SystemExit if as_program else ImportError)(
            f"landmarks: error: `import transforms` finds {where} and not the package of that name that "
            f"belongs to landmarks, {ours}; rename it, take its folder out of PYTHONPATH, or work in another"
        )


_check_neighbour()
