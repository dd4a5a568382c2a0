# SPDX-License-Identifier: LGPL-2.1-or-later
"""The C library's heap: memory goes back to the system when the work that needed it is over.

A request may be some megabytes of XML, and the tree of it fifty times that. By default glibc keeps what is freed: in one arena for
each few threads, and above a limit that grows with what was freed once. So there are few arenas here, the limit is fixed, and what is
free is handed back (``malloc_trim``) when the process has grown. Asyncio's futures and the tracebacks of failed calls leave cycles behind
that hold the message they were about, hence a garbage collection before that: some hundredths of a second after a large message, and none
without one. Sources: mallopt(3), malloc_trim(3). Other C libraries have neither; then nothing is done.
"""

from __future__ import annotations

import gc
import os
from typing import Optional

_M_ARENA_MAX, _M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -8, -3, -1
ARENAS = 2
LARGE = 128 * 1024
"""Bytes from which on a piece of memory is mapped by itself, so that it goes back alone; setting it keeps glibc from raising it."""
GROWN = 4 * 1024 * 1024
"""Bytes by which the process must have grown since it was smallest, or since memory was handed back last."""

LONGEST_PAUSE = 31
"""So many times it is not due while nothing has changed: memory may have been handed back in the midst of what then freed it."""


class Trimming:
    """When it is worth while, by the resident size in bytes: at once where that has grown, and while it has not gone back, ever more
    rarely."""

    def __init__(self) -> None:
        self._least: Optional[int] = None
        self._after = 0
        self._pause = self._rest = 0

    def due(self, resident: int) -> bool:
        """Whether memory is to be handed back now."""
        self._least = resident if self._least is None else min(resident, self._least)
        if resident <= self._least + GROWN:
            self._pause = self._rest = 0
            return False
        if self._rest and resident <= self._after + GROWN:
            self._rest -= 1
            return False
        return True

    def done(self, resident: int) -> None:
        """It was handed back."""
        self._after = resident
        self._pause = self._rest = min(2 * self._pause + 1, LONGEST_PAUSE)


_libc: Optional[object] = None
_trimming = Trimming()


def settle() -> None:
    """Before the first thread starts."""
    libc = _load()
    if libc is not None:
        for parameter, value in ((_M_ARENA_MAX, ARENAS), (_M_MMAP_THRESHOLD, LARGE), (_M_TRIM_THRESHOLD, LARGE)):
            libc.mallopt(parameter, value)  # type: ignore[attr-defined]


def give_back() -> bool:
    """Hand back what is free; whether that can be done here."""
    libc = _load()
    if libc is not None:
        gc.collect()
        libc.malloc_trim(0)  # type: ignore[attr-defined]
    return libc is not None


def give_back_if_grown() -> None:
    """:func:`give_back` if it is worth its milliseconds; to be called every few seconds."""
    if _trimming.due(_resident()):
        give_back()
        _trimming.done(_resident())


def _load() -> Optional[object]:
    global _libc
    if _libc is None:
        try:
            import ctypes  # not at the top: where memory may not become executable, some versions cannot even be imported

            libc = ctypes.CDLL(None)
            libc.malloc_trim.argtypes = [ctypes.c_size_t]
            libc.mallopt.argtypes = [ctypes.c_int, ctypes.c_int]
        except (ImportError, AttributeError, MemoryError, OSError):
            return None
        _libc = libc
    return _libc


def _resident() -> int:
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
