# SPDX-License-Identifier: LGPL-2.1-or-later
"""The sysfs of a guest's kernel for a domain on a host tree, and the guest agent that gives it away: values and text, nothing runs.

Bus numbers are those of :class:`tests.hosts.guest.Guest`'s model of firmware; ``renumber`` makes it another firmware's. A passed-through
device shows the host's ids, BARs and configuration space, and the node of the expander bus above it.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any, Callable, Optional

from pcinuma.domain.read import read_domain
from pcinuma.domain.xml import Document
from pcinuma.guest.agent import Refused
from pcinuma.guest.seen import DEVICES, LINUX
from tests.hosts.guest import EXPANDERS, ROOTS, Controller, Guest

_FILES = ("guest-file-open", "guest-file-read", "guest-file-write", "guest-file-flush", "guest-file-close")
COMMANDS = (*_FILES, "guest-exec", "guest-exec-status")


def kernel(xml: bytes, host: Path, renumber: Callable[[int], int] = lambda number: number) -> dict[str, bytes]:
    """Path -> content. ``renumber``: the number of a bus that is no root bus."""
    guest, domain = Guest.of(xml), read_domain(Document(xml))[0]
    guest.controllers.setdefault(0, Controller(0, "pcie-root"))
    targets = {c.index: c.target_index or 0 for c in domain.controllers.values() if c.model == "pci-root"}
    numbers = guest.numbers()

    def top(index: int) -> Controller:
        controller = guest.controllers[index]
        return controller if controller.at is None or controller.expander else top(controller.at.bus)

    def bus(index: int) -> str:
        controller = guest.controllers[index]
        number = controller.bus_nr or 0 if controller.model in (*ROOTS, "pcie-expander-bus") else renumber(numbers[index])
        return "%04x:%02x" % (targets.get(top(index).index, 0), number)

    files = {LINUX: b"0\n"}
    for controller in guest.controllers.values():
        behind = bus(controller.index)
        if controller.model == "pci-expander-bus":
            at = "%s:00.0" % ("0000:%02x" % (controller.bus_nr or 0))
        elif controller.model in (*ROOTS, *EXPANDERS) or controller.at is None:
            continue
        else:
            at = "%s:%02x.%d" % (bus(controller.at.bus), controller.at.slot, controller.at.function)
        config = bytearray(256)
        config[0x0E], config[0x19] = 1, int(behind[-2:], 16)
        files[f"{DEVICES}/{at}/config"] = bytes(config)
    for device in domain.devices:
        folder = host / "sys/bus/pci/devices" / str(device.host)
        if device.address is None or not folder.exists():
            continue
        at = "%s:%02x.%d" % (bus(device.address.bus), device.address.slot, device.address.function)
        node = top(device.address.bus).node
        vendor, product = (int((folder / name).read_text(), 16) for name in ("vendor", "device"))
        told = {
            "uevent": f"DRIVER=some\nPCI_CLASS=20000\nPCI_ID={vendor:04X}:{product:04X}\nPCI_SLOT_NAME={at}\n".encode(),
            "numa_node": f"{-1 if node is None else node}\n".encode(),
            "resource": (folder / "resource").read_bytes(),
            "config": (folder / "config").read_bytes()[:256],
        }
        files.update({f"{DEVICES}/{at}/{name}": content for name, content in told.items()})
    return files


class Agent:
    """What ``exchange`` is to a :class:`pcinuma.guest.agent.GuestAgent`: an agent that answers from ``files`` as qemu-ga does."""

    def __init__(self, files: dict[str, bytes], disabled: tuple[str, ...] = (), folders: Optional[set[str]] = None) -> None:
        """``folders``: those that there are, None for all."""
        self.files = files
        self.folders = folders
        self.disabled = disabled
        self.commands: list[str] = []
        self._open: dict[int, str] = {}
        self._position: dict[int, int] = {}
        self._asked_of = 0

    def __call__(self, command: str, seconds: float) -> str:
        assert seconds > 0
        asked = json.loads(command)
        self.commands.append(asked["execute"])
        if asked["execute"] in self.disabled:
            raise Refused(f"Command {asked['execute']} has been disabled")
        return json.dumps({"return": self._answer(asked["execute"], asked.get("arguments", {}))})

    def _answer(self, name: str, arguments: dict[str, Any]) -> Any:
        if name == "guest-info":
            return {"version": "7.2", "supported_commands": [{"name": n, "enabled": n not in self.disabled} for n in COMMANDS]}
        if name == "guest-exec":
            assert (arguments["path"], arguments["arg"][0]) == ("/bin/mkdir", "-p")
            assert self.folders is not None
            self.folders.add(arguments["arg"][1])
            return {"pid": 7}
        if name == "guest-exec-status":
            self._asked_of += 1
            return {"exited": self._asked_of > 2, "exitcode": 0}
        if name == "guest-file-open":
            path = arguments["path"]
            if arguments["mode"] == "w" and (self.folders is None or path.rpartition("/")[0] in self.folders):
                self.files[path] = b""
            elif path not in self.files:
                raise Refused(f"failed to open file '{path}' (mode: '{arguments['mode']}'): No such file or directory")
            self._open[len(self.commands)] = path
            self._position[len(self.commands)] = 0
            return len(self.commands)
        handle = arguments["handle"]
        path = self._open[handle]
        if name == "guest-file-read":
            begin, end = self._position[handle], self._position[handle] + arguments["count"]
            self._position[handle] = end
            data = self.files[path][begin:end]
            return {"count": len(data), "buf-b64": base64.b64encode(data).decode(), "eof": end > len(self.files[path])}
        if name == "guest-file-write":
            data = base64.b64decode(arguments["buf-b64"])
            self.files[path] += data
            return {"count": len(data), "eof": False}
        if name == "guest-file-close":
            del self._open[handle]
        return {}

    @property
    def left_open(self) -> int:
        return len(self._open)
