# SPDX-License-Identifier: LGPL-2.1-or-later
"""The hook for oVirt as it is installed: where vdsm looks for it, and running with the distribution's Python on the package beside it."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from tests import needs
from tests.hosts.domains import two_cells
from tests.packages.test_contents import CONTROL, SPEC
from tests.unit.managers.vdsm_runner import Vdsm
from tests.waiting import CHECKOUT

HOOK = "usr/libexec/vdsm/hooks/before_vm_start/60_pcinuma"


def make(*words: str) -> None:
    needs.require(needs.program("make"))
    subprocess.run(["make", "-s", "-C", CHECKOUT, *words], check=True)


def test_it_is_one_executable_where_vdsm_looks(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        make("install-vdsm-hook", f"DESTDIR={tmp_path}")
    finally:
        os.umask(before)
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()] == [HOOK]
    assert (tmp_path / HOOK).stat().st_mode & 0o7777 == 0o755
    text = (tmp_path / HOOK).read_text()
    assert text.startswith("#!/usr/bin/python3 -I\n") and '"/usr/share/pcinuma"' in text and "@" not in text


def test_both_packages_have_it() -> None:
    assert "\nPackage: vdsm-hook-pcinuma\nArchitecture: all\nDepends: pcinuma (= ${binary:Version}), " in CONTROL.read_text()
    spec = SPEC.read_text()
    assert f"%files -n vdsm-hook-pcinuma\n%license LICENSE\n{HOOK.replace('usr/libexec', '%{_libexecdir}')}\n" in spec
    assert re.search(r"%package -n vdsm-hook-pcinuma\n(.*\n)*?Requires: +%\{name\} = %\{version\}-%\{release\}\nRequires: +vdsm\n", spec)


def test_what_is_installed_runs_as_vdsm_runs_it(tmp_path: Path) -> None:
    """On this machine, which has none of the devices: it says so, and changes nothing."""
    root, folder = f"prefix={tmp_path}/usr", tmp_path / "tmp"
    make("install", "install-vdsm-hook", root, f"sysconfdir={tmp_path}/etc", f"PYTHON={needs.python()}")
    folder.mkdir()
    vdsm = Vdsm((tmp_path / HOOK).parent, folder)
    domain = two_cells().hostdev("ffff:ff:1f.7").raw().decode()
    assert vdsm.before_vm_start(domain) == domain
    assert vdsm.log == ["60_pcinuma: rc=0 err=pcinuma: ffff:ff:1f.7: the host has no such device at the moment\n"]
