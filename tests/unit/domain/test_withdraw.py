# SPDX-License-Identifier: LGPL-2.1-or-later
"""Taking a placement back out when other hands were at the domain in between."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pcinuma.engine import Request, place, revert
from pcinuma.reason import Outcome
from pcinuma.settings import GroupBy, Settings
from tests.hosts.domains import Domain
from tests.hosts.edits import with_device
from tests.hosts.libvirt_format import define, missing
from tests.hosts.machines import two_sockets


def _placed(root: Path) -> bytes:
    domain = Domain().cells("0-1", "2-3").memnode(0, "0").memnode(1, "1").hostdev("17:00.0").hostdev("18:00.0")
    text = domain.formatted()
    return place(text.encode() if isinstance(text, str) else text, Request(root=root, settings=Settings())).xml


def _hostdevs(xml: bytes) -> list[bytes]:
    return re.findall(rb"    <hostdev.*?</hostdev>\n", xml, re.DOTALL)


def _guest_addresses(xml: bytes) -> list[bytes]:
    return [match for hostdev in _hostdevs(xml) for match in re.findall(rb"</source>\s*<address ([^>]*)/>", hostdev)]


def test_a_device_whose_old_address_went_to_another_is_left_to_libvirt(tmp_path: Path) -> None:
    placed = _placed(two_sockets().write(tmp_path))
    _, second = _hostdevs(placed)
    gone = place(placed.replace(second, b""), Request(root=tmp_path)).xml
    # libvirt gives the returning device the first free port, and that is where the other one once was
    bus = re.findall(rb"<pcinuma:device source='0000:17:00.0' domain='0x0000' bus='(0x..)'", placed)[0]
    returned = re.sub(rb"(</source>\s*<address type='pci' domain='0x0000' bus=')0x..", rb"\g<1>" + bus, second)
    kept = _hostdevs(gone)[0]
    again = place(gone.replace(kept, kept + returned), Request(root=tmp_path)).xml
    addresses = _guest_addresses(revert(again).xml)
    assert len(addresses) == 1 and b"bus='" + bus + b"'" in addresses[0]


def test_a_vacated_address_that_an_emulated_device_took_is_not_given_twice(tmp_path: Path) -> None:
    placed = _placed(two_sockets().write(tmp_path))
    bus = re.findall(rb"<pcinuma:device source='0000:17:00.0' domain='0x0000' bus='(0x..)'", placed)[0]
    foreign = b"    <rng model='virtio'><address type='pci' domain='0x0000' bus='" + bus + b"' slot='0x00' function='0x0'/></rng>\n"
    taken_back = revert(placed.replace(b"  </devices>", foreign + b"  </devices>")).xml
    assert not any(b"bus='" + bus + b"'" in address for address in _guest_addresses(taken_back))


@pytest.mark.parametrize("keep", [False, True])
def test_a_device_that_libvirt_put_on_an_emptied_port_of_ours_leaves_it(keep: bool, tmp_path: Path) -> None:
    """Attached while the domain was disabled, say, when no port of the main root was free: pcinuma has no record of it."""
    placed = _placed(two_sockets().write(tmp_path))
    source = b"bus='%s' slot='0x00' function='0x0'/>\n      </source>"
    attached = placed.replace(source % b"0x17", source % b"0x65")
    assert attached != placed
    if keep:
        attached = attached.replace(b"<pcinuma:placement", b"<pcinuma:keep device='0000:65:00.0'/><pcinuma:placement")
    back = revert(attached).xml
    assert (b"pcie-expander-bus" in back) is keep
    assert len(_guest_addresses(back)) == (2 if keep else 1)


@pytest.mark.parametrize("stood", ["", "  <metadata/>\n", "  <metadata>\n    <p:pcinuma xmlns:p='urn:pcinuma:domain:1'/>\n  </metadata>\n"])
def test_metadata_that_was_empty_is_so_again_and_what_was_not_there_is_gone(stood: str, tmp_path: Path) -> None:
    root = two_sockets().write(tmp_path)
    plain = Domain().cells("0-1", "2-3").memnode(0, "0").memnode(1, "1").hostdev("17:00.0").formatted()
    given = plain.replace(b"</uuid>\n", b"</uuid>\n" + stood.encode())
    placed = place(given, Request(root=root)).xml
    assert revert(placed).xml == given
    more = place(with_device("18:00.0")(placed), Request(root=root))  # written anew
    assert more.outcome is Outcome.PLACED
    assert revert(more.xml).xml.count(b"metadata") == given.count(b"metadata")
    afresh = place(placed, Request(root=root, replan=True, group_by=GroupBy.NODE)).xml
    assert b"node" in afresh and revert(afresh).xml == given
    if missing():
        pytest.skip(f"the real libvirt: {missing()}")
    ((kept, error),) = define([placed])
    assert error is None and kept is not None
    (as_it_was, _), (back, _) = define([given, revert(kept).xml])
    assert back == as_it_was
