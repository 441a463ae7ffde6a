"""Trouble of the machine, told from that of a photograph: memory, disks and networks fail for whatever is at
work then.
"""

import errno
import mmap

from apache_beam.io.filesystem import BeamIOError

from transforms.storage.files import is_transient
from transforms.storage.object_stores import CredentialsError

# Nothing in the file that is read: no room, no rights to change anything, a disk that is gone.
_MACHINES = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EBADF}


class MachineError(OSError):
    """What failed is the machine and not a photograph: the job stops, and a later start goes on."""

    def __init__(self, place: str, error: BaseException):
        super().__init__(
            f"the machine failed at {place}, not the photograph ({type(error).__name__}: {error}); the same "
            "command goes on from here"
        )


def is_of_machine(error: Exception) -> bool:
    """Whether an error in reading or decoding a photograph, tried again in vain, says nothing of it."""
    if isinstance(error, BeamIOError):  # one for all that can go wrong, a missing file too
        return False
    if isinstance(error, CredentialsError):  # until somebody renews them
        return True
    return is_transient(error) or (isinstance(error, OSError) and error.errno in _MACHINES)


def has_memory(size: int) -> bool:
    """Whether `size` bytes can be had now."""
    try:
        with mmap.mmap(-1, max(1, size)):
            return True
    except (OSError, MemoryError, OverflowError):
        return False
