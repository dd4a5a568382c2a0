"""Changes of definitions that libvirt tells nobody about.

``virsh attach-device --config``, ``virsh vcpupin --config``, ``virsh metadata --config`` and the calls behind them change a
definition without a DEFINED event (libvirt 9.0; measured). But libvirt writes every definition to
``/etc/libvirt/qemu/NAME.xml`` (``virDomainDefSave`` in ``src/conf/domain_conf.c``), and the kernel tells who writes there. Only
the name of the file is used; what is in it is asked of libvirt.

Without that folder (libvirt on another machine, or not installed yet) there is nothing to watch, and such a change is found at
the next look.
"""

from __future__ import annotations

import asyncio
import os
import struct
from pathlib import Path
from typing import Callable, Optional

from pcinuma.daemon.log import log

FOLDER = Path("/etc/libvirt/qemu")
_IN_CLOSE_WRITE, _IN_MOVED_TO, _IN_Q_OVERFLOW, _IN_IGNORED = 0x8, 0x80, 0x4000, 0x8000
_EVENT = struct.Struct("iIII")
_SUFFIX = ".xml"


class DefinitionFiles:
    """Calls ``changed`` with a domain's name when its definition was written, and with None when it may have been anybody's."""

    def __init__(self, changed: Callable[[Optional[str]], None], folder: Path = FOLDER) -> None:
        self._changed = changed
        self._folder = folder
        self._descriptor: Optional[int] = None
        self.watching = False

    def watch(self) -> None:
        """Watch from now on. Called again and again, since the folder may come later; costs nothing once it is watched."""
        if self.watching:
            return
        try:
            import ctypes  # not at the top: where memory may not become executable, some versions cannot even be imported

            libc = ctypes.CDLL(None, use_errno=True)
        except (ImportError, MemoryError, OSError) as error:
            log.warning("definitions cannot be watched", error=str(error) or type(error).__name__)
            self.watching = True  # asking again would not help
            return
        if self._descriptor is None:
            descriptor = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
            if descriptor < 0:
                log.warning("definitions cannot be watched", error=os.strerror(ctypes.get_errno()))
                return
            self._descriptor = descriptor
            asyncio.get_running_loop().add_reader(descriptor, self._read)
        watch = libc.inotify_add_watch(self._descriptor, os.fsencode(self._folder), _IN_CLOSE_WRITE | _IN_MOVED_TO)
        self.watching = watch >= 0
        log.debug("definitions are watched" if self.watching else "no definitions to watch", folder=str(self._folder))

    def _read(self) -> None:
        assert self._descriptor is not None
        try:
            data = os.read(self._descriptor, 65536)
        except BlockingIOError:
            return
        names: dict[Optional[str], None] = {}
        position = 0
        while position < len(data):
            _, mask, _, size = _EVENT.unpack_from(data, position)
            name = os.fsdecode(data[position + _EVENT.size : position + _EVENT.size + size].rstrip(b"\0"))
            position += _EVENT.size + size
            if mask & _IN_IGNORED:
                self.watching = False  # the folder is gone
            elif mask & _IN_Q_OVERFLOW:
                names[None] = None
            elif name.endswith(_SUFFIX):
                names[name[: -len(_SUFFIX)]] = None
        for changed in names:
            self._changed(changed)
