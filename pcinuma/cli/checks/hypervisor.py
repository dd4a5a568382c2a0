# SPDX-License-Identifier: LGPL-2.1-or-later
"""libvirt and QEMU: reachable, new enough, and with expander buses for the machine types of this architecture."""

from __future__ import annotations

import platform
import subprocess
from typing import Any

from lxml import etree

from pcinuma.cli.checks.finding import Finding, fail, passed, warn
from pcinuma.cli.connect import connection, libvirt_uri
from pcinuma.errors import ConfigError, LibvirtError
from pcinuma.xml_parser import parse

OLDEST_LIBVIRT = 6_003_000
"""``hotplug='off'`` on root ports came with 6.3.0."""
OLDEST_TESTED = 7_000_000
QEMU_TIMEOUT = 20.0
# QEMU's device, and what a domain needs it for.
_DEVICES = {
    "x86_64": (("pxb-pcie", "q35"), ("pxb", "i440fx")),
    "aarch64": (("pxb-pcie", "virt"),),
    "ppc64": (("spapr-pci-host-bridge", "pseries"),),
    "ppc64le": (("spapr-pci-host-bridge", "pseries"),),
}


def check() -> list[Finding]:
    """Everything that libvirt and QEMU tell."""
    try:
        with connection() as opened:
            findings = [_libvirt(opened)]
            findings.append(_version("QEMU", opened.getVersion()))
            capabilities = parse(opened.getCapabilities(), "libvirt's capabilities")
    except ConfigError as error:
        return [fail("libvirt", str(error))]
    except LibvirtError as error:
        return [fail("libvirt", error.what, error.hint)]
    return [*findings, *_expanders(capabilities)]


def _libvirt(opened: Any) -> Finding:
    number = opened.getLibVersion()
    text = version(number)
    if number < OLDEST_LIBVIRT:
        return fail("libvirt", f"{text} is older than {version(OLDEST_LIBVIRT)}, which pcinuma needs", "upgrade libvirt")
    if number < OLDEST_TESTED:
        return warn("libvirt", f"{text} at {libvirt_uri()}; nothing older than {version(OLDEST_TESTED)} is tested")
    return passed("libvirt", f"{text} at {libvirt_uri()}")


def _version(what: str, number: int) -> Finding:
    return passed(what, version(number))


def _expanders(capabilities: etree._Element) -> list[Finding]:
    """For the host's own architecture: does its emulator have the devices that placement needs?"""
    machine = platform.machine()
    wanted = _DEVICES.get(machine)
    if wanted is None:
        return [warn("machine types", f"pcinuma places nothing on {machine} guests")]
    emulators = {
        arch.findtext("emulator", "")
        for arch in capabilities.iterfind("guest/arch")
        if arch.get("name") == ("ppc64" if machine == "ppc64le" else machine)
    }
    findings = []
    for emulator in sorted(emulators - {""}):
        try:
            output = subprocess.run(
                [emulator, "-machine", "none", "-device", "help"],
                capture_output=True, text=True, timeout=QEMU_TIMEOUT, check=True, stdin=subprocess.DEVNULL,
            ).stdout  # fmt: skip
        except (OSError, subprocess.SubprocessError) as error:
            findings.append(warn("machine types", f"{emulator} could not be asked ({error})"))
            continue
        have = [kind for device, kind in wanted if f'name "{device}"' in output]
        lack = [f"{kind} (no {device})" for device, kind in wanted if f'name "{device}"' not in output]
        if not have:
            message = f"{emulator} has no expander bus: {', '.join(lack)}"
            findings.append(fail("machine types", message, "install the distribution's full QEMU"))
        elif lack:
            findings.append(warn("machine types", f"{emulator}: {', '.join(have)}; not {', '.join(lack)}"))
        else:
            findings.append(passed("machine types", f"{', '.join(have)} ({emulator})"))
    return findings or [fail("machine types", f"libvirt knows no emulator for {machine}", "install QEMU")]


def version(number: int) -> str:
    """libvirt's packed version number as people write it."""
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"
