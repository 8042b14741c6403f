"""The exchange of two folders in one step, for which Python has no function.

Linux has the system call ``renameat2`` since 3.15. Whether the system and the file system know it is found out by
trying.
"""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

AT_FDCWD = -100
RENAME_EXCHANGE = 2

UNKNOWN_TO_THE_SYSTEM = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)


def exchange(first: Path, second: Path) -> bool:
    """Let each of two folders have the name of the other, so that there is no moment at which a name has none.

    Args:
        first: A folder.
        second: Another, in the same file system.

    Returns:
        Whether the system could. If not, nothing was done.

    Raises:
        OSError: If one is missing, or may not be renamed.
    """
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, TypeError, OSError):
        return False
    failed = renameat2(AT_FDCWD, os.fsencode(first), AT_FDCWD, os.fsencode(second), RENAME_EXCHANGE)
    code = ctypes.get_errno()
    if failed and code in UNKNOWN_TO_THE_SYSTEM:
        return False
    if failed:
        raise OSError(code, os.strerror(code), str(first), None, str(second))
    return True
