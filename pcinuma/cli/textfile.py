# SPDX-License-Identifier: LGPL-2.1-or-later
"""A file that a collector reads while we write it, in a folder that others may have a hand in: it is replaced as a whole, with mode 0644.

Root writes it, and the folder above a collector's often belongs to the collector's user (Debian: /var/lib/prometheus). So on the way to the
folder only links of root's or the writer's own are followed, nothing that is no regular file is replaced, and the new file is made under
another name, which is nobody's. That name does not end as the file's does: a collector reads what ends so.
"""

from __future__ import annotations

import os
import secrets
import stat
from errno import ELOOP
from pathlib import Path

from pcinuma.errors import PcinumaError

_MOST_LINKS = 40


def replace(path: Path, content: bytes) -> None:
    """Put ``content`` where ``path`` is. Raises PcinumaError."""
    try:
        folder = _open_folder(Path(os.path.abspath(path.parent)))
    except FileNotFoundError:
        raise PcinumaError("there is no such folder", subject=str(path.parent), hint="make it, or give another file") from None
    except OSError as error:
        raise PcinumaError(_text(error), subject=str(path.parent)) from None
    try:
        _replace_in(folder, path, content)
    except OSError as error:
        raise PcinumaError(_text(error), subject=str(path)) from None
    finally:
        os.close(folder)


def _open_folder(folder: Path) -> int:
    """A descriptor of ``folder``, an absolute path. Raises OSError, and PcinumaError for a link of somebody else's."""
    trusted = (0, os.geteuid())
    here = os.open("/", os.O_PATH | os.O_CLOEXEC)
    links, to_go = 0, list(folder.parts[1:])
    try:
        while to_go:
            name = to_go.pop(0)
            next_one = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
            status = os.fstat(next_one)
            if not stat.S_ISLNK(status.st_mode):
                os.close(here)
                here = next_one
                continue
            target = os.readlink("", dir_fd=next_one)
            os.close(next_one)
            links += 1
            if status.st_uid not in trusted:
                what = f"{name} on the way is a link of user {status.st_uid}, and is not followed"
                raise PcinumaError(what, subject=str(folder), hint="give the folder by its real path")
            if links > _MOST_LINKS:
                raise OSError(ELOOP, os.strerror(ELOOP))
            if target.startswith("/"):
                os.close(here)
                here = os.open("/", os.O_PATH | os.O_CLOEXEC)
            to_go[:0] = [part for part in target.split("/") if part]
    except BaseException:
        os.close(here)
        raise
    return here


def _replace_in(folder: int, path: Path, content: bytes) -> None:
    try:
        kind = os.stat(path.name, dir_fd=folder, follow_symlinks=False).st_mode
    except FileNotFoundError:
        pass
    else:
        if not stat.S_ISREG(kind):
            raise PcinumaError("this is no regular file, so it is not replaced", subject=str(path), hint="give another file")
    new = f".{path.name}.{secrets.token_hex(8)}"
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            os.fchmod(file.fileno(), 0o644)
        os.rename(new, path.name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        os.unlink(new, dir_fd=folder)
        raise


def _text(error: OSError) -> str:
    return f"cannot be written ({error.strerror or error})"
