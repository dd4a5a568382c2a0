# SPDX-License-Identifier: LGPL-2.1-or-later
"""Domains that hand QEMU devices themselves: what would not start beside expanders is left alone, and starts; what is placed starts too.

No device of the test's host tree exists, so guests start without the passthrough devices; everything else is as pcinuma leaves it.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest
from lxml import etree

from pcinuma.domain.commandline import NOT_PCI
from pcinuma.engine import Request, place
from pcinuma.reason import Outcome, Reason
from tests.hosts.small import GPU_0, GPU_1, small_host
from tests.libvirt.domains import guest
from tests.libvirt.harness import PrivateLibvirt

NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"
MEMORY = ("-object", '{"qom-type":"memory-backend-ram","id":"looking-glass","size":1048576}')
"""By syntax. QEMU makes what is not in JSON before all that libvirt hands it, in JSON since 6.2: there it takes a slot of the main root."""
HANDED = {
    "json in single quotes": (*MEMORY, "-device", "{'driver':'ivshmem-plain','id':'shmem0','memdev':'looking-glass'}"),
    "json": ("--device", '{"driver":"edu"}'),
    "key=value": (*MEMORY, "--device", "ivshmem-plain,memdev=looking-glass"),
    "drive": ("-drive", "if=virtio,driver=null-co,read-zeroes=on"),
    "nic": ("-nic", "user,model=e1000e"),
}
HARMLESS = {
    "usb": ("-device", '{"driver":"usb-tablet"}'),
    "isa": ("-device", '{"driver":"isa-debugcon","iobase":1026,"chardev":"debug"}', "-chardev", "null,id=debug"),
    "global": ("-global", "pcie-root-port.x-speed=16"),
    "port": ("-device", '{"driver":"edu","bus":"pci.1"}'),
    "object": MEMORY,
}
"""Ports enough, and slot 1 of the main root free: what is not in JSON takes the first free slot there."""
EXTRA = "".join(
    f"<controller type='pci' index='{index}' model='pcie-root-port'>"
    f"<address type='pci' slot='2' function='{index - 1}'{' multifunction=' + repr('on') if index == 1 else ''}/></controller>"
    for index in range(1, 8)
)
EXTRA += "<controller type='usb' index='0' model='qemu-xhci'/>"


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateLibvirt]:
    with PrivateLibvirt(host_tree=small_host(tmp_path_factory.mktemp("host"))) as private:
        yield private


def written(*arguments: str) -> bytes:
    root = etree.fromstring(guest("handed", [GPU_0, GPU_1], extra=EXTRA))
    commandline = etree.SubElement(root, f"{{{NAMESPACE}}}commandline")
    for argument in arguments:
        etree.SubElement(commandline, f"{{{NAMESPACE}}}arg", value=argument)
    return etree.tostring(root)


def refusal(host: PrivateLibvirt, xml: bytes) -> str:
    """What libvirt says to a start of ``xml`` without its passthrough devices; nothing if it starts."""
    root = etree.fromstring(xml)
    devices = root.find("devices")
    for hostdev in devices.findall("hostdev"):
        devices.remove(hostdev)
    try:
        host.connect().createXML(etree.tostring(root).decode(), libvirt.VIR_DOMAIN_START_PAUSED).destroy()
    except libvirt.libvirtError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("syntax", HANDED)
def test_a_domain_that_hands_qemu_a_pci_device_starts_since_it_is_left_alone(host: PrivateLibvirt, syntax: str) -> None:
    assert host.host_tree is not None
    xml, request = written(*HANDED[syntax]), Request(host.host_tree)
    found = place(xml, request)
    assert (found.outcome, found.reason, found.xml) == (Outcome.UNCHANGED, Reason.QEMU_COMMANDLINE, xml)
    assert refusal(host, found.xml) == ""
    placed = place(written(), request)
    assert placed.outcome is Outcome.PLACED and refusal(host, placed.xml) == ""
    commandline = xml[xml.index(b"<ns0:commandline") : xml.index(b"</domain>")]
    handing = re.sub(rb"<ns0:commandline.*?(/>|</ns0:commandline>)", b"", placed.xml).replace(b"</domain>", commandline + b"</domain>")
    if syntax.startswith("json"):
        assert "pxb-pcie" in refusal(host, handing)
    back = place(handing, request)
    assert (back.outcome, back.reason) == (Outcome.FALLBACK, Reason.QEMU_COMMANDLINE)
    assert refusal(host, back.xml) == ""


@pytest.mark.parametrize("arguments", HARMLESS.values(), ids=HARMLESS)
def test_a_domain_that_hands_qemu_none_is_placed_and_starts(host: PrivateLibvirt, arguments: tuple[str, ...]) -> None:
    assert host.host_tree is not None
    found = place(written(*arguments), Request(host.host_tree))
    assert found.outcome is Outcome.PLACED, found.message
    assert refusal(host, found.xml) == ""


@pytest.mark.parametrize("emulator", ["qemu-system-x86_64", "qemu-system-aarch64", "qemu-system-ppc64"])
def test_no_model_that_counts_as_no_pci_device_is_one(emulator: str) -> None:
    if not Path("/usr/bin", emulator).exists():
        pytest.skip(f"{emulator} is not installed")
    told = subprocess.run([f"/usr/bin/{emulator}", "-device", "help"], capture_output=True, text=True, timeout=120, check=True).stdout
    models = dict(re.findall(r'^name "([^"]+)"(?:, bus ([^,\n]+))?', told, re.MULTILINE))
    assert "PCI" in models.values()
    assert {name for name, bus in models.items() if bus == "PCI" and name in NOT_PCI} == set()
    assert {alias for bus, alias in re.findall(r', bus (\w+), alias "([^"]+)"', told) if bus == "PCI" and alias in NOT_PCI} == set()
