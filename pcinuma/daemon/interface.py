# SPDX-License-Identifier: LGPL-2.1-or-later
"""The varlink interface that the daemon speaks, as the text that ``varlinkctl introspect`` shows.

It is the only place where the parameters of its methods are written down: calls are checked against it, by
:mod:`pcinuma.varlink.interface`.
"""

from __future__ import annotations

NAME = "io.pcinuma"

DESCRIPTION = f"""\
# Places passthrough PCI devices where the host has them.
interface {NAME}

# One domain. state: as "virsh domstate" says it, null if unknown. policy: in force. outcome, reason, message: of the last
# decision (null before the first), made by the reconciler, the hook, the proxy or a command, at a time in ISO 8601.
# devices: passthrough devices; placed: those among them that are where the host has them; unplaced: the others by reason, the device's
# own or else the domain's. contended: another program keeps undoing the placement, so the domain is left alone for a while.
type Domain (
  name: string,
  uuid: string,
  state: ?string,
  policy: ?string,
  enabled: bool,
  outcome: ?string,
  reason: ?string,
  message: ?string,
  devices: int,
  placed: int,
  when: ?string,
  by: ?string,
  unplaced: []Unplaced,
  contended: bool
)

type Unplaced (reason: ?string, devices: int)

# The link to libvirt. since: when the connection was made; message: why there is none.
type Libvirt (connected: bool, uri: string, version: ?string, since: ?string, message: ?string)

# libvirt's qemu hook asks about a domain that is about to boot. Answered from sysfs alone, never by asking libvirt.
# exit: 1 to refuse the start, with a message; xml: the placed XML if it differs from the one given.
method Hook(xml: string, operation: string, suboperation: string, domain: string) -> (exit: int, xml: ?string, message: ?string)

# Places a domain's XML. caller: "proxy", "hook" (libvirt is not asked) or the name of another program.
# report: as "pcinuma place --report" writes it; refused: policy "required" is not met.
method Place(xml: string, policy: ?string, group_by: ?string, caller: string) -> (xml: string, report: object, refused: bool)

# Places the inactive definition of a domain (a name or a UUID). replan: afresh; force: though it is not enabled, or contended;
# dry_run: only tell what would change, enabled or not. Left out means false, here and below. cells: "auto" gives a guest without NUMA
# cells some, "off" none, "replan" a guest that has pcinuma's those that it would get today; memory: how they are bound to host nodes,
# "strict", "preferred" or "restrictive".
method PlaceDomain(domain: string, replan: ?bool, force: ?bool, dry_run: ?bool, cells: ?string, memory: ?string) -> (
  changed: bool,
  xml: string,
  before: string,
  report: object
)

# Places the inactive definition of a domain that is about to be started. Refuses nothing.
method PrepareStart(domain_uuid: string) -> (changed: bool, report: object)

# Takes the placement back out of a domain's inactive definition, and leaves the domain alone until it is enabled. Does neither
# where there is no placement, or where it cannot be taken out.
method RevertDomain(domain: string, dry_run: ?bool) -> (changed: bool, xml: string, before: string)

# Lets pcinuma place a domain from now on, and places it. changed: its definition or whether it is enabled.
method Enable(domain: string) -> (changed: bool, report: object)

# Leaves a domain alone from now on. revert: and takes the placement back out of it; both or neither.
method Disable(domain: string, revert: ?bool) -> (changed: bool)

# Fills in the guest address of a host device that is about to be plugged into a running domain.
method AttachAddress(domain_uuid: string, device_xml: string) -> (device_xml: string, changed: bool, message: ?string)

# pending: looks at domains that are due or under way; 0 once the daemon has dealt with every change so far.
# problems: what is wrong with the daemon itself, each a sentence that says what to do.
# definitions: how libvirt's writing of definitions is watched: "fanotify" (no change is ever missed), "inotify" (one that comes within
# milliseconds of a definition of ours might be), null (not at all: such a change may be lost).
method Status() -> (
  version: string,
  libvirt: Libvirt,
  started: string,
  pending: int,
  problems: []string,
  definitions: ?string,
  domains: []Domain
)

# How many durations, in seconds, were at most each of bounds and more than the one before; the last of counts is of those above all.
type Histogram (bounds: []float, counts: []int, sum: float)

# Starts of guests. layout: of the XML that libvirt was about to boot: "placed" (as the host is, as far as that can be), "unplaced"
# (something was to be placed and is not), "left" (nothing was to be placed). by: who placed it last: "reconciler", "proxy", "command" or
# "other" (it came to libvirt like that); of what is not placed, "hook" (it gave libvirt the placed XML, which stock libvirt ignores) or
# "nobody". result: "running", "refused" (by the hook), "failed", or "unknown" (libvirt went away).
type Start (by: string, layout: string, result: string, count: int)

# What was counted since the daemon started. hook: from a hook's question to the answer; reconcile: a look at a domain;
# connections: how often libvirt was connected to.
method Counters() -> (hook: Histogram, reconcile: Histogram, starts: []Start, connections: int)

# A failed call: what failed and, where there is something, what to do about it.
error Error (message: string, hint: ?string)
"""

ERROR = f"{NAME}.Error"
