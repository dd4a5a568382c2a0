# SPDX-License-Identifier: LGPL-2.1-or-later
"""AppArmor on the virtual host: the profiles that Debian's libvirt brings, loaded and enforced before libvirtd starts, and libvirt as
Debian configures it (guests as user libvirt-qemu, each under a profile of its own).

The profiles are the machine's; the parser and what profiles include are unpacked from the package ``apparmor`` and laid over the virtual
host's ``/etc`` and ``/usr``. Site-specific parts of the machine stay out.
"""

from __future__ import annotations

import io
import tarfile
from functools import cache
from pathlib import Path

from pcinuma.lab import jobs, userland, virtual_host
from tests import needs
from tests.unpacked import unpacked

ARCHIVE = "apparmor.tar.gz"
PROFILES = ("usr.sbin.libvirtd", "usr.lib.libvirt.virt-aa-helper")
_OURS = (*PROFILES, "abstractions/libvirt-qemu", "abstractions/libvirt-lxc", "libvirt/TEMPLATE.qemu", "libvirt/TEMPLATE.lxc")
COMMAND_LINE = virtual_host.CMDLINE.replace(" audit=0", "") + " audit_backlog_limit=8192"
"""Audit records of security modules go to the kernel's log where no auditd runs, unless audit is off."""

LIBVIRT = """
tar -C / -xf /images/%(archive)s || give_up "the archive of AppArmor's files"
mount -t securityfs securityfs /sys/kernel/security || give_up "no securityfs"
echo 0 >/proc/sys/kernel/printk_ratelimit
for profile in %(profiles)s; do
    said=$(apparmor_parser -r "/etc/apparmor.d/$profile" 2>&1) || give_up "AppArmor's profile $profile: $said"
done
: >/etc/libvirt/qemu.conf
chmod 1777 /consoles
step "AppArmor's profiles of libvirt are loaded"
""" % {"archive": ARCHIVE, "profiles": " ".join(PROFILES)} + jobs.LIBVIRT

LABEL_OF_HOOKS = """
cat >/etc/libvirt/hooks/qemu.d/label <<'TEXT'
#!/bin/sh
read -r label </proc/self/attr/current && echo "$label" >>/run/label-of-hooks
TEXT
chmod 755 /etc/libvirt/hooks/qemu.d/label
"""

FORBIDDEN = "/job/job"
LABELS = """
rm /etc/libvirt/hooks/qemu.d/label
read -r label <"/proc/$(cat /run/libvirt/qemu/%(name)s.pid)/attr/current"
echo "guest $label" >/job/out/apparmor-labels
echo "libvirtd $(cat "/proc/$(cat /run/libvirtd.pid)/attr/current")" >>/job/out/apparmor-labels
echo "hook $(sort -u /run/label-of-hooks)" >>/job/out/apparmor-labels
sh -c 'echo "exec ${1%%%% (enforce)}" >/proc/self/attr/exec && exec cat %(forbidden)s' sh "$label" >/dev/null 2>&1
""" % {"name": jobs.NAME, "forbidden": FORBIDDEN}
"""Under which profiles libvirtd, hooks and the guest run; and something that the guest's forbids, whose denial must be in the log."""

LOG = """
dmesg | grep 'apparmor="' >/job/out/apparmor-log
"""


@cache
def archive() -> tuple[bytes, needs.Reason]:
    """What goes into the virtual host, or why it has no AppArmor."""
    if userland.root() != Path("/"):
        return b"", "AppArmor's parser is the machine's own release's, and the virtual host is another's"
    etc = Path("/etc/apparmor.d")
    lacking = [name for name in _OURS if not (etc / name).is_file()]
    if lacking:
        return b"", f"libvirt has brought no AppArmor profiles: there is no {etc / lacking[0]}"
    root, reason = unpacked("apparmor")
    if root is None:
        return b"", reason
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        for part in ("etc/apparmor", "etc/apparmor.d", "usr/share/apparmor-features"):
            if (root / part).exists():
                tar.add(root / part, part)
        parser = next(file for file in (root / "sbin/apparmor_parser", root / "usr/sbin/apparmor_parser") if file.is_file())
        tar.add(parser, "usr/sbin/apparmor_parser")
        for name in _OURS:
            tar.add(etc / name, f"etc/apparmor.d/{name}")
            tar.addfile(tarfile.TarInfo(f"etc/apparmor.d/local/{name}"))
    return content.getvalue(), None
