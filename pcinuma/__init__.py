"""pcinuma: guests see their passthrough PCI devices where the host has them.

The folder tree is the architecture; data flows one way::

    host/       sysfs below a root directory      -> frozen values   (no libvirt, no XML)
    domain/     a domain's XML                    -> frozen values, and edits of that XML (no sysfs)
    placement/  (domain, host, policy)            -> plan, or the reason for none         (no I/O)
    engine      reads, plans, applies: the one function behind every caller, and the one place
                where any error becomes the fallback
    daemon/ proxy/ cli/ and hook/qemu             thin callers of the engine
"""

__version__ = "0.1.0"
