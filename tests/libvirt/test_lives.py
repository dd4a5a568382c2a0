# SPDX-License-Identifier: LGPL-2.1-or-later
"""The lives of domains on a real libvirt with the daemon: see :mod:`tests.libvirt.lives_machine`."""

from __future__ import annotations

import signal
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.libvirt.conftest import require
from tests.libvirt.lives_checks import placed
from tests.libvirt.lives_domains import written
from tests.libvirt.lives_machine import Lives
from tests.libvirt.lives_world import World
from tests.waiting import until

SHARED: dict[str, Any] = {
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
    "print_blob": True,
    "database": None,
    "phases": [Phase.generate],  # a failure tells its whole life; to shrink it would take minutes of restarts
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    require()
    with World(tmp_path_factory.mktemp("lives")) as world:
        yield world


def live(world: World, lives: int, steps: int, *, seeded: bool = False) -> None:
    """Each life by itself, with the shortest one before it: what is drawn next hangs on what a busy machine made of the steps before, and
    hypothesis does not let the lives of one run differ where they began alike. ``seeded``: the same lives each time."""
    machine = type("LivesHere", (Lives,), {"world": world})
    for number in range(lives):
        life = seed(number)(machine) if seeded else machine
        run_state_machine_as_test(life, settings=settings(max_examples=2, stateful_step_count=steps, **SHARED))


BECOMES: dict[str, tuple[str, bool]] = {
    # what becomes of the domain "before" -> its name then, and whether it is still the same domain
    "renamed": ("after", True),
    "renamed there and back": ("before", True),
    "undefined and defined again": ("before", True),
    "undefined and defined again under another name": ("after", True),
    "undefined and defined again with another uuid": ("before", False),
}


@pytest.mark.parametrize("becomes", BECOMES)
@pytest.mark.parametrize("choice", ["disable", "revert"])
def test_what_a_person_chose_stays_with_the_uuid_whatever_it_is_called(world: World, choice: str, becomes: str) -> None:
    """And the daemon's records follow, over a kill too."""
    name, same = BECOMES[becomes]
    old = str(uuid.uuid4())
    new = old if same else str(uuid.uuid4())
    domain = world.connection.defineXML(written("before", old, "pinned", ["0000:1c:00.0"]))
    world.daemon.settle()
    assert placed(world.definition("before"))
    assert world.pcinuma(choice, "before", *(["--revert"] if choice == "disable" else [])).code == 0
    if becomes.startswith("renamed"):
        domain.rename("after", 0)
        if name == "before":
            world.connection.lookupByName("after").rename("before", 0)
    else:
        domain.undefine()
        until(lambda: world.daemon.status("before") is None, "the daemon to forget it")
        world.connection.defineXML(written(name, new, "pinned", ["0000:1c:00.0"]))
    for _ in range(2):
        until(lambda: (world.daemon.status(name) or {}).get("uuid") == new, "the daemon to know its name")
        (entry,) = world.daemon.settle()["domains"]
        assert (entry["name"], entry["uuid"], entry["enabled"]) == (name, new, not same)
        assert bool(placed(world.definition(name))) is not same
        world.stop_daemon(signal.SIGKILL)
        world.start_daemon()
    world.connection.lookupByName(name).undefine()
    until(lambda: not world.daemon.call("Status")["domains"], "the daemon to forget it")


def test_the_same_lives_of_domains(world: World) -> None:
    live(world, lives=6, steps=25, seeded=True)


@pytest.mark.full
def test_a_few_lives_of_domains(world: World) -> None:
    live(world, lives=8, steps=25)


@pytest.mark.full
def test_many_lives_of_domains(world: World) -> None:
    live(world, lives=120, steps=40)
