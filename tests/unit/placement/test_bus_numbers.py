# SPDX-License-Identifier: LGPL-2.1-or-later
"""Bus numbers when other hands add bridges to a placed domain. Nobody but pcinuma checks them: the guest would just lose devices."""

from __future__ import annotations

from pathlib import Path

from pcinuma.engine import Request, place
from pcinuma.reason import Outcome, Reason
from tests.hosts.domains import Domain
from tests.hosts.machines import two_sockets


def _with_main_ports(xml: bytes, count: int) -> bytes:
    first = 1 + max(int(part.split(b"'")[0]) for part in xml.split(b"<controller type='pci' index='")[1:])
    ports = b"".join(
        b"    <controller type='pci' index='%d' model='pcie-root-port'>"
        b"<address type='pci' domain='0x0000' bus='0x00' slot='0x%02x' function='0x%x'/></controller>\n"
        % (first + n, 3 + n // 8, n % 8)
        for n in range(count)
    )
    return xml.replace(b"  </devices>", ports + b"  </devices>")


def _placed(root: Path) -> bytes:
    text = Domain().cells("0-1", "2-3").memnode(0, "0").memnode(1, "1").hostdev("17:00.0").hostdev("b3:00.0").formatted()
    result = place(text.encode() if isinstance(text, str) else text, Request(root=root))
    assert result.outcome is Outcome.PLACED
    return result.xml


def _busiest(xml: bytes) -> int:
    return min(int(part.split(b"'")[0]) for part in xml.split(b"busNr='")[1:])


def test_ports_that_somebody_adds_below_the_limit_change_nothing(tmp_path: Path) -> None:
    xml = _with_main_ports(_placed(two_sockets().write(tmp_path)), 40)
    assert place(xml, Request(root=tmp_path)).outcome is Outcome.UNCHANGED


def test_a_main_root_that_grew_into_an_expander_takes_the_placement_back(tmp_path: Path) -> None:
    placed = _placed(two_sockets().write(tmp_path))
    tight = placed.replace(b"busNr='%d'" % _busiest(placed), b"busNr='20'")
    result = place(_with_main_ports(tight, 40), Request(root=tmp_path))
    assert (result.outcome, result.reason) == (Outcome.FALLBACK, Reason.NO_ROOM)
    assert b"pcie-expander-bus" not in result.xml
    again = place(result.xml, Request(root=tmp_path))
    assert again.outcome is Outcome.PLACED and _busiest(again.xml) > 41
