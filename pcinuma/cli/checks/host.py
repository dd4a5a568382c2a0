# SPDX-License-Identifier: LGPL-2.1-or-later
"""The host: configuration, NUMA nodes, firmware's word on devices, IOMMU, links, SELinux, AppArmor. Reads below a root, asks no libvirt."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Optional

from pcinuma.cli.checks.finding import Finding, fail, passed, warn
from pcinuma.errors import ConfigError, HostError, UnusableInput
from pcinuma.host.sysfs import Sysfs
from pcinuma.host.topology import Topology, read_topology
from pcinuma.paths.facts import Kind, PathReader
from pcinuma.settings import configuration_files, load_settings
from pcinuma.show.describe import count, is_chipset, is_endpoint

BOOLEAN = "virt_hooks_unconfined"
_LIBVIRT_PROFILES = re.compile(r"^(\S*(?:libvirtd|virtqemud)) \((\w+)\)", re.MULTILINE)


def check(root: Path) -> list[Finding]:
    """Everything that the host's files tell."""
    findings = [_configuration(root)]
    try:
        topology = read_topology(root)
    except (HostError, UnusableInput) as error:
        return [*findings, fail("NUMA nodes", str(error), "without them nothing is placed; please report it with `pcinuma capture`")]
    findings += [_nodes(topology), _affinity(topology), _iommu(root), _links(topology, root)]
    return [*findings, *_selinux(root), *_apparmor(root)]


def _configuration(root: Path) -> Finding:
    try:
        settings = load_settings(root)
    except ConfigError as error:
        return fail("configuration", str(error))
    files = [f"/{file.relative_to(root)}" for file in configuration_files(root)]
    told = f"policy {settings.policy.value}, group-by {settings.group_by.value}, adopt {settings.adopt.value}"
    return passed("configuration", f"{told} ({', '.join(files) if files else 'built-in defaults'})")


def _nodes(topology: Topology) -> Finding:
    count_of_nodes = len(topology.nodes)
    if count_of_nodes == 0:
        hint = "boot without numa=off; switch node interleaving off in the firmware"
        return fail("NUMA nodes", "the kernel tells no NUMA nodes", hint)
    if count_of_nodes == 1:
        hint = "on a machine with several sockets: switch node interleaving off, sub-NUMA clustering or NPS on in the firmware"
        return warn("NUMA nodes", "this host has one NUMA node, so guests see no difference", hint)
    return passed("NUMA nodes", f"{count_of_nodes} nodes")


def _affinity(topology: Topology) -> Finding:
    devices = [device for device in topology.devices if is_endpoint(device) and not is_chipset(device)]
    what = "device affinity"
    problems = [device for device in devices if device.problem is not None]
    if problems:
        return fail(what, f"{problems[0].problem}", "domains with such a device fall back to the default layout")
    unknown = [device for device in devices if device.node is None]
    if len(topology.nodes) < 2:
        return passed(what, f"{count(len(devices), 'device')} that could be passed through")
    if not devices:
        return warn(what, "this host has no PCI devices to pass through")
    if len(unknown) == len(devices):
        return fail(what, "the firmware tells no NUMA node for any PCI device", "look for a firmware update, or for _PXM in its settings")
    if unknown:
        names = ", ".join(str(device.address) for device in unknown[:4]) + (", …" if len(unknown) > 4 else "")
        return warn(what, f"{len(unknown)} of {count(len(devices), 'device')} have no NUMA node: {names}", "these stay on the default root")
    derived = sum(device.node_from == "local_cpulist" for device in devices)
    more = f" ({derived} of them told by local_cpulist only)" if derived else ""
    return passed(what, f"{count(len(devices) - len(unknown), 'device')} with a NUMA node{more}")


def _iommu(root: Path) -> Finding:
    groups = _names(root / "sys/kernel/iommu_groups")
    if not groups:
        hint = "switch VT-d or AMD-Vi on in the firmware; on Intel boot with intel_iommu=on"
        return warn("IOMMU", "no IOMMU groups: this host cannot pass PCI devices through", hint)
    return passed("IOMMU", count(len(groups), "group"))


def _links(topology: Topology, root: Path) -> Finding:
    what, reader = "links", PathReader(Sysfs(root))
    devices = [device for device in topology.devices if is_endpoint(device) and not is_chipset(device) and device.physfn is None]
    try:
        facts = [reader.facts(device) for device in devices]
    except HostError as error:
        return warn(what, str(error))
    bad = [item for item in facts if item.narrow or (item.slow and item.kind is not Kind.GPU)]  # idle GPUs lower their speed
    if bad:
        names = ", ".join(f"{item.name} ({item.link_text})" for item in bad[:4]) + (", …" if len(bad) > 4 else "")
        hint = "reseat the card, look at its riser and at the slot's settings in the firmware; `pcinuma paths` has all of them"
        return warn(what, f"{count(len(bad), 'device')} with a link below what both ends can do: {names}", hint)
    return passed(what, "no device has a link below what both ends can do")


def _selinux(root: Path) -> list[Finding]:
    folder = root / "sys/fs/selinux"
    enforcing = _text(folder / "enforce")
    if enforcing is None:
        return [passed("SELinux", "not in use")]
    boolean = _text(folder / "booleans" / BOOLEAN)
    if boolean is None:
        return [warn("SELinux", f"the policy has no boolean {BOOLEAN}", "watch `ausearch -m avc -ts recent` at the next start of a guest")]
    if boolean.startswith("1"):
        return [passed("SELinux", f"{BOOLEAN} is on")]
    message = f"{BOOLEAN} is off: libvirt's hook may not reach the daemon"
    hint = f"setsebool -P {BOOLEAN} on"
    return [fail("SELinux", message, hint) if enforcing == "1" else warn("SELinux", f"{message} once SELinux is enforcing", hint)]


def _apparmor(root: Path) -> list[Finding]:
    if _text(root / "sys/module/apparmor/parameters/enabled") != "Y":
        return [passed("AppArmor", "not in use")]
    profiles = _text(root / "sys/kernel/security/apparmor/profiles")
    if profiles is None:
        return [warn("AppArmor", "in use; which profiles are loaded cannot be read", "run this as root")]
    confined = [name for name, mode in _LIBVIRT_PROFILES.findall(profiles) if mode == "enforce"]
    if not confined:
        return [passed("AppArmor", "in use, libvirt is not confined")]
    # The profile lets hooks in /etc/libvirt/hooks run and inherit it, with interpreters from /bin and /usr/bin; the hook's are there.
    return [passed("AppArmor", f"{', '.join(confined)} confined; hooks inherit that profile, which allows ours")]


def _names(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in folder.iterdir())
    except OSError:
        return []


def _text(path: Path) -> Optional[str]:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return None
