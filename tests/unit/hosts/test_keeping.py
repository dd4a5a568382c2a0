# SPDX-License-Identifier: LGPL-2.1-or-later
"""The model of what libvirt keeps, held against the real libvirt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pcinuma.engine import Request, place, revert
from pcinuma.settings import GroupBy, Settings
from tests.hosts.domains import Domain, two_cells
from tests.hosts.edits import with_device, without_device
from tests.hosts.guest import Guest
from tests.hosts.keeping import kept
from tests.hosts.libvirt_format import define, missing
from tests.hosts.machines import MACHINES


def _pci(xml: bytes) -> tuple[Any, ...]:
    guest = Guest.of(xml)
    controllers = [(c.index, c.model, c.at, c.bus_nr, c.node, c.chassis, c.hotplug) for c in guest.controllers.values()]
    endpoints = [(e.name, e.at) for e in guest.endpoints if not e.name.startswith("controller")]
    return sorted(controllers, key=str), sorted(endpoints, key=str)


def _documents(root: Path) -> list[bytes]:
    found: list[bytes] = []
    for domain in (two_cells().nic().hostdev("24:00.0").hostdev("54:00.0").hostdev("b4:00.0"), two_cells().hostdev("24:00.0").disk()):
        raw = domain.raw()
        for group_by in GroupBy:
            placed = place(raw, Request(root, group_by=group_by, settings=Settings(spare_ports=group_by is GroupBy.NODE))).xml
            found += [raw, placed, kept(placed), with_device("25:00.0")(kept(placed)), revert(with_device("25:00.0")(kept(placed))).xml]
            more = kept(with_device("25:00.0")(kept(placed)))
            found += [revert(more).xml, place(without_device("24:00.0")(more), Request(root, group_by=group_by, replan=True)).xml]
    found.append(two_cells().controller(4, "pcie-root-port", "", "00:05.0").nic().hostdev("24:00.0").raw())  # a gap
    found.append(place(found[-1], Request(root)).xml)
    found.append(Domain().on("pc").cells("0-1", "2-3").nic().hostdev("24:00.0").hostdev("54:00.0").raw())
    return found


def test_the_model_keeps_what_the_real_libvirt_keeps(tmp_path: Path) -> None:
    if missing():
        pytest.skip(f"the real libvirt: {missing()}")
    documents = _documents(MACHINES["eight-gpus"]().write(tmp_path))
    for document, (xml, error) in zip(documents, define(documents)):
        assert xml is not None, f"{error}\n{document.decode()}"
        mine, theirs = _pci(kept(document)), _pci(xml)
        assert mine == theirs, document.decode()
