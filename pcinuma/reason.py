# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reason codes: why a device is not placed, or why a whole domain is as it is.

One enum for log, report, command and hook, each code with the one sentence that documents it (``Reason.X.sentence``). The codes are
part of the report's frozen format: never rename one.
"""

from __future__ import annotations

import enum


class Reason(enum.Enum):
    """A reason, of a device (first part) or of a domain (second part)."""

    sentence: str

    def __new__(cls, code: str, sentence: str) -> Reason:
        member = object.__new__(cls)
        member._value_ = code
        member.sentence = sentence
        return member

    # Of a device.
    NO_AFFINITY = "no-affinity", "the host knows no NUMA node for this device"
    NO_CELL = "no-cell", "no guest cell stands for the device's host node"
    AMBIGUOUS_CELL = "ambiguous-cell", "several guest cells could stand for the device's host node, and pcinuma does not guess"
    SEVERAL_NODES = "several-nodes", "the host says only that this device is local to several of its NUMA nodes, and pcinuma does not guess"
    KEPT = "kept", "the owner of the domain asked to keep this device where it is"
    QEMU_OVERRIDE = "qemu-override", "<qemu:override> sets the bus or address of this device"
    UNASSIGNED = "unassigned", "the domain does not give this device to the guest (address type='unassigned')"
    NOT_PCI = "not-pci", "in this guest the device is no PCI device of its own"
    SHARED_SLOT = "shared-slot", "the device shares its guest slot with one that cannot move along"
    MIXED_NODES = "mixed-nodes", "the functions of this slot, the members of this pool or what is behind it belong to different places"
    POOL_UNRESOLVED = "pool-unresolved", "libvirt could not be asked for the members of this hostdev pool"
    BACKING_UNKNOWN = "backing-unknown", "what is behind it is virtual, remote or not there, so no PCI device of the host is known for it"
    KEPT_APART = "kept-apart", "its right place would move other devices, so it has a port of its own on the same expander"
    NEAREST = "nearest", "no guest cell stands for the device's host node; it is under the cell with the smallest distance"
    NO_ROOM = "no-room", "bus numbers, slots or controller indexes are used up"
    DEVICE_ABSENT = "device-absent", "the host does not have this device at the moment"
    HOST_UNREADABLE = "host-unreadable", "a file of the host's PCI or NUMA tree is unreadable or holds nonsense"

    # Of a domain.
    ALREADY_PLACED = "already-placed", "every device is where it should be"
    NOTHING_TO_PLACE = "nothing-to-place", "the domain has no device with a place that the guest could see"
    NO_CELLS = "no-cells", "the guest has no NUMA cells (<cpu><numa>), so there is nowhere to place a device"
    POLICY_OFF = "policy-off", "the policy of this domain is off"
    MACHINE_TYPE = "machine-type", "this machine type has no PCI expander bus"
    NO_MACHINE = "no-machine", "the domain names no machine type"
    NO_ACPI = "no-acpi", "the guest has no ACPI (<features><acpi/>), and would not find devices on a second PCI root without it"
    FOREIGN_EXPANDER = "foreign-expander", "the devices sit on expander buses that somebody else made"
    QEMU_COMMANDLINE = "qemu-commandline", "the domain hands PCI devices or buses to QEMU by <qemu:commandline>"
    IOMMU_BUS = "iommu-bus", "the domain ties an IOMMU to the main PCI root, and a device that moved away would lose it"
    BAD_VALUE = "bad-value", "a value in the domain XML means nothing"
    NO_APERTURE = "no-aperture", "the devices' memory windows would not fit the guest's PCI aperture"
    REQUIRED = "required", "policy 'required' is not met"
    INTERNAL = "internal-error", "pcinuma itself failed; please report it"
    NOT_ENABLED = "not-enabled", "pcinuma leaves this domain alone: it was there before pcinuma, or a person disabled it"
    RUNNING = "running", "the guest is running; its definition is placed for the next start"
    MANAGED_SAVE = "managed-save", "the domain has a saved state that fits its present devices only"
    CONTENDED = "contended", "another program keeps redefining the domain"


class Outcome(enum.Enum):
    """What became of a domain as a whole."""

    PLACED = "placed"
    UNCHANGED = "unchanged"
    FALLBACK = "fallback"
