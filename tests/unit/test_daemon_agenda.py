"""Who is looked at first, and who gives way."""

from __future__ import annotations

import asyncio
import time

from pcinuma.daemon.agenda import GIVES_WAY, NOW, SOMETIME, Agenda


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


def test_a_look_without_an_event_waits_a_moment_for_one_with_an_event() -> None:
    def waited(agenda: Agenda, uuid: str) -> float:
        began = time.monotonic()
        agenda.give_way(uuid)()
        return time.monotonic() - began

    async def walk() -> None:
        agenda = Agenda(lambda uuid: True)
        agenda.want("event", NOW)
        assert waited(agenda, "sweep") >= GIVES_WAY > waited(agenda, "event")
        await agenda.next()
        assert waited(agenda, "sweep") >= GIVES_WAY
        agenda.done("event")
        assert waited(agenda, "sweep") < GIVES_WAY

    asyncio.run(walk())
