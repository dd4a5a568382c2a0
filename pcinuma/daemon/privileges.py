"""The one privilege that the unit gives the daemon, given up as soon as it has served.

Making a fanotify group takes CAP_SYS_ADMIN (:mod:`~pcinuma.daemon.file_watch`), using it does not. Where that capability is all there is,
as in pcinuma.service, it is dropped for good: NoNewPrivileges keeps it from coming back. A daemon that a person starts as root keeps what
root has. Capabilities belong to threads: call it before there are others.
"""

from __future__ import annotations

import os
from pathlib import Path

from pcinuma.daemon.log import log

_SYS_ADMIN = 1 << 21
_VERSION_3 = 0x20080522


def give_up(status: Path = Path("/proc/self/status")) -> bool:
    """Drop CAP_SYS_ADMIN if it is the only capability; return whether that was done."""
    if _effective(status) != _SYS_ADMIN:
        return False
    try:
        import ctypes  # see file_watch

        header = (ctypes.c_uint32 * 2)(_VERSION_3, 0)
        nothing = (ctypes.c_uint32 * 6)()
        if ctypes.CDLL(None, use_errno=True).capset(header, nothing) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    except (ImportError, MemoryError, OSError) as error:
        log.warning("a privilege could not be given up", error=str(error) or type(error).__name__)
        return False
    return True


def _effective(status: Path) -> int:
    for line in status.read_text().splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0
