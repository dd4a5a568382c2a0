# SPDX-License-Identifier: LGPL-2.1-or-later
"""The lock on the state folder: only one process at a time has the state in memory, or changes it.

The daemon holds it as long as it lives, so that there is never a second one; a command that works without the daemon as long as it takes.
Either waits a moment for the other.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from pcinuma.errors import DaemonError

FILE = "lock"
PATIENCE = 3.0
"""Seconds. A command is through in milliseconds."""


def take(folder: Path, hint: str) -> int:
    """Make the state folder and lock it; the descriptor that holds the lock. Raises DaemonError; ``hint``: what to do about who has it."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(folder / FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise DaemonError(f"the state folder cannot be used ({error.strerror or error})", subject=str(folder)) from None
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except OSError:
            if time.monotonic() > deadline:
                os.close(lock)
                raise DaemonError("another pcinumad is running", subject=str(folder), hint=hint) from None
            time.sleep(0.02)
