# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the real libvirt makes of a domain's XML: define it, validated, and read it back, without a daemon.

libvirt's QEMU driver runs inside this process's child (``qemu:///embed``), with a directory of its own in memory and a ``/dev`` without
``kvm`` in a private mount namespace, since probing QEMU hangs where KVM is there but unusable. One child serves all that this process
asks: by the second time it has started and knows its emulators. What it defined it forgets at once. Needs root, ``unshare``,
libvirt-python and QEMU.
"""

from __future__ import annotations

import atexit
import json
import socket
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Optional

from tests import needs

_CHILD = """
import json, os, shutil, socket, subprocess, sys
def sh(*command): subprocess.run(command, check=True)
directory = sys.argv[1]
sh("mount", "--make-rprivate", "/")
sh("mount", "-t", "tmpfs", "embed", directory)
os.mkdir(directory + "/dev")
for name in ("null", "zero", "full", "random", "urandom", "tty"):
    sh("cp", "-a", "/dev/" + name, directory + "/dev/")
sh("mount", "--bind", directory + "/dev", "/dev")
import libvirt
libvirt.registerErrorHandler(lambda *_: None, None)
libvirt.virEventRegisterDefaultImpl()
connection = libvirt.open("qemu:///embed?root=" + directory)
with socket.socket(fileno=int(sys.argv[2])).makefile("rwb") as requests:
    for request in requests:
        answers = []
        for xml in json.loads(request):
            try:
                domain = connection.defineXMLFlags(xml, libvirt.VIR_DOMAIN_DEFINE_VALIDATE)
                answers.append([domain.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE | libvirt.VIR_DOMAIN_XML_INACTIVE), None])
                domain.undefine()
            except libvirt.libvirtError as error:
                answers.append([None, str(error)])
        requests.write(json.dumps(answers).encode() + b"\\n")
        requests.flush()
sh("umount", "-l", "/dev", directory)
shutil.rmtree(directory, ignore_errors=True)
os._exit(0)
"""


def missing() -> Optional[str]:
    """Why the real libvirt cannot be asked here; None if it can."""
    return needs.namespaces() or needs.program("qemu-system-x86_64", "qemu-system-x86") or needs.module("libvirt")


def define(documents: list[bytes], timeout: float = 300) -> list[tuple[Optional[bytes], Optional[str]]]:
    """For each XML what libvirt keeps of it (``XMLDesc`` inactive, secure), or its error."""
    driver, log = _driver()
    driver.settimeout(timeout)
    answer = b""
    driver.sendall(json.dumps([xml.decode() for xml in documents]).encode() + b"\n")
    while not answer.endswith(b"\n"):
        part = driver.recv(1 << 20)
        if not part:
            raise AssertionError(f"libvirt's embedded driver: {log.read_text(errors='replace').strip()[-2000:]}")
        answer += part
    return [(xml.encode() if xml is not None else None, error) for xml, error in json.loads(answer)]


@cache
def _driver() -> tuple[socket.socket, Path]:
    """What is asked, and its log, which goes with all else that it wrote when nobody can ask any more."""
    directory = Path(tempfile.mkdtemp(prefix="embed-"))
    ours, its = socket.socketpair()
    with its, (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            ["unshare", "-m", sys.executable, "-I", "-c", _CHILD, str(directory), str(its.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[its.fileno()],
        )

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours, directory / "log"
