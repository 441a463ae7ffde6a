"""Beam's import, the longest part of a short command, without what a command on one machine does not need."""

import gc
import sys

# Packages of connectors, data frames and other engines, which Beam and PyArrow do without where they are not
# installed. Objects in S3 and GCS are read by transforms/storage/object_stores.py, which imports its own;
# Beam's file systems of HDFS and Azure find what they need.
LEFT_OUT = ("boto3", "bson", "google.cloud", "pandas")


class _NotFound:
    """A finder of modules, see sys.meta_path, by which LEFT_OUT is not there."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        if name in LEFT_OUT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def import_beam() -> None:
    """Imports Beam as where LEFT_OUT is not installed; each of it can be imported afterwards.

    Only for a process that is the command's own and runs no other engine: Beam stays as it was imported, and
    what it and others have made until now is no longer looked at for garbage.
    """
    gc.disable()
    sys.meta_path.insert(0, _NotFound)
    try:
        import apache_beam  # noqa: F401
        import pyarrow

        pyarrow.array([])  # looks for pandas, once
    finally:
        sys.meta_path.remove(_NotFound)
        gc.enable()
    gc.freeze()
