# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which host switches a guest should see: the subtree below one expander.

From the topmost switch at which passed-through devices branch downward, switches are mirrored as on the host, so that any two devices have
exactly the host's switch distance. A device that shares no switch with another tells nothing by its switch: it gets a root port. Two units
with the very same way (functions or VFs of one device) do not branch at a switch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence, Union

from pcinuma.placement.units import Unit

Chain = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Switch:
    """A mirrored switch: ``host`` is the address of the host's upstream port; each leg is what hangs below one downstream port."""

    host: str
    children: tuple[Subtree, ...]

    @property
    def bridges(self) -> int:
        """How many bridges it takes, the port above it not counted."""
        return 1 + len(self.children) + sum(child.bridges for child in self.children if isinstance(child, Switch))


Subtree = Union[Unit, Switch]


def branching(first: Chain, second: Chain) -> int:
    """How many host switches of ``first`` both ways share, counting the one at which they branch; 0 if they do not branch at one."""
    for level, ((up, down), (other_up, other_down)) in enumerate(zip(first, second)):
        if up != other_up:
            return 0
        if down != other_down:
            return level + 1
    return 0


def subtrees(units: Sequence[Unit]) -> list[Subtree]:
    """What to plug into the root ports of one expander for ``units``, in order of host address."""
    return _subtrees([(unit, unit.chain) for unit in units])


def _subtrees(ways: list[tuple[Unit, Chain]]) -> list[Subtree]:
    found: list[Subtree] = [unit for unit, chain in ways if not chain]
    by_switch: dict[str, list[tuple[Unit, Chain]]] = {}
    for unit, chain in ways:
        if chain:
            by_switch.setdefault(chain[0][0], []).append((unit, chain))
    for host, members in by_switch.items():
        if len({chain[0][1] for _, chain in members}) > 1:
            found.append(_mirror(host, members))
        else:
            found.extend(_subtrees([(unit, chain[1:]) for unit, chain in members]))
    return sorted(found, key=_order)


def _mirror(host: str, members: list[tuple[Unit, Chain]]) -> Switch:
    children: list[Subtree] = []
    deeper: dict[tuple[str, str], list[tuple[Unit, Chain]]] = {}  # by the port here and the switch below it
    for unit, chain in members:
        if len(chain) == 1:
            children.append(unit)
        else:
            deeper.setdefault((chain[0][1], chain[1][0]), []).append((unit, chain[1:]))
    children.extend([_mirror(below, its_members) for (_, below), its_members in deeper.items()])
    return Switch(host, tuple(sorted(children, key=_order)))


def _order(subtree: Subtree) -> tuple[object, ...]:
    return subtree.order if isinstance(subtree, Unit) else min(_order(child) for child in subtree.children)
