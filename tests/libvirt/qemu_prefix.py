# SPDX-License-Identifier: LGPL-2.1-or-later
"""The QEMU of a chroot as a program of this machine.

:func:`qemu_prefix` makes a folder ``bin`` with a ``qemu-system-x86_64`` that runs the chroot's by the chroot's own dynamic linker, with its
libraries, modules and firmware, and ``share/OVMF``. With ``bin`` first in ``PATH``, the lab boots its machines with that QEMU.
"""

from __future__ import annotations

from pathlib import Path

LIBRARIES = "usr/lib/x86_64-linux-gnu"
PROGRAM = """#!/bin/sh
export QEMU_MODULE_DIR=%(root)s/%(libraries)s/qemu
exec %(root)s/%(libraries)s/ld-linux-x86-64.so.2 --library-path %(root)s/%(libraries)s %(root)s/usr/bin/qemu-system-x86_64 \\
    -L %(root)s/usr/share/qemu -L %(root)s/usr/share/seabios "$@"
"""


def qemu_prefix(root: Path, prefix: Path) -> Path:
    """Make ``prefix`` for the QEMU of the chroot ``root``; returns the folder for PATH."""
    (prefix / "bin").mkdir(parents=True)
    (prefix / "share").mkdir()
    (prefix / "share" / "OVMF").symlink_to(root / "usr/share/OVMF")
    program = prefix / "bin" / "qemu-system-x86_64"
    program.write_text(PROGRAM % {"root": root, "libraries": LIBRARIES})
    program.chmod(0o755)
    return prefix / "bin"
