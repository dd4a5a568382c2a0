# SPDX-License-Identifier: LGPL-2.1-or-later
"""The verdict on a pair of devices: which way requests between them go, why, what to change, and what that costs. Pure.

Below a shared switch a request from one device to the other is passed on by the switch, unless ACS at a downstream port sends it up (P2P
Request Redirect; Linux switches it on wherever it uses an IOMMU) or its address means nothing to the switch. Addresses are the host's own
only without an IOMMU or with an identity domain. A guest's are not: a switch can pass such a request on only after the device has had it
translated (ATS), and only where the ports let translated requests go straight (ACS Direct Translated P2P). Otherwise it goes up to the
IOMMU and down again: it works, at the bandwidth and latency of the root port, which all devices of the switch share.

Sources: PCI Express base specification 6.12 (ACS); Linux ``drivers/pci/pci.c`` (``pci_enable_acs``, ``disable_acs_redir``,
``config_acs``), ``Documentation/ABI/testing/sysfs-kernel-iommu_groups`` (``type``).
"""

from __future__ import annotations

import enum
from typing import NamedTuple, Optional, Sequence

from pcinuma.paths.facts import Ats, Facts, Kind, Port


class Way(enum.Enum):
    """Which way requests between two devices go, from the best to the worst; then not known."""

    DIRECT = "direct"
    REDIRECTED = "redirected"
    CPU = "cpu"
    REMOTE = "remote"
    UNKNOWN = "unknown"


class Verdict(NamedTuple):
    """``reason``: a sentence without a full stop; ``change``: what to change and what that costs; None if nothing can be.

    Both speak of the devices or ports in ``names`` by ``{names}`` (a list), ``{ports}`` and ``{acs}`` (the kernel's words for such).
    """

    way: Way
    reason: str
    change: Optional[str]
    names: tuple[str, ...] = ()

    @property
    def why(self) -> str:
        """The reason with the names in it."""
        return self._with_names(self.reason)

    @property
    def advice(self) -> Optional[str]:
        """The change with the names in it."""
        return None if self.change is None else self._with_names(self.change)

    def _with_names(self, text: str) -> str:
        *first, last = self.names or ("",)
        listed = f"{', '.join(first)} and {last}" if first else last
        return text.format(names=listed, ports=";".join(self.names), acs=";".join(f"1xxxxxx@{name}" for name in self.names))


def together(verdicts: Sequence[Verdict]) -> Verdict:
    """The one verdict that says what all of these say, which differ in their names only."""
    return verdicts[0]._replace(names=tuple(dict.fromkeys(name for verdict in verdicts for name in verdict.names)))


UNREADABLE = "the ports' ACS and the devices' ATS cannot be read: run this as root, or capture the machine as root"
_ISOLATION = "this gives up the isolation between the devices below: they share an IOMMU group and can go to one guest only, all of them"
_TRUST = "this trusts the devices: one that lies about a translation reaches its neighbours without the IOMMU"


def same_device() -> Verdict:
    """Two functions of one device."""
    return Verdict(Way.DIRECT, "two functions of one device", None)


def without_switch(same_complex: bool, same_node: Optional[bool]) -> Verdict:
    """No switch is shared. ``same_node``: None where a node is not known."""
    if same_complex:
        return Verdict(Way.CPU, "no switch is shared: requests pass the root complex", None)
    if same_node is None:
        return Verdict(Way.UNKNOWN, "the host tells no NUMA node for one of them", None)
    if same_node:
        return Verdict(Way.CPU, "two root complexes of one node: requests pass the CPU", None)
    return Verdict(Way.REMOTE, "two NUMA nodes: requests pass the link between them", "pair devices of one node instead")


def below_switch(one: Facts, other: Facts, ports: Sequence[Port], *, guest: bool) -> Verdict:
    """A switch is shared. ``ports``: its downstream ports, and all deeper ones, above either device. ``guest``: a guest has them."""
    if not all(port.known for port in ports):
        return Verdict(Way.UNKNOWN, UNREADABLE, None)
    return _in_guest(one, other, ports) if guest else _on_host(one, other, ports)


def _on_host(one: Facts, other: Facts, ports: Sequence[Port]) -> Verdict:
    redirecting = [port.address for port in ports if port.acs is not None and port.acs.redirect]
    if redirecting:
        advice = f"switch ACS off in the firmware, or boot with pci=disable_acs_redir={{ports}}; {_ISOLATION}"
        return Verdict(Way.REDIRECTED, "ACS sends requests up to the root port at {names}", advice, tuple(redirecting))
    translated = sorted({facts.iommu for facts in (one, other) if facts.iommu not in (None, "identity")}, key=str)
    if translated:
        advice = "boot with iommu=pt; then devices of the host's drivers reach all of its memory"
        return Verdict(Way.REDIRECTED, f"the IOMMU translates the addresses that they use (group type {translated[0]})", advice)
    return Verdict(Way.DIRECT, "the switch passes requests on", None)


def _in_guest(one: Facts, other: Facts, ports: Sequence[Port]) -> Verdict:
    asking = [facts for facts in (one, other) if facts.kind is not Kind.GPU] or [one, other]
    if any(facts.ats is None for facts in asking):
        return Verdict(Way.UNKNOWN, UNREADABLE, None)
    without = [facts.name for facts in asking if facts.ats is Ats.NONE]
    if without:
        return Verdict(Way.REDIRECTED, "without ATS in {names} the switch cannot know a guest's addresses", None, tuple(without))
    off = [facts.name for facts in asking if facts.ats is Ats.OFF]
    if off:
        advice = f"switch ATS on (of Mellanox cards with mlxconfig: ATS_ENABLED=1), and see that the host's IOMMU uses it; {_TRUST}"
        return Verdict(Way.REDIRECTED, "ATS is off in {names}, so the switch cannot know the guest's addresses", advice, tuple(off))
    barred = [port for port in ports if port.acs is not None and port.acs.redirect and not port.acs.translated]
    unable = [port.address for port in barred if port.acs is not None and not port.acs.can_translate]
    if unable:
        reason = "no direct translated requests at {names}: the port cannot pass them on"
        return Verdict(Way.REDIRECTED, reason, None, tuple(unable))
    if barred:
        advice = f"boot the host with pci=config_acs={{acs}} (Linux 6.11 and later); {_TRUST}"
        names = tuple(port.address for port in barred)
        return Verdict(Way.REDIRECTED, "ACS at {names} sends translated requests up, too", advice, names)
    return Verdict(Way.DIRECT, "the devices have addresses translated (ATS), and the switch passes such requests on", None)

