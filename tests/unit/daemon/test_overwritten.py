# SPDX-License-Identifier: LGPL-2.1-or-later
"""Changes of others that come while ours is made, when somebody never stops to make some."""

from __future__ import annotations

from typing import Callable

import pytest

from pcinuma.daemon import stale
from pcinuma.daemon.overwritten import MergedChanges
from pcinuma.daemon.stale import SEEN, Seen
from pcinuma.domain.merge import same
from tests.hosts.domains import two_cells

BEFORE = two_cells().hostdev("17:00.0").formatted()
Making = Callable[[int], bytes]


def titled(title: object) -> bytes:
    return BEFORE.replace(b"</uuid>\n", f"</uuid>\n  <title>{title}</title>\n".encode(), 1)


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The definitions that were compared with another one, which is what a change costs."""
    calls: list[bytes] = []
    real = stale.distance

    def counted(one: bytes, other: bytes) -> int:
        calls.append(one)
        return real(one, other)

    monkeypatch.setattr(stale, "distance", counted)
    return calls


@pytest.mark.parametrize("made", [lambda n: titled(n % 2), titled], ids=["the same two in turn", "another one each time"])
def test_what_a_change_costs_does_not_grow_with_those_that_came_before_it(made: Making, compared: list[bytes]) -> None:
    """It did: who defined in a loop made changes faster than each could be brought together with all those before it."""
    changes = MergedChanges("vm", [Seen(BEFORE, ours=False)], lambda xml: xml)
    costs = []
    for number in range(3 * SEEN):
        changes.take_in(made(number))
        if number % 8 == 7:
            changes.saw(titled("ours"), ours=True)
        costs.append(len(compared))
        compared.clear()
    assert same(changes.definition, made(3 * SEEN - 1))
    assert max(costs[2 * SEEN :]) <= max(costs[SEEN - 8 : SEEN]) <= SEEN
    if made(0) == made(2):
        assert max(costs) <= 5
