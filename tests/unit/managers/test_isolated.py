# SPDX-License-Identifier: LGPL-2.1-or-later
"""Work in a process of its own: its result, or one sentence."""

from __future__ import annotations

import os
import signal
import sys
from typing import Callable

import pytest

from pcinuma.managers.isolated import Failed, isolated


def test_a_result_of_any_size_comes_back() -> None:
    for size in (0, 1, 1 << 20):
        assert isolated(lambda size=size: b"x" * size) == b"x" * size


def _raise() -> bytes:
    raise ValueError("odd")


def _exit() -> bytes:
    sys.exit(3)


def _leave() -> bytes:
    os._exit(3)


def _die() -> bytes:
    os.kill(os.getpid(), signal.SIGTERM)
    return b""


def _recurse() -> bytes:
    return _recurse() + b""


@pytest.mark.parametrize(
    ("work", "why"),
    [
        (_raise, "ValueError: odd"),
        (_exit, "SystemExit: 3"),
        (_leave, "the process ended without an answer"),
        (_die, f"the process ended by signal {int(signal.SIGTERM)}"),
        (_recurse, "RecursionError"),
    ],
)
def test_whatever_becomes_of_it_is_told(work: Callable[[], bytes], why: str) -> None:
    with pytest.raises(Failed, match=why):
        isolated(work)


def test_what_hangs_is_killed_and_nobody_waits_for_it() -> None:
    reading, writing = os.pipe()

    def hang() -> bytes:
        os.close(reading)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGINT])
        while True:
            signal.pause()

    with pytest.raises(Failed, match=r"no answer within 0\.2 s"):
        isolated(hang, 0.2)
    os.close(writing)
    assert os.read(reading, 1) == b""  # the child held the other end
    os.close(reading)


def test_half_a_result_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write

    def half(descriptor: int, data: bytes) -> int:
        real(descriptor, data[:3])
        os._exit(0) if os.getpid() != parent and len(data) < 3 else None
        os.kill(os.getpid(), signal.SIGKILL)
        return 3

    parent = os.getpid()
    monkeypatch.setattr(os, "write", half)
    with pytest.raises(Failed, match="signal 9"):
        isolated(lambda: b"abcdef")


def test_the_child_writes_nothing_to_the_hooks_own_streams(capfd: pytest.CaptureFixture[str]) -> None:
    def talk() -> bytes:
        os.write(1, b"out")
        os.write(2, b"err")
        return b"done"

    assert isolated(talk) == b"done"
    assert capfd.readouterr() == ("", "")
