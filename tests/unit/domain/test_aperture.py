# SPDX-License-Identifier: LGPL-2.1-or-later
"""How much UEFI firmware keeps for BARs: what a domain says, what the host's CPUs say, and the range that edk2 makes of both."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Optional

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import etree

from pcinuma.domain.aperture import read_firmware
from pcinuma.domain.xml import parts_of
from pcinuma.engine import Request, place
from pcinuma.host.place import HostReader
from pcinuma.model import Cpu, Firmware, Manager
from pcinuma.placement.aperture import Aperture, firmware_range
from pcinuma.reason import Outcome, Reason
from tests.hosts.domains import two_cells
from tests.hosts.machines import MACHINES

GIB, TIB = 1 << 30, 1 << 40
AMD, INTEL = "AuthenticAMD", "GenuineIntel"
TOLD = "<commandline xmlns='http://libvirt.org/schemas/domain/qemu/1.0'><arg value='-fw_cfg'/><arg value='{}'/></commandline>"


def _firmware(top: str = "", system: str = "firmware='efi'", loader: str = "", kind: str = "machine='q35'") -> Optional[Firmware]:
    root = etree.fromstring(f"<domain type='kvm'><os {system}><type {kind}>hvm</type>{loader}</os>{top}</domain>")
    element = root.find("os")
    assert element is not None
    return read_firmware(root, element, parts_of(element))


def _range(cpu: str, bits: Optional[int] = 46, vendor: Optional[str] = INTEL, pages: bool = True, top: str = "") -> tuple[Any, ...]:
    firmware = _firmware(cpu + top)
    assert firmware is not None
    return firmware_range(firmware, vendor, bits, pages)


MATRIX = [
    # vendor, bits, told GiB, range GiB: the larger one for 2022.11 to 2025.02, and all that there is where nothing is told
    (AMD, 36, None, 32), (AMD, 39, None, 32), (AMD, 40, None, 128), (AMD, 46, None, 8192),
    (INTEL, 36, None, 32), (INTEL, 39, None, 64), (INTEL, 40, None, 32), (INTEL, 46, None, 8192),
    (AMD, 36, 16, 16), (AMD, 39, 16, 16), (AMD, 40, 16, 128), (AMD, 46, 16, 8192),
    (INTEL, 36, 16, 16), (INTEL, 39, 16, 64), (INTEL, 40, 16, 16), (INTEL, 46, 16, 8192),
    (AMD, 40, 256, 256), (AMD, 46, 256, 8192), (INTEL, 39, 256, 256), (INTEL, 40, 256, 256), (INTEL, 46, 256, 8192),
    (INTEL, 41, None, 256), (AMD, 52, None, 8192), (INTEL, 38, None, 32), ("HygonGenuine", 40, None, 32), ("HygonGenuine", 43, None, 1024),
    (None, 39, None, 64), (None, 40, None, 128),
]  # fmt: skip


@pytest.mark.parametrize(("vendor", "bits", "told", "size"), MATRIX)
def test_the_range_is_edk2s(vendor: Optional[str], bits: int, told: Optional[int], size: int) -> None:
    firmware = Firmware(None, None if told is None else told * GIB, 4 * GIB, Cpu(None, None, None, None, False), Manager.LIBVIRT)
    found = firmware_range(firmware, vendor, bits, True)
    assert found.size == size * GIB
    assert found.least == (size if told is None else told) * GIB


def test_memory_that_leaves_no_eighth_of_the_space_leaves_the_classic_range() -> None:
    """``PlatformDynamicMmioWindow``: only where the classic range's begin and the eighth stay below the end of the space."""
    for memory, size in ((512, 128), (860, 128), (863, 32), (920, 32)):
        assert _range(f"<memory unit='GiB'>{memory}</memory>", vendor=AMD)[0] == size * GIB
    pluggable = "<memory unit='GiB'>64</memory><maxMemory slots='16' unit='GiB'>1000</maxMemory>"
    assert _range(pluggable, vendor=AMD)[0] == 32 * GIB


HOSTS_CPU = "<cpu mode='host-passthrough'>{}</cpu>"
CPUS = [
    ("no CPU", "", 40),
    ("a named model", "<cpu><model>Cascadelake-Server</model></cpu>", 40),
    ("the host's model", "<cpu mode='host-model'/>", 40),
    ("the host's CPU", HOSTS_CPU.format(""), 46),
    ("all that QEMU can", "<cpu mode='maximum'/>", 46),
    ("the host's bits for a model", "<cpu mode='host-model'><maxphysaddr mode='passthrough'/></cpu>", 46),
    ("fewer bits than the host's", HOSTS_CPU.format("<maxphysaddr mode='passthrough' limit='39'/>"), 39),
    ("a limit above the host's", HOSTS_CPU.format("<maxphysaddr mode='passthrough' limit='52'/>"), 46),
    ("emulated bits", "<cpu><model>Skylake-Server</model><maxphysaddr mode='emulate' bits='42'/></cpu>", 42),
    ("emulated bits of the host's CPU", HOSTS_CPU.format("<maxphysaddr mode='emulate' bits='43'/>"), 43),
    ("41 bits and more need pages of 1 GiB", "<cpu><model>Westmere</model><maxphysaddr mode='emulate' bits='44'/></cpu>", -128),
    ("which can be added", "<cpu><model>Westmere</model><feature name='pdpe1gb'/><maxphysaddr mode='emulate' bits='44'/></cpu>", 44),
    ("and taken away", HOSTS_CPU.format("<feature policy='disable' name='pdpe1gb'/>"), -128),
]  # fmt: skip


@pytest.mark.parametrize(("cpu", "bits"), [case[1:] for case in CPUS], ids=[case[0] for case in CPUS])
def test_the_guests_address_bits_follow_its_cpu(cpu: str, bits: int) -> None:
    """With an Intel host of 46 bits; a negative number is the range itself, in GiB."""
    expected = -bits * GIB if bits < 0 else 32 * GIB if bits == 40 else 1 << (bits - 3)
    assert _range(cpu)[0] == expected


def test_a_model_has_the_hosts_vendor_unless_it_is_given_another() -> None:
    model = "<cpu><model{}>EPYC</model></cpu>"
    assert _range(model.format(""))[0] == 32 * GIB
    assert _range(model.format(" vendor_id='AuthenticAMD'"))[0] == 128 * GIB
    assert _range(model.format(" vendor_id='GenuineIntel'"), vendor=AMD)[0] == 32 * GIB
    assert _range(model.format(""), vendor=AMD)[0] == 128 * GIB


def test_machine_types_that_give_every_model_the_hosts_bits() -> None:
    for machine in ("pc-q35-rhel9.4.0", "pc-q35-jammy-hpb"):
        firmware = _firmware("<cpu><model>Icelake-Server</model></cpu>", kind=f"machine='{machine}'")
        assert firmware is not None and firmware_range(firmware, INTEL, 46, True).size == 8 * TIB


def test_without_the_hosts_bits_nothing_is_known() -> None:
    assert _range(HOSTS_CPU.format(""), bits=None)[0] is None


SAYS_UEFI = [
    ("firmware='efi'", "", True),
    ("firmware='bios'", "<loader>/x/OVMF.fd</loader>", False),
    ("", "", False),
    ("", "<loader type='pflash'>/x/code.bin</loader>", True),
    ("", "<loader type='rom'>/usr/share/ovmf/OVMF.inteltdx.fd</loader>", True),
    ("", "<loader type='rom'>/usr/share/edk2/ovmf/OVMF.amdsev.fd</loader>", True),
    ("", "<loader>/usr/share/edk2/ovmf/OVMF.fd</loader>", True),
    ("", "<loader readonly='yes'>/usr/share/qemu/ovmf-x86_64.bin</loader>", True),
    ("", "<loader type='rom'>/opt/td-shim/final.bin</loader>", True),
    ("", "<loader type='rom'>/usr/share/seabios/bios-256k.bin</loader>", False),
    ("", "<loader>/usr/share/qemu/bios.bin</loader>", False),
    ("", "<loader>/usr/share/qemu/qboot.rom</loader>", False),
    ("", "<loader/>", False),
]  # fmt: skip


@pytest.mark.parametrize(("system", "loader", "uefi"), SAYS_UEFI)
def test_a_rom_is_uefi_unless_its_name_is_a_bioss(system: str, loader: str, uefi: bool) -> None:
    assert (_firmware(system=system, loader=loader) is not None) is uefi


@pytest.mark.parametrize(
    "arguments", [("-bios", "/usr/share/ovmf/OVMF.fd"), ("-drive", "if=pflash,format=raw,file=/x"), ("-machine", "pflash0=a")]
)
def test_firmware_that_is_handed_to_qemu_itself_counts(arguments: tuple[str, str]) -> None:
    head = "<commandline xmlns='http://libvirt.org/schemas/domain/qemu/1.0'>"
    xml = "".join(f"<arg value='{argument}'/>" for argument in arguments)
    assert _firmware(f"{head}{xml}</commandline>", system="") is not None
    assert _firmware(f"{head}<arg value='-bios'/></commandline>", system="") is None


@pytest.mark.parametrize("kind", ["sev", "sev-snp", "tdx"])
def test_a_confidential_guest_has_uefi(kind: str) -> None:
    assert _firmware(f"<launchSecurity type='{kind}'/>", system="") is not None
    assert _firmware(f"<launchSecurity type='{kind}'/>", system="", kind="machine='pseries'") is None


@pytest.mark.parametrize(
    ("argument", "gib"),
    [
        ("name=opt/ovmf/X-PciMmio64Mb,string=65536", 64), ("opt/ovmf/X-PciMmio64Mb,string=65536", 64),
        ("string=65536,name=opt/ovmf/X-PciMmio64Mb", 64), ("name=opt/ovmf/X-PciMmio64Mb,string=65537", 65),
        ("name=opt/ovmf/X-PciMmio64Mb,string=16777216", 16384), ("name=opt/ovmf/X-PciMmio64Mb,string=16777217", None),
        ("name=opt/ovmf/X-PciMmio64Mb,string=0x10000", None), ("name=opt/ovmf/X-PciMmio64Mb,file=/x", None),
        ("name=opt/ovmf/X-PciMmio64Mb,string=-1", None), ("name=opt/ovmf/X-PciMmio64Mb,string=" + "9" * 5000, None),
        ("name=opt/ovmf/X-Other,string=65536", None),
    ],
)  # fmt: skip
def test_what_the_firmware_is_told_is_read_as_the_firmware_reads_it(argument: str, gib: Optional[int]) -> None:
    firmware = _firmware(TOLD.format(argument))
    assert firmware is not None and firmware.told == (None if gib is None else gib * GIB)
    if argument.startswith("name=") and "file" not in argument:
        name, text = argument[5:].split(",string=")
        firmware = _firmware(f"<sysinfo type='fwcfg'><entry name='{name}'>{text}</entry></sysinfo>")
        assert firmware is not None and firmware.told == (None if gib is None else gib * GIB)


CPUINFO = "processor\t: 0\nvendor_id\t: {}\nflags\t\t: fpu {}\naddress sizes\t: {} bits physical, 48 bits virtual\n\nvendor_id: x\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (CPUINFO.format(INTEL, "pdpe1gb", 46), (INTEL, 46, True)),
        (CPUINFO.format(INTEL, "lm", 36), (INTEL, 36, False)),
        (CPUINFO.format(AMD, "pdpe1gb", 43), (AMD, 43, True)),
        (CPUINFO.format(AMD, "pdpe1gb sme sev", 43), (AMD, 48, True)),
        ("address sizes\t: 40 bits physical\n", (None, 40, True)),
        ("address sizes\t: many bits\nvendor_id :\n", (None, None, True)),
        ("", (None, None, True)),
        ("\0" * 9000, (None, None, True)),
    ],
)
def test_the_hosts_cpus_say_what_qemu_will_see(text: str, expected: tuple[Optional[str], Optional[int], bool], tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text(text)
    assert tuple(HostReader(tmp_path).cpu()) == (*expected, None, None)


# What the engine makes of it.


def _gpu(cpu: str, told_mib: int = 0, loader: str = "", manager: str = "") -> bytes:
    """One GPU with a BAR of 64 GiB: 64 GiB and a little on the main root, 128 GiB on an expander."""
    domain = two_cells().hostdev("24:00.0")
    if told_mib:
        domain.commandline("-fw_cfg", f"name=opt/ovmf/X-PciMmio64Mb,string={told_mib}")
    xml = domain.raw().replace(b"<os>", b"<os>" + loader.encode() if loader else b"<os firmware='efi'>")
    if manager:
        xml = xml.replace(b"</name>", f"</name>\n  <metadata>{manager}</metadata>".encode(), 1)
    return xml.replace(b"<cpu mode='custom' match='exact'>", f"<cpu mode='{cpu}'>".encode())


def _host(folder: Path, vendor: str, bits: int) -> Request:
    root = MACHINES["eight-gpus"]().write(folder)
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc/cpuinfo").write_text(CPUINFO.format(vendor, "pdpe1gb", bits))
    return Request(root=root)


def test_a_size_that_is_told_is_a_lower_bound_and_a_caution(tmp_path: Path) -> None:
    """Told 64 GiB, a CPU of 48 bits: the firmware of most versions has 8 TiB, that of others 64 GiB, too few for an expander."""
    request = _host(tmp_path, AMD, 48)
    xml = _gpu("host-passthrough", told_mib=65 * 1024)
    result = place(xml, request)
    assert result.outcome is Outcome.PLACED
    assert result.message is not None and "keep no more than they are told" in result.message and result.message in result.warnings
    again = place(result.xml, request)
    assert (again.outcome, again.xml) == (Outcome.UNCHANGED, result.xml)
    plenty = place(_gpu("host-passthrough", told_mib=256 * 1024), request)
    assert (plenty.outcome, plenty.message, plenty.warnings) == (Outcome.PLACED, None, ())


def test_a_standing_placement_that_firmware_can_map_is_never_taken_back(tmp_path: Path) -> None:
    placed = place(_gpu("host-passthrough"), _host(tmp_path, AMD, 48)).xml
    for told in (16, 64, 65, 127, 256):
        smaller = placed.replace(b"</domain>", TOLD.format(f"name=opt/ovmf/X-PciMmio64Mb,string={told * 1024}").encode() + b"</domain>")
        assert place(smaller, Request(root=tmp_path)).outcome is Outcome.UNCHANGED


@pytest.mark.parametrize(
    "loader", ["", "<loader type='rom'>/usr/share/ovmf/OVMF.amdsev.fd</loader>", "<loader>/usr/share/edk2/ovmf/OVMF.fd</loader>"]
)
def test_a_rom_is_judged_as_pflash_is(loader: str, tmp_path: Path) -> None:
    request = _host(tmp_path, AMD, 48)
    outcomes = [place(_gpu("custom", told_mib=told * 1024, loader=loader), request).outcome for told in (100, 128, 129, 256)]
    assert outcomes == [Outcome.FALLBACK, Outcome.FALLBACK, Outcome.PLACED, Outcome.PLACED]
    bios = "<loader type='rom'>/usr/share/seabios/bios-256k.bin</loader>"
    assert place(_gpu("custom", told_mib=100 * 1024, loader=bios), request).outcome is Outcome.PLACED


NOVA = "<nova:instance xmlns:nova='http://openstack.org/xmlns/libvirt/nova/1.1'/>"
OVIRT = "<ovirt-vm:vm xmlns:ovirt-vm='http://ovirt.org/vm/1.0'/>"


def _ports(manager: str, ports: int = 14) -> bytes:
    domain = two_cells().hostdev("17:00.0", "01:00.0")
    for index in range(1, ports + 1):
        place_ = f"00:{1 + (index + 7) // 8:02x}.{(index + 7) % 8}"
        domain.controller(index, "pcie-root-port", f"<target chassis='{index}'/>", place_, multifunction=index % 8 == 1)
    xml = domain.raw().replace(b"<os>", b"<os firmware='efi'>")
    return xml.replace(b"</name>", f"</name>\n  <metadata>{manager}</metadata>".encode(), 1) if manager else xml


@pytest.mark.parametrize(
    ("manager", "said", "unsaid"),
    [("", "<target hotplug='off'/>", "nova"), (NOVA, "num_pcie_ports in nova.conf, section [libvirt]", "engine-config"),
     (OVIRT, "engine-config -s NumOfPciExpressPorts", "nova")],
)  # fmt: skip
def test_too_many_ports_are_answered_in_the_words_of_who_can_change_them(manager: str, said: str, unsaid: str, tmp_path: Path) -> None:
    result = place(_ports(manager), Request(root=MACHINES["multifunction-gpu"]().write(tmp_path)))
    assert result.reason is Reason.NO_APERTURE and result.message is not None
    assert said in result.message and unsaid not in result.message and "1 device with I/O BARs" in result.message


@pytest.mark.parametrize(
    ("manager", "said", "unsaid"),
    [("", "-fw_cfg name=opt/ovmf/X-PciMmio64Mb,string=1", "nova"), (NOVA, "hw:maxphysaddr_mode=emulate", "X-PciMmio64Mb"),
     (OVIRT, "qemu_cmdline", "nova")],
)  # fmt: skip
def test_too_small_a_range_is_answered_in_the_words_of_who_can_change_it(manager: str, said: str, unsaid: str, tmp_path: Path) -> None:
    result = place(_gpu("custom", told_mib=66 * 1024, manager=manager), _host(tmp_path, INTEL, 46))
    assert result.reason is Reason.NO_APERTURE and result.message is not None
    assert said in result.message and unsaid not in result.message


# Generated.

BARS = st.lists(st.tuples(st.sampled_from([1, 2, 16, 32, 64, 128]), st.booleans()), min_size=1, max_size=8)
BITS = st.sampled_from([36, 39, 40, 41, 43, 46, 48, 52])
SIZES = st.one_of(st.none(), st.integers(1, 16384))


def _roots(devices: list[tuple[int, bool]], roots: list[int]) -> tuple[dict[str, tuple[int, ...]], list[list[str]]]:
    bars = {f"d{number}": (size * GIB, 32 << 20) if extra else (size * GIB,) for number, (size, extra) in enumerate(devices)}
    where: list[list[str]] = [[] for _ in range(5)]
    for number, name in enumerate(bars):
        where[roots[number % len(roots)]].append(name)
    return bars, where


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([AMD, INTEL, None, "HygonGenuine"]), BITS, BITS, SIZES, SIZES, st.booleans(), st.integers(1, 2048), BARS, st.data())
def test_more_room_never_makes_a_layout_unfit_and_one_more_device_never_makes_it_fit(
    vendor: Optional[str], bits: int, more_bits: int, told: Optional[int], more_told: Optional[int], pages: bool, memory: int,
    devices: list[tuple[int, bool]], data: st.DataObject,
) -> None:  # fmt: skip
    def aperture(bits: int, told: Optional[int], bars: dict[str, tuple[int, ...]]) -> Aperture:
        cpu = Cpu(None, None, None, None, False)
        firmware = Firmware(None, None if told is None else told * GIB, memory * GIB, cpu, Manager.LIBVIRT)
        found = firmware_range(firmware, vendor, bits, pages)
        return Aperture(found.size, True, bars, frozenset(), found.least, firmware, found.at_most)

    where = data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=5))
    bars, roots = _roots(devices, where)
    fits = aperture(bits, told, bars).misfit(roots) is None
    if fits and told is not None and more_told is not None:
        assert aperture(bits, max(told, more_told), bars).misfit(roots) is None
    if fits and min(bits, more_bits) > 40:  # below, OVMF believes some numbers and not others
        assert aperture(max(bits, more_bits), told, bars).misfit(roots) is None
    more_bars, more_roots = _roots([*devices, data.draw(BARS)[0]], where)
    for before, after in zip(roots, more_roots):
        assert after[: len(before)] == before
    if not fits:
        assert aperture(bits, told, more_bars).misfit(more_roots) is not None
    if fits:
        assert not aperture(bits, told, bars).is_certain(roots)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 1 << 44), st.integers(1, 1 << 44))
def test_sizes_that_differ_never_look_alike(one: int, other: int) -> None:
    aperture = Aperture(other, True, {"d": (one, 0)})
    sentence = aperture.misfit([[], ["d"]])
    if sentence is not None:
        need, size = sentence.split("need ")[1].split(" that the")[0].split(" of the ")
        assert need != size
