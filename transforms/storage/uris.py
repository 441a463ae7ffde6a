"""Names of files and folders: paths on this machine, and addresses such as gs://bucket/file."""

import os


def is_local(uri: str) -> bool:
    """Whether `uri` is a path on this machine and not an address such as gs://bucket/file."""
    return "://" not in uri


def join(root: str, *names: str) -> str:
    """`root` and `names` joined by the rules of root's file system."""
    return os.path.join(root, *names) if is_local(root) else "/".join([root.rstrip("/"), *names])
