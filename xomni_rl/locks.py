"""One process at a time: locks on open files, which end with the process however it ends."""

import errno
import fcntl
from typing import IO

_WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


def try_lock(file: IO[str]) -> bool:
    """Locks an open file until it is closed. On a file system that knows no locks, as clusters may have, nothing is locked.

    Returns: False if another process has it.
    Raises: OSError for any other reason.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _WITHOUT_LOCKS:
            raise
    return True
