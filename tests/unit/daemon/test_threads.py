# SPDX-License-Identifier: LGPL-2.1-or-later
"""Threads that do not come back are counted, and named."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from pcinuma.daemon import threads
from pcinuma.daemon.threads import Threads


class Domain:
    """What a virDomain is here."""

    def name(self) -> str:
        return "vm"


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """What a hung call waits for."""
    monkeypatch.setattr(threads, "PATIENCE", 0.0)
    monkeypatch.setattr(threads, "SLOW", 0.0)
    event = threading.Event()
    yield event
    event.set()


def hang(domain: Domain, begun: threading.Semaphore, end: threading.Event) -> None:
    begun.release()
    end.wait()


@pytest.mark.parametrize(("size", "lost"), [(1, 1), (4, 4), (8, 3)])
def test_a_pool_is_exhausted_when_as_many_calls_as_it_cannot_do_without_hang(never: threading.Event, size: int, lost: int) -> None:
    pool, begun = Threads(size, "test", lost), threading.Semaphore(0)
    for number in range(lost):
        assert not pool.exhausted()
        assert len(pool.stuck()) == number
        pool.submit(hang, Domain(), begun, never)
        begun.acquire()
    assert pool.exhausted()
    assert all("for domain vm has not come back" in text for text in pool.stuck())
    never.set()
    pool.shutdown()
    assert (pool.exhausted(), pool.stuck()) == (False, [])


def test_a_call_that_fails_comes_back(never: threading.Event) -> None:
    pool = Threads(1, "test", 1)
    with pytest.raises(ZeroDivisionError):
        pool.submit(divmod, 1, 0).result()
    assert pool.submit(sum, [1, 2], start=3).result() == 6
    pool.shutdown()
    assert pool.stuck() == []


def test_a_call_is_young_until_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    never, begun = threading.Event(), threading.Semaphore(0)
    pool = Threads(1, "test", 1)
    pool.submit(hang, Domain(), begun, never)
    begun.acquire()
    assert (pool.exhausted(), pool.stuck()) == (False, [])
    never.set()
