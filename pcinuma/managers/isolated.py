# SPDX-License-Identifier: LGPL-2.1-or-later
"""Work in a child process and within a time: whatever becomes of it, the caller gets an answer, or one sentence why there is none.

The managers wait for their hooks as long as those take, and read their standard error until everybody has closed it. So the parent does
nothing that could hang or crash: the child imports lxml, parses, reads sysfs, and hands its result over in a pipe; its own standard streams
are /dev/null. A result counts only if the child then ended by itself with code 0, so half a result is none. A child that takes too long is
killed; one that cannot be killed (it hangs in the kernel) is left to init.

Rejected: `pcinuma place` as a process. It would cost the start of a second interpreter, and its command line takes no policy ``off``.
"""

from __future__ import annotations

import os
import select
import signal
import time
from typing import Callable, NoReturn

LIMIT = 20.0
"""Seconds that a start may wait for its placement. An idle host needs a tenth of one."""
_REAPING = 1.0


class Failed(Exception):
    """There is no result; the text says why."""


def isolated(work: Callable[[], bytes], seconds: float = LIMIT) -> bytes:
    """What ``work`` returns, done in a child process. Raises Failed, and OSError where there can be no child."""
    reading, writing = os.pipe()
    try:
        child = os.fork()
        if child == 0:
            _be_the_child(work, writing)
    except OSError:
        os.close(reading)
        raise
    finally:
        os.close(writing)
    try:
        return _result(child, reading, time.monotonic() + seconds, seconds)
    finally:
        os.close(reading)


def _be_the_child(work: Callable[[], bytes], writing: int) -> NoReturn:
    code = 1
    try:
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nothing, stream)
        try:
            data, code = work(), 0
        except BaseException as error:
            data = f"{type(error).__name__}: {error}".encode(errors="replace")
        while data:
            data = data[os.write(writing, data) :]
    except BaseException:
        code = code or 1
    finally:
        os._exit(code)


def _result(child: int, reading: int, deadline: float, seconds: float) -> bytes:
    pieces: list[bytes] = []
    while True:
        if not select.select([reading], [], [], max(0.0, deadline - time.monotonic()))[0]:
            os.kill(child, signal.SIGKILL)
            _reap(child)
            raise Failed(f"no answer within {seconds:g} s")
        piece = os.read(reading, 1 << 16)
        if not piece:
            break
        pieces.append(piece)
    status = _reap(child)
    data = b"".join(pieces)
    if status == 0:
        return data
    if status > 0 and data:
        raise Failed(data.decode(errors="replace"))
    raise Failed(f"the process ended by signal {-status}" if status < 0 else "the process ended without an answer")


def _reap(child: int) -> int:
    """The exit code of ``child`` that is ending, negative for a signal's number."""
    end = time.monotonic() + _REAPING
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        if time.monotonic() >= end:
            return -int(signal.SIGKILL)
        time.sleep(0.002)
