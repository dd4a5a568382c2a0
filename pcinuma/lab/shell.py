# SPDX-License-Identifier: LGPL-2.1-or-later
"""``pcinuma demo --keep``: a shell in a virtual host with pcinuma and the placed guest on it; the host ends with the shell."""

from __future__ import annotations

import os
import select
import socket
import termios
import threading
import time
import tty
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

from pcinuma.lab import jobs, nested, virtual_host
from pcinuma.lab.kernel import Kernel
from pcinuma.lab.presets import Preset

HOURS = 12
WELCOME = """
cat >/dev/ttyS1 <<'TEXT'
You are root on the virtual host. %(name)s is defined and placed; nothing that you do here reaches the real machine.
Try: pcinuma topology %(name)s, pcinuma explain %(name)s, virsh start %(name)s. The host ends with this shell (exit or Ctrl-D).
TEXT
step "%(ready)s"
shell="stty rows %(rows)d cols %(columns)d; PS1='virtual-host# ' exec bash --norc -i"
TERM="$(cat /job/terminal)" setsid -c sh -c "$shell" </dev/ttyS1 >/dev/ttyS1 2>&1
"""
READY = "the shell is ready"


def keep(preset: Preset, kernel: Kernel, scratch: Path, progress: Callable[[str], None]) -> None:
    """Boot the host once more, set it up, and connect this terminal (standard input and output) to a shell on it until that ends."""
    scratch.mkdir()
    door = scratch / "shell"
    size = os.get_terminal_size(1)
    welcome = WELCOME % {"name": jobs.NAME, "ready": READY, "rows": size.lines or 24, "columns": size.columns or 80}
    job = jobs.DRIVERS + jobs.LIBVIRT + jobs.INSTALL + jobs.DEFINE + jobs.PLACED + welcome
    files = {
        f"{jobs.NAME}.xml": nested.domain(jobs.NAME, preset.slots, preset.cells, group_by="switch"),
        "images/nested.cpio": nested.image(kernel),
        "terminal": os.environ.get("TERM", "dumb").encode(),
    }
    ready, unwanted = threading.Event(), threading.Event()

    def step(text: str) -> None:
        progress(text)
        if text == READY:
            ready.set()

    second = ["-chardev", f"socket,id=shell,path={door},server=on,wait=off"]
    with socket.socket(socket.AF_UNIX) as client, ThreadPoolExecutor(1) as pool:
        running = pool.submit(
            virtual_host.run, preset.host, job, kernel, scratch, files=files, timeout=HOURS * 3600, progress=step, extra=second,
            second_serial="chardev:shell", unwanted=unwanted,
        )  # fmt: skip
        try:
            # Until the shell is there, the terminal stays as it is, so that Ctrl-C still means what it does.
            while not running.done() and not door.exists():
                time.sleep(0.1)
            if not running.done():
                client.connect(str(door))
            while not running.done() and not ready.wait(0.1):
                pass
            if not running.done():
                _relay(client, running.done)
                wait([running], timeout=10)
        finally:
            unwanted.set()
        running.result().require()


def _relay(client: socket.socket, ended: Callable[[], bool]) -> None:
    """Carry bytes between this terminal and the socket until either side closes."""
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
                typed = os.read(0, 4096)
                if not typed:
                    return
                client.sendall(typed)
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)
