# SPDX-License-Identifier: LGPL-2.1-or-later
"""``pcinuma status --check``: is everything placed that may be placed? For what looks after many hosts (Ansible, Puppet, Nagios).

What the daemon remembers of a domain may be from before the host changed, so each domain that pcinuma may place is looked at anew, which
changes nothing (``PlaceDomain`` with ``dry_run``). It passes if its definition is what it should be and every device that the guest gets
is placed or need not be: policy ``required`` would be met (:func:`pcinuma.report.unmet`). Domains that a person keeps pcinuma off are
left alone: disabled ones, those that were there before, policy ``off``, somebody else's expander buses.

A daemon that cannot be asked, or has no libvirt, is an answer like any other: it cannot be told, and the check fails with that reason.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Mapping, Optional, Sequence

from pcinuma.daemon import client
from pcinuma.errors import DaemonError
from pcinuma.printable import command, printable
from pcinuma.reason import Reason
from pcinuma.report import DeviceReport, unmet
from pcinuma.show.describe import count
from pcinuma.show.words import missed, sentence, why

PATIENCE = 10.0
"""Seconds for an answer of the daemon."""
SETTLES = 5.0
"""Seconds in which it may finish looking at what has just been changed."""
_POLL = 0.1
_LEFT_ALONE = tuple(reason.value for reason in (Reason.NOT_ENABLED, Reason.POLICY_OFF, Reason.FOREIGN_EXPANDER))

_SAYS_NOTHING = (None, Reason.ALREADY_PLACED.value, Reason.NOTHING_TO_PLACE.value, Reason.RUNNING.value)
_REASONS = {reason.value: reason for reason in Reason}

Reply = Mapping[str, Any]


@dataclass
class Check:
    """What came of it. ``problems``: what keeps it from being known, or is wrong with the daemon; ``missing``: the domains that are not
    placed, each with ``domain``, ``uuid``, ``device`` (None: all of it), ``reason`` and ``message``."""

    problems: list[str] = field(default_factory=list)
    missing: list[dict[str, Any]] = field(default_factory=list)
    placed: list[str] = field(default_factory=list)
    left_alone: list[str] = field(default_factory=list)
    devices: int = 0

    @property
    def passed(self) -> bool:
        return not self.problems and not self.missing

    def as_json(self) -> dict[str, Any]:
        return {
            "passed": self.passed,
            "problems": self.problems,
            "missing": self.missing,
            "placed": self.placed,
            "left_alone": self.left_alone,
        }

    def line(self) -> str:
        """It in one line."""
        if self.passed:
            placed = f"{count(self.devices, 'device')} of {count(len(self.placed), 'domain')}"
            alone = f", {count(len(self.left_alone), 'domain')} left alone" if self.left_alone else ""
            return f"everything is placed that may be placed ({placed}{alone})"
        names = [f"{printable(each['domain'])} ({printable(each['reason'] or each['message'])})" for each in self.missing]
        parts = [f"not placed: {', '.join(names)}"] if names else []
        return "; ".join([*parts, *(f"problem: {printable(text)}" for text in self.problems)])


def status() -> dict[str, Any]:
    """What Status says once what has just been changed is dealt with, or after :data:`SETTLES`. Raises DaemonError."""
    until = time.monotonic() + SETTLES
    while True:
        found = client.call("Status", timeout=PATIENCE)
        if not found["pending"] or not found["libvirt"]["connected"] or time.monotonic() > until:
            return found
        time.sleep(_POLL)


def check(status: Reply) -> Check:
    """Look at the domains of an answer to Status."""
    found, libvirt = Check(list(status["problems"])), status["libvirt"]
    if not libvirt["connected"]:
        found.problems.append(f"the daemon is not connected to libvirt at {libvirt['uri']}: {libvirt['message'] or 'not yet'}")
        return found
    for domain in status["domains"]:
        try:
            _look(domain, found)
        except DaemonError as error:
            if _is_there(domain["uuid"]):
                found.missing.append(_missing(domain, None, None, error.sentence()))
    return found


def _look(domain: Reply, found: Check) -> None:
    if not domain["enabled"]:
        found.left_alone.append(domain["name"])
        return
    reply = client.call("PlaceDomain", {"domain": domain["uuid"], "dry_run": True}, timeout=PATIENCE)
    report = reply["report"]
    if not missed(report) and report["reason"] in _LEFT_ALONE:
        found.left_alone.append(domain["name"])
        return
    lacking = _lacking(domain, reply)
    if lacking is not None:
        found.missing.append(_missing(domain, *lacking))
        return
    placed = sum(bool(device["placed"]) for device in report["devices"])
    if placed:
        found.placed.append(domain["name"])
        found.devices += placed


def _lacking(domain: Reply, reply: Reply) -> Optional[tuple[Optional[str], Optional[str], str]]:
    """Device, reason and message of what is to be placed and is not."""
    report = reply["report"]
    if missed(report):
        return None, report["reason"], why(report)
    if reply["changed"]:
        if domain["contended"]:
            return None, Reason.CONTENDED.value, Reason.CONTENDED.sentence
        return None, None, f"its definition is not as the host is now; {command('plan', domain['name'])} shows what would change"
    device = unmet(_devices(report["devices"]))
    if device is None:
        return None
    code = next(each["reason"] for each in report["devices"] if each["source"] == device.source)
    if code is None or report["reason"] not in _SAYS_NOTHING:
        return device.source, report["reason"], why(report)
    return device.source, code, sentence(code)


def _devices(devices: Sequence[Reply]) -> list[DeviceReport]:
    # A reason that only a newer daemon knows excuses nothing.
    reports = [DeviceReport(**{name: each[name] for name in DeviceReport._fields}) for each in devices]
    return [each._replace(reason=each.reason and _REASONS.get(str(each.reason), Reason.INTERNAL)) for each in reports]


def _missing(domain: Reply, device: Optional[str], reason: Optional[str], message: str) -> dict[str, Any]:
    return {"domain": domain["name"], "uuid": domain["uuid"], "device": device, "reason": reason, "message": message}


def _is_there(uuid: str) -> bool:
    """Whether a domain that could not be looked at is still there."""
    try:
        return any(domain["uuid"] == uuid for domain in client.call("Status", timeout=PATIENCE)["domains"])
    except DaemonError:
        return True
