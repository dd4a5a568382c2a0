# SPDX-License-Identifier: LGPL-2.1-or-later
"""libvirt's domain events as they arrive in the test process."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Any, Optional

import libvirt

from tests.libvirt.harness import PrivateLibvirt

DEFINED = libvirt.VIR_DOMAIN_EVENT_DEFINED
ADDED = libvirt.VIR_DOMAIN_EVENT_DEFINED_ADDED
UPDATED = libvirt.VIR_DOMAIN_EVENT_DEFINED_UPDATED

_loop: Optional[threading.Thread] = None


def _run_loop() -> None:
    """libvirt has one event loop a process, and it must be there before the connection that uses it."""
    global _loop
    if _loop is None:
        libvirt.virEventRegisterDefaultImpl()
        _loop = threading.Thread(target=_turn, name="libvirt-events", daemon=True)
        _loop.start()


def _turn() -> None:
    while True:
        libvirt.virEventRunDefaultImpl()


@dataclass
class Listener:
    """Collects lifecycle events while its context lasts: ``seen`` holds (time.monotonic(), domain's name, event, detail)."""

    host: PrivateLibvirt
    seen: list[tuple[float, str, int, int]] = field(default_factory=list)

    def __enter__(self) -> Listener:
        _run_loop()
        self._connection = libvirt.open(self.host.uri)
        self._id = self._connection.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._on_event, None)
        return self

    def __exit__(self, *_error: object) -> None:
        self._connection.domainEventDeregisterAny(self._id)
        self._connection.close()

    def _on_event(self, _connection: Any, domain: libvirt.virDomain, event: int, detail: int, _opaque: Any) -> None:
        self.seen.append((time.monotonic(), domain.name(), event, detail))

    def details(self, name: str, event: int = DEFINED) -> list[int]:
        """The details of a domain's events of one kind, in order."""
        return [detail for _, domain, kind, detail in self.seen if (domain, kind) == (name, event)]

    def first(self, name: str, detail: int, event: int = DEFINED) -> Optional[float]:
        """When a domain's first event of this kind arrived."""
        times = [moment for moment, domain, kind, what in self.seen if (domain, kind, what) == (name, event, detail)]
        return times[0] if times else None
