# SPDX-License-Identifier: LGPL-2.1-or-later
"""What commands do to definitions, and what comes of it: values, and the interface of who does it (:mod:`pcinuma.cli.backend`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Mapping, NamedTuple, Optional, Protocol


@dataclass(frozen=True)
class Definition:
    """What was, or would be, done to a domain's inactive definition. ``report`` is that of ``place``; None for a revert.

    ``enabled``: whether pcinuma places the domain without being asked; None where this user may not know.
    """

    domain: str
    changed: bool
    before: bytes
    after: bytes
    report: Optional[Mapping[str, Any]]
    running: bool
    enabled: Optional[bool]


class Enabled(NamedTuple):
    """What came of enabling a domain. ``changed``: its definition, or whether it was enabled."""

    changed: bool
    report: Mapping[str, Any]


class Backend(Protocol):
    """What the commands that look at or change definitions need. A domain is a name or a UUID."""

    def names(self) -> list[str]:
        """The names of all persistent domains, sorted."""

    def place(
        self,
        domain: str,
        *,
        replan: bool = False,
        force: bool = False,
        dry_run: bool = False,
        cells: Optional[str] = None,
        memory: Optional[str] = None,
    ) -> Definition:
        """Place the inactive definition. ``force``: though the domain is not enabled. ``cells``, ``memory``: see the daemon's interface."""

    def revert(self, domain: str, *, dry_run: bool = False) -> Definition:
        """Take pcinuma's placement out of the inactive definition, and leave the domain alone from then on; nothing if there is none."""

    def enable(self, domain: str) -> Enabled:
        """Let pcinuma place the domain from now on, and place it."""

    def disable(self, domain: str, *, revert: bool) -> bool:
        """Leave the domain alone from now on, and with ``revert`` take the placement out: both or neither. Whether anything changed."""
