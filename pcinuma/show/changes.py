# SPDX-License-Identifier: LGPL-2.1-or-later
"""What two versions of a domain's XML have for a difference, as far as pcinuma makes one: controllers, addresses, and the text's diff."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Any, Optional

from pcinuma.model import Controller
from pcinuma.printable import printable
from pcinuma.show.guest import Guest

_PASSWORD = re.compile(r"""(\bpasswd=)("[^"]*"|'[^']*')""")


@dataclass(frozen=True)
class Move:
    """A passthrough device whose guest address changes; None where libvirt has yet to choose one."""

    source: str
    before: Optional[str]
    after: Optional[str]


@dataclass(frozen=True)
class Changes:
    """The difference. ``changed``: controllers on both sides that are not the same (a port that becomes occupied)."""

    added: tuple[Controller, ...]
    removed: tuple[Controller, ...]
    changed: tuple[Controller, ...]
    moves: tuple[Move, ...]

    @classmethod
    def between(cls, before: Guest, after: Guest) -> Changes:
        """The changes that lead from ``before`` to ``after``."""
        old, new = before.domain.controllers, after.domain.controllers
        moves = []
        for device in after.domain.devices:
            earlier = before.device(device.source)
            if earlier is not None and earlier.address != device.address:
                moves.append(Move(device.source, _text(earlier.address), _text(device.address)))
        return cls(
            added=tuple(new[index] for index in sorted(set(new) - set(old))),
            removed=tuple(old[index] for index in sorted(set(old) - set(new))),
            changed=tuple(new[index] for index in sorted(set(new) & set(old)) if new[index] != old[index]),
            moves=tuple(moves),
        )

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "controllers_added": [controller_json(controller) for controller in self.added],
            "controllers_removed": [controller_json(controller) for controller in self.removed],
            "controllers_changed": [controller_json(controller) for controller in self.changed],
            "moves": [{"source": move.source, "before": move.before, "after": move.after} for move in self.moves],
        }


def controller_json(controller: Controller) -> dict[str, Any]:
    """A controller as plain data."""
    return {
        "index": controller.index,
        "model": controller.model,
        "address": _text(controller.address),
        "bus_nr": controller.bus_nr,
        "node": controller.node,
    }


def controller_words(controller: Controller) -> str:
    """A controller in a line, such as ``8  pcie-expander-bus, bus 40, cell 0``."""
    words = controller.model
    if controller.bus_nr is not None:
        words += f", bus {controller.bus_nr:02x}"
    if controller.node is not None:
        words += f", cell {controller.node}"
    if controller.address is not None and controller.address.bus:
        words += f", below {controller.address.bus}"
    return printable(words)


def diff(name: str, before: bytes, after: bytes) -> list[str]:
    """The unified diff of two definitions, passwords masked."""
    # A line at a time, as libvirt writes an element: a quote in somebody's description must not hide where a password begins.
    lines = [xml.decode("utf-8", "replace").split("\n") for xml in (before, after)]
    texts = [[_PASSWORD.sub(r"\1'***'", line) for line in text] for text in lines]
    return list(difflib.unified_diff(texts[0], texts[1], f"{name} (now)", f"{name} (planned)", lineterm=""))


def _text(address: object) -> Optional[str]:
    return None if address is None else str(address)
