# SPDX-License-Identifier: LGPL-2.1-or-later
"""What libvirt and QEMU are, asked of libvirt: their versions, and which QEMU that is."""

from __future__ import annotations

from typing import Optional

import libvirt

from pcinuma.errors import PcinumaError
from pcinuma.log import log
from pcinuma.model import Hypervisor
from pcinuma.xml_parser import parse


def hypervisor_of(connection: libvirt.virConnect) -> Optional[Hypervisor]:
    """The versions of libvirt and of its default emulator; None where it does not tell. Not kept: QEMU may be another one tomorrow."""
    try:
        versions = connection.getLibVersion(), connection.getVersion()
        capabilities = parse(connection.getCapabilities(), "libvirt's capabilities")  # those of domains are not for read-only clients
    except (libvirt.libvirtError, PcinumaError) as error:
        log.warning("libvirt does not tell which QEMU it has", error=str(error))
        return None
    mine, qemu = [(number // 1_000_000, number // 1000 % 1000) for number in versions]  # as virConnectGetVersion has it
    arch = capabilities.findtext("host/cpu/arch")
    emulators = [guest.findtext("emulator") for guest in capabilities.iterfind("guest/arch") if guest.get("name") == arch]
    return Hypervisor(mine, qemu, emulators[0] if emulators else None, arch)
