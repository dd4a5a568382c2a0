# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who is looked at first, and who gives way."""

from __future__ import annotations

import asyncio
import time

import pytest

from pcinuma.daemon.work_queue import GIVES_WAY, NOW, SOMETIME, WorkQueue


def test_an_event_comes_before_a_sweep_and_nobody_is_given_out_twice() -> None:
    async def walk() -> None:
        work_queue = WorkQueue(lambda uuid: True)
        for uuid in ("a", "b"):
            work_queue.want(uuid, SOMETIME)
        work_queue.want("b", NOW)
        assert [await work_queue.next(), await work_queue.next()] == ["b", "a"]
        work_queue.want("b", NOW)  # while it is being looked at
        assert len(work_queue.domains) == 2
        waiting = asyncio.ensure_future(work_queue.next())
        await asyncio.sleep(0)
        assert not waiting.done()
        work_queue.done("b")
        assert await waiting == "b"
        work_queue.done("a")
        work_queue.done("b")
        assert work_queue.idle and not work_queue.domains

    asyncio.run(walk())


def test_one_that_may_not_be_looked_at_stays_wanted() -> None:
    async def walk() -> None:
        starting = {"a"}
        work_queue = WorkQueue(lambda uuid: uuid not in starting)
        work_queue.want("a", NOW)
        work_queue.want("b", SOMETIME)
        assert await work_queue.next() == "b" and "a" in work_queue
        starting.clear()
        work_queue.want("a", NOW)
        assert await work_queue.next() == "a"

    asyncio.run(walk())


def test_a_look_without_an_event_waits_a_moment_for_one_with_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    def waits(work_queue: WorkQueue, uuid: str, at_most: float) -> bool:
        """Whether it waits as long as it may."""
        monkeypatch.setattr("pcinuma.daemon.work_queue.GIVES_WAY", at_most)
        began = time.monotonic()
        work_queue.give_way(uuid)()
        return time.monotonic() - began >= at_most

    async def walk() -> None:
        work_queue = WorkQueue(lambda uuid: True)
        work_queue.want("event", NOW)
        assert waits(work_queue, "sweep", GIVES_WAY)
        assert not waits(work_queue, "event", 300)
        await work_queue.next()
        assert waits(work_queue, "sweep", GIVES_WAY)
        work_queue.done("event")
        assert not waits(work_queue, "sweep", 300)

    asyncio.run(walk())
