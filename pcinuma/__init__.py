# SPDX-License-Identifier: LGPL-2.1-or-later
"""pcinuma: guests see their passthrough PCI devices where the host has them.

The folder tree is the architecture; data flows one way, and imports with it (CONTRIBUTING.md has the layers)::

    host/       sysfs below a root directory      -> frozen values   (no libvirt, no XML)
    domain/     a domain's XML                    -> frozen values, and edits of that XML (no sysfs)
    resolve     (domain, host)                    -> what the host says of each device
    placement/  (domain, that, options)           -> plan, or the reason for none         (no I/O)
    engine      reads, resolves, plans, applies: the one function behind every caller, and the one place
                where any error becomes the fallback
    daemon/ proxy/ cli/ and hook/qemu             thin callers of the engine
    show/ lab/                                    what people see of it; virtual hosts that prove it
    varlink/                                      the daemon's wire, with nothing of pcinuma in it
"""

__version__ = "0.1.0"
