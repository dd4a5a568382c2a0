# SPDX-License-Identifier: LGPL-2.1-or-later
"""``link = host`` on a real libvirt: what it keeps, what it hands to QEMU, and the whole life of it with the daemon and without."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest
from lxml import etree

from pcinuma.daemon.hypervisor import hypervisor_of
from pcinuma.engine import Request, place, revert
from tests.guest.handmade import plain
from tests.hosts.build import Host
from tests.hosts.machines import MACHINES
from tests.libvirt.conftest import require
from tests.libvirt.harness import PrivateLibvirt
from tests.libvirt.running_daemon import RunningDaemon
from tests.libvirt.test_command import SECURE, Command

GPU, NIC = "0000:17:00.0", "0000:b3:00.0"
QEMU = "{http://libvirt.org/schemas/domain/qemu/1.0}"


def linked() -> Host:
    """The port above 17:00.0 is PCIe 5.0 x16, the one above b3:00.0 has 8 lanes of PCIe 3.0."""
    made = MACHINES["two-sockets"]()
    made.functions["0000:16:00.0"].link = ("32.0 GT/s PCIe", "16")
    made.functions["0000:b2:00.0"].link = ("8.0 GT/s PCIe", "8")
    return made


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateLibvirt]:
    require()
    with PrivateLibvirt(host_tree=linked().write(tmp_path_factory.mktemp("host"))) as host:
        yield host


@pytest.fixture
def connection(host: PrivateLibvirt) -> Iterator[libvirt.virConnect]:
    connection = host.connect()
    if connection.getLibVersion() < 8_002_000:
        pytest.skip("this libvirt has no <qemu:override> (8.2 does)")
    yield connection
    for domain in connection.listAllDomains():
        domain.undefine()


def inactive(domain: libvirt.virDomain) -> str:
    return str(domain.XMLDesc(SECURE))


def told(xml: str) -> dict[str, dict[str, str]]:
    """What the overrides of the domain say, by alias."""
    devices = etree.fromstring(xml).iterfind(f"{QEMU}override/{QEMU}device")
    return {d.get("alias"): {p.get("name"): p.get("value") for p in d.iter(f"{QEMU}property")} for d in devices}


def expected(connection: libvirt.virConnect) -> list[dict[str, str]]:
    fast = connection.getVersion() >= 9_000_000
    first = {"x-speed": "32", "x-width": "16"} if fast else {"x-width": "16"}
    return [first, {"x-speed": "8", "x-width": "8"}]


def test_libvirt_says_which_qemu_it_has(host: PrivateLibvirt, connection: libvirt.virConnect) -> None:
    known = hypervisor_of(connection)
    assert known is not None and known.emulator == "/usr/bin/qemu-system-x86_64" and known.arch == "x86_64"
    said = host.run(["qemu-system-x86_64", "--version"]).stdout
    assert f"version {known.qemu[0]}.{known.qemu[1]}." in said


@pytest.mark.parametrize("machine", ["q35", "virt"])
def test_qemu_gets_what_was_written(machine: str, host: PrivateLibvirt, connection: libvirt.virConnect, tmp_path: Path) -> None:
    """libvirt's own alias of a PCI controller is pci.N, and a string is the type that QEMU's enumerations take."""
    arch = {"q35": "x86_64", "virt": "aarch64"}[machine]
    if not (host.root / f"usr/bin/qemu-system-{arch}").exists():
        pytest.skip(f"qemu-system-{arch} is not installed")
    xml = plain([GPU, NIC], {0: 0, 1: 1}, addresses=False).replace(b"<cpu>", b"<features><acpi/></features><cpu>")
    xml = re.sub(rb"<type arch='x86_64' machine='[^']*'", f"<type arch='{arch}' machine='{machine}'".encode(), xml)
    if machine == "virt":
        xml = xml.replace(b"<os>", b"<os firmware='efi'>")
    result = place(xml, Request(root=linked().write(tmp_path), link=True))
    kept = inactive(connection.defineXML(result.xml.decode()))
    aliases = told(kept)
    assert sorted(map(str, aliases.values())) == sorted(map(str, [{"x-width": "16"}, {"x-speed": "8", "x-width": "8"}]))
    bare = re.sub(r"<(numatune|hostdev)\b.*?</\1>", "", kept, flags=re.DOTALL)  # this machine has neither the nodes nor the devices
    native = connection.domainXMLToNative("qemu-argv", bare, 0)
    ports = [json.loads(device) for device in re.findall(r"-device '(\{[^']*\})'", native) if '"pcie-root-port"' in device]
    given = {port["id"]: {name: port[name] for name in ("x-speed", "x-width") if name in port} for port in ports}
    assert {alias: properties for alias, properties in given.items() if properties} == aliases
    assert revert(kept.encode()).xml.count(b"qemu:") == 0


@pytest.mark.parametrize("with_daemon", [False, True])
def test_on_off_and_back_again(with_daemon: bool, host: PrivateLibvirt, connection: libvirt.virConnect) -> None:
    pcinuma = Command(host)
    raw = plain([GPU, NIC], {0: 0, 1: 1}, addresses=False).replace(b">lab<", b">vm1<").decode()
    domain = connection.defineXML(inactive(connection.defineXML(raw)))  # twice: libvirt sorts the controllers that it added itself
    before = inactive(domain)
    if with_daemon:
        with RunningDaemon(host) as daemon:
            _on_off_and_back_again(domain, before, pcinuma, connection)
            assert daemon.settle()
    else:
        _on_off_and_back_again(domain, before, pcinuma, connection)


def _on_off_and_back_again(domain: libvirt.virDomain, before: str, pcinuma: Command, connection: libvirt.virConnect) -> None:
    pcinuma("apply", "vm1")
    plain_xml = inactive(domain)
    pcinuma("policy", "vm1", "--link", "host")
    owned = inactive(domain)
    if not told(owned):  # nobody looked at it: there is no daemon
        assert "tainted (custom-device)" in " ".join(pcinuma("plan", "vm1").split())
        pcinuma("apply", "vm1")
    written = inactive(domain)
    assert list(told(written).values()) == expected(connection)
    slow = connection.getVersion() < 9_000_000
    said = " ".join(pcinuma("explain", "vm1").split())
    assert ("knows no such speed" in said) is slow
    assert "tainted (custom-device)" in said
    pcinuma("apply", "vm1")
    pcinuma("apply", "vm1", "--replan")
    assert inactive(domain) == written

    hostdevs = re.findall(r"<hostdev.*?</hostdev>\s*", written, flags=re.DOTALL)
    connection.defineXML(written.replace(next(hostdev for hostdev in hostdevs if "bus='0xb3'" in hostdev), ""))
    pcinuma("apply", "vm1")
    assert list(told(inactive(domain)).values()) == expected(connection)[:1]

    connection.defineXML(written)
    pcinuma("apply", "vm1")
    assert inactive(domain) == written
    pcinuma("policy", "vm1", "--link", "default")
    pcinuma("apply", "vm1")
    assert inactive(domain) == plain_xml
    pcinuma("policy", "vm1", "--link", "host")
    pcinuma("apply", "vm1")
    pcinuma("policy", "vm1", "--link", "default")
    pcinuma("revert", "vm1")
    assert inactive(domain) == before
