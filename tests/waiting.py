# SPDX-License-Identifier: LGPL-2.1-or-later
"""Processes that tests start: waiting for what they do, and for their end."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Callable, Optional, TypeVar

import psutil

CHECKOUT = Path(__file__).resolve().parents[1]
PATIENCE = 180.0
"""Seconds until something that will never happen is given up: many, for it must not be a busy machine that decides."""

T = TypeVar("T")

LOGS: dict[str, Callable[[], str]] = {}
"""What runs for a test at the moment -> its log, which is shown with a test that fails."""
OF_ENDED: dict[str, str] = {}
"""The logs of what has ended since the test began."""


def log_ends(name: str) -> None:
    """What is called so in LOGS ends (the last that began: there may be several, one in the other)."""
    log = LOGS.pop(name, None)
    if log is not None:
        OF_ENDED[name] = log()


class HarnessError(Exception):
    """What a test started did not do what it was asked for; the text holds the output of whatever failed."""


def until(predicate: Callable[[], Optional[T]], what: str, timeout: float = PATIENCE, interval: float = 0.01) -> T:
    """Call ``predicate`` until it returns something true, and return that. ``what`` completes "waited N s for …"."""
    deadline = time.monotonic() + timeout
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() > deadline:
            raise HarnessError(f"waited {timeout:g} s for {what}")
        time.sleep(interval)


def ended(process: psutil.Process) -> bool:
    """Whether a process has ended, reaped or not."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def names_below(pid: int) -> dict[int, str]:
    """The names of the processes below ``pid`` by their ids. What ends meanwhile is left out: of a list, any of them may."""
    found = {}
    for process in psutil.Process(pid).children(recursive=True):
        try:
            found[process.pid] = process.name()
        except psutil.NoSuchProcess:
            continue
    return found
