# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where a command gets a domain's XML from: a file, standard input, or libvirt; and what the engine must know beside it."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping, Optional

from pcinuma.address import PciAddress
from pcinuma.cli.connect import connection, find_domain, host_root, libvirt_module
from pcinuma.domain.xml import Document
from pcinuma.engine import Request
from pcinuma.errors import LibvirtError, UnusableInput
from pcinuma.model import Hypervisor
from pcinuma.settings import GroupBy, Settings, load_settings


@dataclass(frozen=True)
class DomainSource:
    """A domain to look at. ``pools``: members of the hostdev networks that it names; ``live``: the XML is that of a running guest;
    ``hypervisor``: what libvirt says of itself, where it was asked."""

    name: str
    xml: bytes
    pools: Mapping[str, tuple[PciAddress, ...]]
    live: bool
    hypervisor: Optional[Hypervisor] = None

    def request(self, root: Path, *, group_by: Optional[GroupBy] = None, replan: bool = False) -> Request:
        """The request that places this domain for the host below ``root``."""
        settings: Settings = load_settings(root)
        known = self.hypervisor
        ask = None if known is None else lambda: known
        return Request(root=root, group_by=group_by, settings=settings, pools=self.pools, replan=replan, hypervisor=ask)


def is_file(text: str) -> bool:
    """Whether a DOMAIN argument names a file: ``-``, a path with a slash (no domain's name has one), or an existing ``*.xml``."""
    return text == "-" or "/" in text or (text.endswith(".xml") and Path(text).is_file())


def read_source(text: str, *, live: bool = False) -> DomainSource:
    """The domain that a DOMAIN argument names: its next start, or with ``live`` what runs now."""
    if is_file(text):
        if live:
            raise UnusableInput("a file has no running guest", subject=text)
        return _from_file(text)
    libvirt = libvirt_module()
    from pcinuma.daemon.hypervisor import hypervisor_of

    with connection() as opened:
        domain = find_domain(opened, text)
        if live and not domain.isActive():
            raise LibvirtError("is not running", subject=domain.name(), hint=f"`pcinuma plan {domain.name()}` tells about its next start")
        flags = 0 if live or not domain.isPersistent() else libvirt.VIR_DOMAIN_XML_INACTIVE
        xml = domain.XMLDesc(flags).encode()
        return DomainSource(domain.name(), xml, read_pools(opened, xml), flags == 0, hypervisor_of(opened))


def read_pools(opened: Any, xml: bytes) -> Mapping[str, tuple[PciAddress, ...]]:
    """The members of every hostdev network that the domain ``xml`` names."""
    from pcinuma.daemon.pools import Pools
    from pcinuma.log import configure

    configure(sys.stderr)
    return Pools(host_root()).resolve(opened, xml)


def _from_file(text: str) -> DomainSource:
    try:
        xml = sys.stdin.buffer.read() if text == "-" else Path(text).read_bytes()
    except OSError as error:
        raise UnusableInput(f"cannot be read ({error.strerror})", subject=text) from error
    root = Document(xml).root
    return DomainSource((root.findtext("name") or text).strip(), xml, {}, False)
