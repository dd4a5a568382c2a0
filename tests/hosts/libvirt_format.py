# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the real libvirt makes of a domain's XML: define it, validated, and read it back, without a daemon.

libvirt's QEMU driver runs inside this process's child (``qemu:///embed``), with a directory of its own and a ``/dev`` without ``kvm`` in
a private mount namespace, since probing QEMU hangs where KVM is there but unusable. Needs root, ``unshare``, libvirt-python and QEMU.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from typing import Optional

from tests import needs
from tests.hosts.memory import MEMORY

_CHILD = """
import json, os, subprocess, sys
def sh(*command): subprocess.run(command, check=True)
directory = sys.argv[1]
sh("mount", "--make-rprivate", "/")
os.makedirs(directory + "/dev")
sh("mount", "-t", "tmpfs", "dev", directory + "/dev")
for name in ("null", "zero", "full", "random", "urandom", "tty"):
    sh("cp", "-a", "/dev/" + name, directory + "/dev/")
sh("mount", "--bind", directory + "/dev", "/dev")
import libvirt
libvirt.registerErrorHandler(lambda *_: None, None)
libvirt.virEventRegisterDefaultImpl()
connection = libvirt.open("qemu:///embed?root=" + directory)
answers = []
for xml in json.load(sys.stdin):
    try:
        domain = connection.defineXMLFlags(xml, libvirt.VIR_DOMAIN_DEFINE_VALIDATE)
        answers.append([domain.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE | libvirt.VIR_DOMAIN_XML_INACTIVE), None])
        domain.undefine()
    except libvirt.libvirtError as error:
        answers.append([None, str(error)])
json.dump(answers, sys.stdout)
sys.stdout.flush()
os._exit(0)
"""


def missing() -> Optional[str]:
    """Why the real libvirt cannot be asked here; None if it can."""
    return needs.namespaces() or needs.program("qemu-system-x86_64", "qemu-system-x86") or needs.module("libvirt")


def define(documents: list[bytes], timeout: float = 300) -> list[tuple[Optional[bytes], Optional[str]]]:
    """For each XML what libvirt keeps of it (``XMLDesc`` inactive, secure), or its error."""
    directory = tempfile.mkdtemp(prefix="embed-", dir=MEMORY)
    try:
        done = subprocess.run(
            ["unshare", "-m", sys.executable, "-I", "-c", _CHILD, directory],
            input=json.dumps([xml.decode() for xml in documents]),
            capture_output=True,
            text=True,
            timeout=timeout,
        )
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    if done.returncode != 0:
        raise AssertionError(f"libvirt's embedded driver: {done.stderr.strip()[-2000:]}")
    return [(xml.encode() if xml is not None else None, error) for xml, error in json.loads(done.stdout)]
