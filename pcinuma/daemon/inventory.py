# SPDX-License-Identifier: LGPL-2.1-or-later
"""The domains as libvirt's listing and events tell of them, and what is remembered of each in this process.

Values of the event loop, but for :func:`list_domains`, which asks libvirt and raises libvirtError.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from dataclasses import dataclass, field
from typing import Optional

import libvirt

from pcinuma.daemon.contention import Contention
from pcinuma.daemon.debounce import Debounce
from pcinuma.daemon.definition import Prefetched
from pcinuma.settings import Policy

NOT_SETTLED = b"", -math.inf


@dataclass
class Known:
    """One domain.

    ``state``: as ``virsh domstate`` says it. ``owner``: the policy in its own metadata. ``absent``: whether it waits for a device.
    ``changed``: somebody changed its definition since the last look. ``looked_at``: the number of libvirt's write that the last look was at
    (:mod:`~pcinuma.daemon.definition_files`); ``noted``: the one that a look is due for, or began after. ``debounce``: the latest changes;
    ``debounce_timer``: set while their end is waited for. ``prefetched``: what libvirt was asked when it last said that the domain was
    defined. ``own_events``: definitions of our own that libvirt has yet to tell of. ``settled``: the definition that the last look found
    right (:func:`fingerprint`), and when that was.
    """

    domain: libvirt.virDomain
    state: Optional[str] = None
    contention: Contention = field(default_factory=Contention)
    owner: Optional[Policy] = None
    absent: bool = False
    changed: bool = False
    looked_at: int = 0
    noted: int = 0
    debounce: Debounce = field(default_factory=Debounce)
    debounce_timer: Optional[asyncio.TimerHandle] = None
    prefetched: Optional[Prefetched] = None
    own_events: int = 0
    settled: tuple[bytes, float] = NOT_SETTLED


def fingerprint(definition: bytes) -> bytes:
    """Stands for a definition that is not worth keeping."""
    return hashlib.sha256(definition).digest()


_STATES = {
    libvirt.VIR_DOMAIN_RUNNING: "running",
    libvirt.VIR_DOMAIN_BLOCKED: "running",
    libvirt.VIR_DOMAIN_PAUSED: "paused",
    libvirt.VIR_DOMAIN_SHUTDOWN: "in shutdown",
    libvirt.VIR_DOMAIN_SHUTOFF: "shut off",
    libvirt.VIR_DOMAIN_CRASHED: "crashed",
    libvirt.VIR_DOMAIN_PMSUSPENDED: "pmsuspended",
}
STATE_AFTER = {
    libvirt.VIR_DOMAIN_EVENT_STARTED: "running",
    libvirt.VIR_DOMAIN_EVENT_RESUMED: "running",
    libvirt.VIR_DOMAIN_EVENT_SUSPENDED: "paused",
    libvirt.VIR_DOMAIN_EVENT_STOPPED: "shut off",
    libvirt.VIR_DOMAIN_EVENT_CRASHED: "crashed",
    libvirt.VIR_DOMAIN_EVENT_PMSUSPENDED: "pmsuspended",
}


def list_domains(connection: libvirt.virConnect) -> dict[str, tuple[libvirt.virDomain, Optional[str]]]:
    """Every domain by UUID, with its state. A domain that goes away meanwhile is left out."""
    found: dict[str, tuple[libvirt.virDomain, Optional[str]]] = {}
    for domain in connection.listAllDomains(0):
        state: Optional[str] = "shut off"
        if domain.ID() != -1:
            try:
                state = _STATES.get(domain.state()[0])
            except libvirt.libvirtError:
                continue
        found[domain.UUIDString()] = (domain, state)
    return found
