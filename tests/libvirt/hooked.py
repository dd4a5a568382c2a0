# SPDX-License-Identifier: LGPL-2.1-or-later
"""A private host with pcinuma's hook, and before it one that records what libvirt calls hooks with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.hosts.small import small_host
from tests.libvirt.harness import PrivateLibvirt
from tests.waiting import CHECKOUT


@contextmanager
def hooked_host(folder: Path, recorder: str) -> Iterator[PrivateLibvirt]:
    """A private libvirt on :func:`small_host` with the script ``recorder`` as hooks/qemu, and ours in qemu.d; ``folder``: for files."""
    with PrivateLibvirt(host_tree=small_host(folder / "host"), libvirtd=False) as host:
        script = folder / "recorder"
        script.write_text(recorder)
        host.install_hook(script)
        host.install_hook(CHECKOUT / "hook/qemu", "qemu.d/pcinuma")
        host.start_libvirtd()
        yield host
