# SPDX-License-Identifier: LGPL-2.1-or-later
"""The laboratory: guests, and whole virtual hosts, whose own kernels say what they see.

Nobody should have to believe a planner about its plan. Three tiers, each on the shoulders of the one before::

    kernel        a stock kernel from the distribution, unpacked and not installed
    initramfs     busybox, a few modules and an init that prints what the kernel knows about PCI and NUMA
    machine       runs QEMU until the guest has said its last word; KVM where it works, else TCG

    layout        a domain's XML as a PCI hierarchy: where each device must turn up (independent of pcinuma.domain on purpose)
    endpoints     tier 1: that hierarchy as a QEMU command line, emulated endpoints standing where the hostdevs are
    guest_tree    what the guest printed, parsed
    compare       the judge: guest tree against host tree

    presets       hosts in a few lines of Python
    virtual_host  tiers 2 and 3: such a host in a virtual machine, with an IOMMU, real libvirt, real vfio-pci
    demo          ``pcinuma demo``: the above, for people
    quick         ``pcinuma demo --quick``: tier 1 for people, on a server that is written down (server)
    guest_agent   the QEMU guest agent for guests that are to be asked

Everything is judged by what a kernel printed between markers; a guest that printed nothing has failed.
"""

from __future__ import annotations

from pcinuma.errors import PcinumaError


class LabError(PcinumaError):
    """Something that the laboratory needs is missing, or a machine did not do what it must."""
