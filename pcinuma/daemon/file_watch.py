# SPDX-License-Identifier: LGPL-2.1-or-later
"""The kernel's word on files that somebody writes in a folder, with their text.

libvirt writes a definition as ``NAME.xml.new`` and renames that over ``NAME.xml`` (``virFileRewrite`` in ``src/util/virfile.c``), so each
version is a file of its own that the next one's rename removes. Two ways to get hold of every one of them:

* **fanotify** with a descriptor in each event: the kernel keeps the file from the moment in which its writer closes it, so every version
  is there, whole and in order, however late it is read. Making the group takes CAP_SYS_ADMIN; reading it and marking a folder does not.
* **inotify**, where that is refused: the event carries a name only, and the file is opened as soon as it appears. Who reads too late
  finds a later version or none; then the version is reported as missed, never as another one.

Nothing here knows what is in the files.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any, Iterator, NamedTuple, Optional, Protocol

_FAN_CLOEXEC, _FAN_NONBLOCK, _FAN_UNLIMITED_QUEUE = 0x1, 0x2, 0x10
_FAN_MARK_ADD, _FAN_MARK_ONLYDIR = 0x1, 0x8
_FAN_CLOSE_WRITE, _FAN_EVENT_ON_CHILD = 0x8, 0x08000000
_AT_FDCWD = -100
_FAN_EVENT = struct.Struct("=IBBHQii")
_EVENTS_AT_ONCE = 16
"""Each holds a descriptor open until it is read."""

_IN_CLOSE_WRITE, _IN_CREATE, _IN_Q_OVERFLOW, _IN_IGNORED = 0x8, 0x100, 0x4000, 0x8000
_IN_EVENT = struct.Struct("iIII")
_NEW = ".new"
_PIECE = 1 << 20


class Written(NamedTuple):
    """A file that was written: its final ``name`` where that is known, its ``text`` unless it was missed, and what tells the file from
    others (device, inode, time of the last change)."""

    name: Optional[str]
    text: Optional[bytes]
    identity: Optional[tuple[int, int, int]]


MISSED = Written(None, None, None)


class Watch(Protocol):
    """``kind``: how it is done. ``lossless``: nothing is ever missed."""

    kind: str
    lossless: bool

    def fileno(self) -> int: ...

    def mark(self, folder: Path) -> None:
        """Watch this folder too. Marking it again costs nothing. Raises OSError where that is refused."""

    def read(self) -> Iterator[Written]:
        """What was written since, in order; does not wait."""

    def close(self) -> None:
        """Watch nothing any more."""


def open_watch() -> Watch:
    """The best watch that the kernel allows here. Raises OSError if it allows none."""
    try:
        import ctypes  # not at the top: where memory may not become executable, some versions cannot even be imported

        libc = ctypes.CDLL(None, use_errno=True)
        libc.fanotify_mark.argtypes = [ctypes.c_int, ctypes.c_uint, ctypes.c_uint64, ctypes.c_int, ctypes.c_char_p]
    except (ImportError, MemoryError, AttributeError) as error:
        raise OSError(0, f"no system calls can be made ({error or type(error).__name__})") from None
    try:
        return Fanotify(libc)
    except OSError:
        return Inotify(libc)


class Fanotify:
    """See the module."""

    kind, lossless = "fanotify", True

    def __init__(self, libc: Any) -> None:
        self._libc = libc
        flags = _FAN_CLOEXEC | _FAN_NONBLOCK | _FAN_UNLIMITED_QUEUE
        self._group = _checked(libc.fanotify_init(flags, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))

    def fileno(self) -> int:
        return self._group

    def mark(self, folder: Path) -> None:
        mask = _FAN_CLOSE_WRITE | _FAN_EVENT_ON_CHILD
        _checked(self._libc.fanotify_mark(self._group, _FAN_MARK_ADD | _FAN_MARK_ONLYDIR, mask, _AT_FDCWD, os.fsencode(folder)))

    def close(self) -> None:
        os.close(self._group)

    def read(self) -> Iterator[Written]:
        while True:
            try:
                data = os.read(self._group, _EVENTS_AT_ONCE * _FAN_EVENT.size)
            except BlockingIOError:
                return
            except OSError:  # no descriptor could be made for this one: it is gone from the queue
                yield MISSED
                continue
            for offset in range(0, len(data), _FAN_EVENT.size):
                descriptor = _FAN_EVENT.unpack_from(data, offset)[5]
                yield _whole(None, descriptor) if descriptor >= 0 else MISSED


class Inotify:
    """See the module. :meth:`read` is to be called as soon as there is something to read."""

    kind, lossless = "inotify", False

    def __init__(self, libc: Any) -> None:
        self._libc = libc
        self._queue = _checked(libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        self._folders: dict[int, Path] = {}
        self._held: dict[Path, int] = {}  # files that are being written

    def fileno(self) -> int:
        return self._queue

    def mark(self, folder: Path) -> None:
        self._folders[_checked(self._libc.inotify_add_watch(self._queue, os.fsencode(folder), _IN_CREATE | _IN_CLOSE_WRITE))] = folder

    def close(self) -> None:
        os.close(self._queue)
        for file in list(self._held):
            self._let_go(file)

    def read(self) -> Iterator[Written]:
        while True:
            try:
                data = os.read(self._queue, 65536)
            except BlockingIOError:
                return
            position = 0
            while position < len(data):
                watch, mask, _, size = _IN_EVENT.unpack_from(data, position)
                name = os.fsdecode(data[position + _IN_EVENT.size : position + _IN_EVENT.size + size].rstrip(b"\0"))
                position += _IN_EVENT.size + size
                if mask & _IN_Q_OVERFLOW:
                    yield MISSED
                elif mask & _IN_IGNORED:
                    self._folders.pop(watch, None)
                elif watch in self._folders:
                    yield from self._written(self._folders[watch] / name, mask)

    def _written(self, file: Path, mask: int) -> Iterator[Written]:
        if mask & _IN_CREATE:
            if file.name.endswith(_NEW):
                self._let_go(file)
                descriptor = _opened(file)
                if descriptor is not None:
                    self._held[file] = descriptor
            return
        final = file.with_name(file.name[: -len(_NEW)]) if file.name.endswith(_NEW) else file
        held = self._held.pop(file, None)
        descriptor = held if held is not None else _opened(final)
        yield _whole(final.name, descriptor) if descriptor is not None else Written(final.name, None, None)

    def _let_go(self, file: Path) -> None:
        descriptor = self._held.pop(file, None)
        if descriptor is not None:
            os.close(descriptor)


def _opened(file: Path) -> Optional[int]:
    try:
        return os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None


def _whole(name: Optional[str], descriptor: int) -> Written:
    """The file behind ``descriptor``, which is closed."""
    try:
        status = os.fstat(descriptor)
        parts = []
        offset = 0
        while part := os.pread(descriptor, _PIECE, offset):
            parts.append(part)
            offset += len(part)
        return Written(name, b"".join(parts), (status.st_dev, status.st_ino, status.st_mtime_ns))
    except OSError:
        return Written(name, None, None)
    finally:
        os.close(descriptor)


def _checked(result: int) -> int:
    if result < 0:
        import ctypes

        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
