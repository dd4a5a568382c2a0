# SPDX-License-Identifier: LGPL-2.1-or-later
"""libvirt, as far as the command needs it: a connection, a domain by name or UUID, and libvirt's errors as our own.

libvirt is imported here, inside functions, and nowhere else in the command.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator

from pcinuma.errors import LibvirtError
from pcinuma.settings import load_settings


def host_root() -> Path:
    """The directory that holds the host's ``sys/`` and ``etc/pcinuma``: ``/`` unless ``PCINUMA_ROOT`` says otherwise."""
    return Path(os.environ.get("PCINUMA_ROOT") or "/")


def libvirt_uri() -> str:
    """The URI to connect to: ``PCINUMA_LIBVIRT_URI``, else the configuration's ``libvirt-uri``."""
    return os.environ.get("PCINUMA_LIBVIRT_URI") or load_settings(host_root()).libvirt_uri


def libvirt_module() -> Any:
    """The libvirt binding, with its habit of printing errors switched off."""
    try:
        import libvirt
    except ImportError as error:
        raise LibvirtError(
            "Python's libvirt binding cannot be imported",
            hint="install python3-libvirt (Debian, Fedora) for the system's python3",
        ) from error
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    return libvirt


@contextmanager
def connection(*, write: bool = False) -> Iterator[Any]:
    """An open libvirt connection, read-only unless ``write``; libvirt's errors inside the block become LibvirtError."""
    libvirt, uri = libvirt_module(), libvirt_uri()
    try:
        opened = libvirt.open(uri) if write else libvirt.openReadOnly(uri)
    except libvirt.libvirtError as error:
        hint = "is libvirtd (or virtqemud) running?" if os.geteuid() == 0 else "is libvirt running, and may this user ask it? try sudo"
        raise LibvirtError(f"cannot be reached ({error.get_error_message()})", subject=f"libvirt at {uri}", hint=hint) from error
    try:
        yield opened
    except libvirt.libvirtError as error:
        raise LibvirtError(error.get_error_message() or str(error), subject="libvirt") from error
    finally:
        try:
            opened.close()
        except libvirt.libvirtError:
            pass  # the answer is already there, and the socket closes with the process


def find_domain(opened: Any, name: str) -> Any:
    """The domain with this name or UUID."""
    libvirt = libvirt_module()
    for look_up in (opened.lookupByName, opened.lookupByUUIDString):
        try:
            return look_up(name)
        except libvirt.libvirtError as error:
            if error.get_error_code() not in (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_INVALID_ARG):
                raise
    raise LibvirtError("libvirt knows no such domain", subject=name, hint="`virsh list --all` lists them")
