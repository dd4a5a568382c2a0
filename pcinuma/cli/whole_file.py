# SPDX-License-Identifier: LGPL-2.1-or-later
"""A file that a command makes: whole, or as it was before."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from pcinuma.errors import PcinumaError


def write_whole(file: Path, text: str) -> None:
    """Write ``text`` to ``file``. What is no plain file (a pipe, ``/dev/stdout``, a symbolic link) is written to as it is.

    Raises PcinumaError that names the file and says why it cannot be written.
    """
    data = text.encode("utf-8", "replace")
    try:
        if _is_plain(file):
            _replace(file, data)
        else:
            file.write_bytes(data)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise PcinumaError(f"cannot be written ({why})", subject=str(file)) from error


def _is_plain(file: Path) -> bool:
    try:
        return stat.S_ISREG(file.lstat().st_mode)
    except FileNotFoundError:
        return True


def _replace(file: Path, data: bytes) -> None:
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with beside.open("xb") as new:
            new.write(data)
        os.replace(beside, file)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
