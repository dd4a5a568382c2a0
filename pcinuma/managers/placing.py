# SPDX-License-Identifier: LGPL-2.1-or-later
"""What both hooks do with a domain: the owner's wishes, which the manager has in its own form, go into pcinuma's metadata as
`pcinuma policy` would write them, and the engine places what comes of it.

The wishes stay in the XML where nothing is placed for a reason that is theirs (policy ``off``), since the daemon and libvirt's hook on
the same host read them there. Where placing fails, the XML is what it was. A wish that means nothing is such a failure, and is named.

A manager that keeps no metadata (``forgetful``) asks again with the layout that it was given before and without pcinuma's record of it. No
wish is left in XML that stays as it is then, and ``required`` is met by devices that are below an expander of their cell, whoever made it.
"""

from __future__ import annotations

import pickle
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Mapping, NamedTuple, Optional

from pcinuma.managers.isolated import LIMIT, isolated
from pcinuma.reason import Outcome, Reason

if TYPE_CHECKING:
    from pcinuma.report import Result

WISHES: Mapping[str, tuple[str, ...]] = {
    "policy": ("preferred", "required", "off"),
    "group-by": ("root-complex", "switch", "node"),
    "cells": ("auto", "off"),
    "link": ("host", "off"),
}
"""The owner's attributes of the metadata, and what each takes."""


class Wish(NamedTuple):
    """``value`` of an attribute, and the ``name`` by which the owner knows it."""

    name: str
    value: str


class Answer(NamedTuple):
    """``xml``: what to start, None where it stays as it is. ``refused``: policy ``required`` is not met. ``said``: for the log."""

    xml: Optional[bytes]
    refused: bool
    said: tuple[str, ...]


def answer(
    xml: bytes, wishes: Mapping[str, Wish], root: Path, seconds: float = LIMIT, *, policy_setting: str, forgetful: bool = False
) -> Answer:
    """Place the domain ``xml`` on the host below ``root``, in a process of its own. Never raises for what the XML or the host is like.
    ``policy_setting``: what the manager's users set the policy by."""
    required = wishes.get("policy", Wish("", "")).value == "required"
    for attribute, wish in wishes.items():
        if wish.value not in WISHES[attribute]:
            return Answer(None, required, (f"{wish.name} is {wish.value!r}, none of {', '.join(WISHES[attribute])}: nothing is placed",))
    try:
        work = partial(_placed, xml, {name: wish.value for name, wish in wishes.items()}, root, policy_setting, forgetful)
        found: Answer = pickle.loads(isolated(work, seconds))
        return found
    except Exception as error:
        return Answer(None, required, (f"placing failed, so nothing is placed ({error})",))


def _placed(xml: bytes, wishes: Mapping[str, str], root: Path, policy_setting: str, forgetful: bool) -> bytes:
    from pcinuma.domain.metadata import write_wishes
    from pcinuma.domain.xml import Document
    from pcinuma.engine import Request, place
    from pcinuma.settings import load_settings

    given = xml
    if wishes:
        document = Document(xml)
        write_wishes(document, wishes)
        given = document.serialise()
    result = place(given, Request(root=root, settings=load_settings(root), policy_setting=policy_setting))
    if result.refused and forgetful and _all_below_their_cells(xml, result):
        return pickle.dumps(Answer(None, False, ()))
    said = [*result.warnings]
    if result.message is not None:
        said.append(result.message)
    said += _unread(result.report(), root)
    same = result.xml == xml or (result.xml == given and (forgetful or result.outcome is Outcome.FALLBACK))
    kept = result.refused or same
    return pickle.dumps(Answer(None if kept else result.xml, result.refused, tuple(dict.fromkeys(said))))


def _all_below_their_cells(xml: bytes, result: Result) -> bool:
    """Whether each device of the domain ``xml`` whose host node is known is below an expander of the cell that stands for it."""
    from pcinuma.domain.read import parse_domain
    from pcinuma.placement.layout import Layout

    domain = parse_domain(xml)
    layout = Layout(domain)
    for device, line in zip(domain.devices, result.devices):
        if line.host_node is not None:
            expander = layout.expander_of(device.address.bus) if device.address is not None else None
            if expander is None or line.guest_cell is None or layout.controllers[expander].node != line.guest_cell:
                return False
    return all(line.reason in (None, Reason.NO_AFFINITY) for line in result.devices)


def _unread(report: Mapping[str, object], root: Path) -> list[str]:
    """What an unprivileged reader is not told, where it mattered."""
    from pcinuma.errors import HostError
    from pcinuma.host.place import DEVICES, HostReader
    from pcinuma.host.sysfs import Sysfs

    if report["group_by"] != "switch":
        return []
    reader, sysfs = HostReader(root), Sysfs(root)
    devices = report["devices"]
    assert isinstance(devices, list)
    try:
        bridges = {bridge for line in devices if line["device"] for bridge in reader.route(line["device"]).parents}
    except HostError:  # one that is gone; what stands was laid out when it was there
        return []
    short = sorted(bridge for bridge in bridges if len(sysfs.read_bytes(f"{DEVICES}/{bridge}/config", 128)) < 128)
    if not short:
        return []
    return [f"switches are taken from the bridges' order alone: this user cannot read the configuration space of {', '.join(short)}"]
