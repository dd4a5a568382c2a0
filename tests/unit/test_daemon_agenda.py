"""Who is looked at first, and who gives way."""

from __future__ import annotations

import asyncio
import time

import pytest

from pcinuma.daemon.work_queue import GIVES_WAY, NOW, SOMETIME, Agenda


def test_an_event_comes_before_a_sweep_and_nobody_is_given_out_twice() -> None:
    async def walk() -> None:
        agenda = Agenda(lambda uuid: True)
        for uuid in ("a", "b"):
            agenda.want(uuid, SOMETIME)
        agenda.want("b", NOW)
        assert [await agenda.next(), await agenda.next()] == ["b", "a"]
        agenda.want("b", NOW)  # while it is being looked at
        assert agenda.size == 2
        waiting = asyncio.ensure_future(agenda.next())
        await asyncio.sleep(0)
        assert not waiting.done()
        agenda.done("b")
        assert await waiting == "b"
        agenda.done("a")
        agenda.done("b")
        assert agenda.idle and agenda.size == 0

    asyncio.run(walk())


def test_one_that_may_not_be_looked_at_stays_wanted() -> None:
    async def walk() -> None:
        starting = {"a"}
        agenda = Agenda(lambda uuid: uuid not in starting)
        agenda.want("a", NOW)
        agenda.want("b", SOMETIME)
        assert await agenda.next() == "b" and "a" in agenda
        starting.clear()
        agenda.want("a", NOW)
        assert await agenda.next() == "a"

    asyncio.run(walk())


def test_a_look_without_an_event_waits_a_moment_for_one_with_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    def waits(agenda: Agenda, uuid: str, at_most: float) -> bool:
        """Whether it waits as long as it may."""
        monkeypatch.setattr("pcinuma.daemon.work_queue.GIVES_WAY", at_most)
        began = time.monotonic()
        agenda.give_way(uuid)()
        return time.monotonic() - began >= at_most

    async def walk() -> None:
        agenda = Agenda(lambda uuid: True)
        agenda.want("event", NOW)
        assert waits(agenda, "sweep", GIVES_WAY)
        assert not waits(agenda, "event", 300)
        await agenda.next()
        assert waits(agenda, "sweep", GIVES_WAY)
        agenda.done("event")
        assert not waits(agenda, "sweep", 300)

    asyncio.run(walk())
