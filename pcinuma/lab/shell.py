"""``pcinuma demo --keep``: a shell in a virtual host with pcinuma and the placed guest on it; the host ends with the shell."""

from __future__ import annotations

import os
import select
import socket
import sys
import termios
import tty
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pcinuma.lab import LabError, jobs, nested, virtual_host
from pcinuma.lab.kernel import Kernel
from pcinuma.lab.presets import Preset

HOURS = 12
WELCOME = """
cat >/dev/ttyS1 <<'TEXT'
You are root on the virtual host. %(name)s is defined and placed; nothing that you do here reaches the real machine.
Try: pcinuma topology %(name)s, pcinuma explain %(name)s, virsh start %(name)s. The host ends with this shell (exit or Ctrl-D).
TEXT
step "%(ready)s"
setsid -c env TERM="$(cat /job/terminal)" PS1='virtual-host# ' bash --norc -i </dev/ttyS1 >/dev/ttyS1 2>&1
"""
READY = "the shell is ready"


def keep(preset: Preset, kernel: Kernel, scratch: Path, progress: Callable[[str], None]) -> None:
    """Boot the host once more, set it up, and connect this terminal to a shell on it until that ends."""
    if not sys.stdin.isatty():
        raise LabError("--keep needs a terminal to put the shell on")
    scratch.mkdir()
    door = scratch / "shell"
    job = jobs.DRIVERS + jobs.LIBVIRT + jobs.INSTALL + jobs.DEFINE + jobs.PLACED + WELCOME % {"name": jobs.NAME, "ready": READY}
    files = {
        f"{jobs.NAME}.xml": nested.domain(jobs.NAME, preset.slots, preset.cells, group_by="switch"),
        "nested.cpio": nested.image(kernel),
        "terminal": os.environ.get("TERM", "dumb").encode(),
    }
    client = socket.socket(socket.AF_UNIX)
    ready = False

    def step(text: str) -> None:
        nonlocal ready
        progress(text)
        ready = ready or text == READY

    second = ["-chardev", f"socket,id=shell,path={door},server=on,wait=off"]
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(
            virtual_host.run, preset.host, job, kernel, scratch, files=files, timeout=HOURS * 3600, progress=step, extra=second,
            second_serial="chardev:shell",
        )  # fmt: skip
        while not running.done() and not door.exists():
            select.select([], [], [], 0.1)
        if not running.done():
            client.connect(str(door))
            _relay(client, running.done)
        client.close()
        running.result().require()


def _relay(client: socket.socket, ended: Callable[[], bool]) -> None:
    """Carry bytes between this terminal and the socket until the other side closes."""
    before = termios.tcgetattr(0)
    tty.setraw(0)
    try:
        while not ended():
            readable, _, _ = select.select([0, client], [], [], 0.5)
            if client in readable:
                data = client.recv(65536)
                if not data:
                    return
                os.write(1, data)
            if 0 in readable:
                client.sendall(os.read(0, 4096))
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)
