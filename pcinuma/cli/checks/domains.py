# SPDX-License-Identifier: LGPL-2.1-or-later
"""The domains with passthrough devices: placed or not, why, and what a finer grouping would give them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Mapping, Optional, Sequence

from pcinuma.cli.checks.finding import Finding, fail, passed, warn
from pcinuma.cli.connect import connection, libvirt_module
from pcinuma.cli.sources import DomainSource, read_pools
from pcinuma.daemon import client
from pcinuma.domain.aperture import manager_of
from pcinuma.domain.read import parse_domain
from pcinuma.engine import place
from pcinuma.errors import ConfigError, DaemonError, HostError, LibvirtError, UnusableInput
from pcinuma.host.topology import Topology, read_topology
from pcinuma.model import Manager
from pcinuma.printable import command
from pcinuma.reason import Outcome, Reason
from pcinuma.settings import GroupBy
from pcinuma.show.groupings import groupings, shown_by, trade
from pcinuma.show.words import placed_of, sentence, why
from pcinuma.xml_parser import parse


def check(root: Path) -> list[Finding]:
    """A line for each domain that passes devices through; none where libvirt cannot be asked (another check says so)."""
    try:
        topology = read_topology(root)
        with connection() as opened:
            libvirt = libvirt_module()
            found = opened.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_PERSISTENT)
            domains = []
            for domain in sorted(found, key=lambda domain: str(domain.name())):
                xml = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE).encode()
                domains.append(DomainSource(domain.name(), xml, read_pools(opened, xml), False))
        decided = _decided()
        findings = [_ovirt(domains), *(_domain(domain, root, topology, decided.get(domain.name)) for domain in domains)]
    except (ConfigError, HostError, LibvirtError, UnusableInput):
        return []
    return [finding for finding in findings if finding is not None]


def _ovirt(sources: Sequence[DomainSource]) -> Optional[Finding]:
    """That oVirt's engine remembers layouts that pcinuma made; once, whatever number of VMs there are."""
    ovirt = [source for source in sources if manager_of(parse(source.xml, source.name)) is Manager.OVIRT]
    if not any(parse_domain(source.xml).placement for source in ovirt):
        return None
    message = "a VM of oVirt's that is placed must not start on a host without pcinuma: the engine remembers its layout by halves"
    return warn("oVirt", message, "install vdsm-hook-pcinuma on all hosts of the cluster; how to take it off again: docs/managers/ovirt.md")


def _decided() -> Mapping[str, Mapping[str, Any]]:
    """What the daemon last decided, by domain; nothing if it cannot be asked."""
    try:
        return {domain["name"]: domain for domain in client.call("Status", timeout=10)["domains"]}
    except DaemonError:
        return {}


def _domain(source: DomainSource, root: Path, topology: Topology, decided: Optional[Mapping[str, Any]]) -> Optional[Finding]:
    result = place(source.xml, source.request(root))
    if not result.devices:
        return None
    what, explain = f"domain {source.name}", command("explain", source.name)
    if result.outcome is Outcome.FALLBACK:
        return fail(what, f"cannot be placed: {why(result.report())}", explain)
    if decided is not None and decided["outcome"] == "fallback":
        return fail(what, f"not placed: {decided['message'] or sentence(decided['reason'])}", explain)
    if result.outcome is Outcome.PLACED:
        if decided is not None and not decided["enabled"]:
            return warn(what, Reason.NOT_ENABLED.sentence, f"{command('plan', source.name)}; {command('enable', source.name)}")
        hint = f"{command('plan', source.name)}; {command('apply', source.name)}"
        return warn(what, "its definition is not placed as the host is now", hint)
    if result.reason in (Reason.NO_CELL, Reason.AMBIGUOUS_CELL):
        return warn(what, f"not placed: {why(result.report())}", explain)
    if result.reason is not Reason.ALREADY_PLACED:
        return passed(what, f"left as it is: {why(result.report())}")
    message = f"{placed_of(result.report())} placed" + (f", grouped by {result.group_by.value}" if result.group_by else "")
    return Finding(passed(what, message).level, what, message, _gain(source, root, topology))


def _gain(source: DomainSource, root: Path, topology: Topology) -> Optional[str]:
    """What mirroring switches would give and cost the domain; None if it would give nothing."""
    now = shown_by(place(source.xml, source.request(root)), frozenset(source.pools), topology)
    for grouping in groupings(source.xml, source.request(root), topology):
        if grouping.group_by is GroupBy.SWITCH and grouping.shown is not None and grouping.shown.right > now.right:
            return "group-by switch: " + "; ".join(t.text for t in trade(now, grouping))
    return None
