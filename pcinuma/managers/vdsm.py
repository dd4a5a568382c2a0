# SPDX-License-Identifier: LGPL-2.1-or-later
"""oVirt: the hook that vdsm runs in ``before_vm_start``. Protocol: vdsm's ``lib/vdsm/common/hooks.py`` and ``lib/vdsm/hook/hooking.py``.

vdsm writes the XML that it is about to define to a file of its own (mode 0600, in the folder for temporary files), names it in
``_hook_domxml``, has the VM's custom properties in the environment by their names, and runs each executable of the folder as user vdsm,
without arguments and without a limit of time. It logs what they write to standard error, and reads the file by its name when all are
through. Exit code 0 is success; any other stops the VM, 2 at once. So the code here is 0 whatever happens, and 2 where policy ``required``
is not met.

The file is replaced in one step by one of the same mode and owner: whoever is killed in between leaves the old one or the new one.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Mapping

from pcinuma.managers.isolated import LIMIT
from pcinuma.managers.placing import WISHES, Wish, answer
from pcinuma.managers.say import say
from pcinuma.model import POLICY_SETTINGS, Manager

REFUSED = 2


def main(root: Path = Path("/"), seconds: float = LIMIT) -> int:
    """Run the hook in the process's environment, for the host below ``root``; the exit code."""
    try:
        return _run(os.environ, root, seconds)
    except Exception as error:
        say(f"nothing is placed ({type(error).__name__}: {error})")
        return 0


def _run(environment: Mapping[str, str], root: Path, seconds: float) -> int:
    name = environment.get("_hook_domxml")
    if not name:
        say("_hook_domxml is not set: this is a hook for vdsm's before_vm_start, and nothing is placed")
        return 0
    wishes = wishes_of(environment)
    required = wishes.get("policy", Wish("", "")).value == "required"
    try:
        before, xml = _read(name)
    except OSError as error:
        say(f"{name}: cannot be read ({error.strerror}), so nothing is placed")
        return REFUSED if required else 0
    found = answer(xml, wishes, root, seconds, policy_setting=POLICY_SETTINGS[Manager.OVIRT])
    for sentence in found.said:
        say(sentence)
    if found.refused:
        return REFUSED
    if found.xml is not None:
        try:
            _replace(name, before, found.xml)
        except OSError as error:
            say(f"{name}: cannot be replaced ({error.strerror}), so nothing is placed")
            return REFUSED if required else 0
    return 0


def wishes_of(environment: Mapping[str, str]) -> dict[str, Wish]:
    """The custom properties that are set, by the metadata's attribute: ``pcinuma_group_by`` for ``group-by``."""
    names = {attribute: f"pcinuma_{attribute.replace('-', '_')}" for attribute in WISHES}
    return {attribute: Wish(name, value) for attribute, name in names.items() if (value := environment.get(name, "").strip())}


def _read(name: str) -> tuple[os.stat_result, bytes]:
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(0, "it is no regular file")
        return status, file.read()


def _replace(name: str, before: os.stat_result, xml: bytes) -> None:
    """Put a file with ``xml`` in the place of ``name``, which was ``before``."""
    new = os.path.join(os.path.dirname(name), f".pcinuma-{os.getpid()}-{os.path.basename(name)}")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as file:
            here = os.fstat(descriptor)
            if (here.st_uid, here.st_gid) != (before.st_uid, before.st_gid):
                os.fchown(descriptor, before.st_uid, before.st_gid)
            os.fchmod(descriptor, stat.S_IMODE(before.st_mode))
            file.write(xml)
        os.rename(new, name)
    except BaseException:
        os.unlink(new)
        raise
