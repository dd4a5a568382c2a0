# SPDX-License-Identifier: LGPL-2.1-or-later
"""The hook for vdsm, run as vdsm runs it: whatever it is given the VM starts, unless its owner asked for the contrary."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Callable, Mapping

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lxml import etree

from pcinuma.domain.metadata import NAMESPACE
from pcinuma.engine import Request, place
from pcinuma.managers import vdsm
from pcinuma.settings import GroupBy
from tests.hosts.domains import Domain, two_cells
from tests.hosts.machines import MACHINES
from tests.unit.managers.vdsm_runner import HookError, Vdsm
from tests.waiting import CHECKOUT

LAUNCHER = CHECKOUT / "packaging/vdsm/before_vm_start.in"
DOMAIN = two_cells().hostdev("17:00.0").hostdev("b3:00.0").raw().decode()
ABSENT = two_cells().hostdev("17:00.0").hostdev("77:00.0").raw().decode()
"""The host has no 77:00.0: nothing is placed."""


def launcher(file: Path, root: Path, seconds: float = 20.0, package: Path = CHECKOUT) -> Path:
    """The installed executable, but that it reads the host below ``root``."""
    text = LAUNCHER.read_text().replace("@PYTHON@", sys.executable).replace("@PKGDATADIR@", str(package))
    assert text.count("main()") == 1
    file.write_text(text.replace("main()", f"main(__import__('pathlib').Path({str(root)!r}), {seconds})"))
    file.chmod(0o755)
    return file


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A host, to be looked at and not to be changed."""
    folder = tmp_path_factory.mktemp("host")
    MACHINES["two-sockets"]().write(folder)
    return folder


@pytest.fixture
def manager(tmp_path: Path, root: Path) -> Vdsm:
    for name in ("hooks", "tmp"):
        (tmp_path / name).mkdir()
    launcher(tmp_path / "hooks/60_pcinuma", root)
    return Vdsm(tmp_path / "hooks", tmp_path / "tmp")


def element(xml: str) -> etree._Element:
    found = etree.fromstring(xml.encode()).find(f"metadata/{{{NAMESPACE}}}pcinuma")
    assert found is not None
    return found


def test_the_vm_is_started_with_what_place_gives(manager: Vdsm, root: Path) -> None:
    assert manager.before_vm_start(DOMAIN) == place(DOMAIN.encode(), Request(root=root)).xml.decode() != DOMAIN
    assert manager.log == ["60_pcinuma: rc=0 err="]
    assert list(manager.temporary.iterdir()) == []


def test_custom_properties_are_the_owners_wishes_in_the_metadata(manager: Vdsm, root: Path) -> None:
    custom = {"pcinuma_policy": "required", "pcinuma_group_by": "node", "pcinuma_cells": "off"}
    started = manager.before_vm_start(DOMAIN, custom)
    assert dict(element(started).attrib) == {"policy": "required", "group-by": "node", "cells": "off"}
    assert element(started).find(f"{{{NAMESPACE}}}placement").get("group-by") == "node"
    request = Request(root=root, group_by=GroupBy.NODE)
    addresses = [str(line.guest_address) for line in place(DOMAIN.encode(), request).devices]
    assert [str(line.guest_address) for line in place(started.encode(), request).devices] == addresses


def test_off_is_written_for_the_daemon_to_read_and_nothing_else_changes(manager: Vdsm) -> None:
    started = manager.before_vm_start(DOMAIN, {"pcinuma_policy": "off"})
    assert dict(element(started).attrib) == {"policy": "off"} and len(element(started)) == 0
    tree = etree.fromstring(started.encode())
    metadata = tree.find("metadata")
    tree.remove(metadata)
    assert etree.tostring(tree, method="c14n").split() == etree.tostring(etree.fromstring(DOMAIN), method="c14n").split()


@pytest.mark.parametrize("blank", ["", " ", "\t"])
def test_an_empty_property_is_none(blank: str) -> None:
    assert vdsm.wishes_of({"pcinuma_policy": blank}) == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("pcinuma_policy", value) for value in ("requierd", "<off/>", "ü\x01\n", "x" * 5000)),
        *(("pcinuma_group_by", value) for value in ("root_complex",)),
        *(("pcinuma_cells", value) for value in ("on",)),
    ],
)
def test_a_property_that_means_nothing_is_named_and_nothing_is_placed(manager: Vdsm, name: str, value: str) -> None:
    assert manager.before_vm_start(DOMAIN, {name: value}) == DOMAIN
    (said,) = manager.log
    assert said.startswith(f"60_pcinuma: rc=0 err=pcinuma: {name} is ") and said.count("\n") == 1


def test_where_nothing_can_be_placed_the_xml_is_the_one_that_vdsm_wrote_and_the_log_has_the_reason(manager: Vdsm) -> None:
    assert manager.before_vm_start(ABSENT, {"pcinuma_group_by": "node"}) == ABSENT
    assert "0000:77:00.0: the host has no such device" in manager.log[0]


def test_required_stops_the_vm_with_a_sentence_that_says_how_to_lift_it(manager: Vdsm) -> None:
    with pytest.raises(HookError, match=r"(?s)required.*0000:77:00.0.*custom property pcinuma_policy set to 'preferred' or 'off'"):
        manager.before_vm_start(ABSENT, {"pcinuma_policy": "required"})
    assert manager.log[0].startswith("60_pcinuma: rc=2 ") and "pcinuma disable" not in manager.log[0]


def test_required_in_the_hosts_configuration_stops_it_too(manager: Vdsm, tmp_path: Path) -> None:
    MACHINES["two-sockets"]().write(tmp_path / "root")
    (tmp_path / "root/etc/pcinuma").mkdir(parents=True)
    (tmp_path / "root/etc/pcinuma/pcinuma.conf").write_text("[placement]\npolicy = required\n")
    launcher(manager.hooks / "60_pcinuma", tmp_path / "root")
    with pytest.raises(HookError, match=r"policy 'required' is not met: .* custom property pcinuma_policy set to 'preferred' or 'off'"):
        manager.before_vm_start(ABSENT)


def test_another_hook_works_on_what_this_one_left(manager: Vdsm) -> None:
    other = manager.hooks / "99_other"
    other.write_text("#!/bin/sh\nsed -i 's|<name>guest</name>|<name>other</name>|' \"$_hook_domxml\"\n")
    other.chmod(0o755)
    started = manager.before_vm_start(DOMAIN)
    assert "<name>other</name>" in started and element(started) is not None


# What may be wrong around it: by the policy, the exit code.


def _missing(name: Path) -> None:
    name.unlink()


def _folder(name: Path) -> None:
    name.unlink()
    name.mkdir()


def _pipe(name: Path) -> None:
    name.unlink()
    os.mkfifo(name)


def _link(name: Path) -> None:
    name.rename(name.with_name("there"))
    name.symlink_to("there")


def _link_in_a_circle(name: Path) -> None:
    name.unlink()
    name.symlink_to(name.name)


def _garbage(name: Path) -> None:
    name.write_bytes(b"<domain><devices>\xff\0")


def _empty(name: Path) -> None:
    name.write_bytes(b"")


def _another_root(name: Path) -> None:
    name.write_text("<network/>")


def _doctype(name: Path) -> None:
    name.write_text(f'<!DOCTYPE domain SYSTEM "file:///etc/passwd">{DOMAIN}')


TROUBLES = (_missing, _folder, _pipe, _link, _link_in_a_circle, _garbage, _empty, _another_root, _doctype)


def contents(folder: Path) -> dict[str, object]:
    return {path.name: path.read_bytes() if path.is_file() else os.lstat(path).st_mode for path in folder.iterdir()}


@pytest.mark.parametrize("spoil", TROUBLES, ids=lambda spoil: spoil.__name__.strip("_"))
def test_a_file_that_cannot_be_used_is_left_alone(tmp_path: Path, root: Path, spoil: Callable[[Path], None]) -> None:
    hook, folder = launcher(tmp_path / "hook", root), tmp_path / "tmp"
    folder.mkdir()
    (folder / "xml").write_text(DOMAIN)
    spoil(folder / "xml")
    before = contents(folder)
    for policy, code in (("preferred", 0), ("required", 2)):
        done = run(hook, {"_hook_domxml": str(folder / "xml"), "pcinuma_policy": policy})
        assert (done.returncode, contents(folder)) == (code, before), done.stderr
        assert done.stdout == "" and done.stderr.startswith("pcinuma: ") and "Traceback" not in done.stderr


def run(hook: Path, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([hook], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)


def test_outside_of_vdsm_it_says_what_it_is_for(tmp_path: Path, root: Path) -> None:
    done = run(launcher(tmp_path / "hook", root), {})
    assert (done.returncode, done.stdout) == (0, "") and "_hook_domxml is not set" in done.stderr


def test_without_the_package_the_vm_starts(tmp_path: Path, root: Path) -> None:
    done = run(launcher(tmp_path / "hook", root, package=tmp_path), {"_hook_domxml": "/nowhere"})
    assert (done.returncode, done.stderr.count("\n")) == (0, 1) and "nothing is placed" in done.stderr


@pytest.mark.parametrize("module", ["lxml", "pcinuma.engine"])
def test_with_a_broken_module_the_vm_starts(tmp_path: Path, root: Path, module: str) -> None:
    hook = launcher(tmp_path / "hook", root)
    hook.write_text(hook.read_text().replace("import sys\n", f"import sys\nsys.modules[{module!r}] = None\n", 1))
    (tmp_path / "xml").write_text(DOMAIN)
    done = run(hook, {"_hook_domxml": str(tmp_path / "xml")})
    assert (done.returncode, (tmp_path / "xml").read_text()) == (0, DOMAIN) and "nothing is placed" in done.stderr


@pytest.mark.parametrize(("policy", "code"), [("preferred", 0), ("required", 2)])
def test_what_takes_too_long_is_given_up(tmp_path: Path, root: Path, policy: str, code: int) -> None:
    (tmp_path / "xml").write_text(DOMAIN)
    done = run(launcher(tmp_path / "hook", root, seconds=0), {"_hook_domxml": str(tmp_path / "xml"), "pcinuma_policy": policy})
    assert (done.returncode, (tmp_path / "xml").read_text()) == (code, DOMAIN) and "no answer within 0 s" in done.stderr


@pytest.mark.parametrize(("policy", "code"), [("preferred", 0), ("required", 2)])
@pytest.mark.parametrize("step", ["open", "fchmod", "rename", "write"])
def test_a_folder_or_disk_that_takes_nothing_leaves_the_old_file(
    step: str, policy: str, code: int, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A full disk, a read-only folder; root may write to any, so the calls are refused."""
    file = tmp_path / "xml"
    file.write_text(DOMAIN)
    monkeypatch.setenv("_hook_domxml", str(file))
    monkeypatch.setenv("pcinuma_policy", policy)
    _refuse(step, monkeypatch)
    assert vdsm.main(root) == code
    monkeypatch.undo()
    assert file.read_text() == DOMAIN and {path.name for path in tmp_path.iterdir()} == {"xml"}
    assert "cannot be replaced (No space left on device), so nothing is placed" in capfd.readouterr().err


def _refuse(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    if step == "write":
        real = os.fdopen
        full = open("/dev/full", "wb")  # noqa: SIM115  # closed by who gets it
        monkeypatch.setattr(vdsm, "open", lambda fd, mode: full if mode == "wb" else real(fd, mode), raising=False)
    elif step == "open":
        real_open = os.open
        monkeypatch.setattr(os, "open", lambda p, flags, *a: refuse() if flags & os.O_CREAT else real_open(p, flags, *a))
    else:
        monkeypatch.setattr(os, step, refuse)


def test_whoever_kills_it_finds_the_old_file_or_the_new_one(tmp_path: Path, root: Path) -> None:
    """Killed before each call by which the new file comes about, and after the last one."""
    new = place(DOMAIN.encode(), Request(root=root)).xml.decode()
    found = []
    for count in range(20):
        folder = tmp_path / f"tmp{count}"
        folder.mkdir()
        (folder / "xml").write_text(DOMAIN)
        hook = launcher(tmp_path / "hook", root)
        trap = (
            "import os, signal\n"
            "from pcinuma.managers import vdsm\n"
            "real, left = vdsm._replace, [-1]\n"
            "def audit(event, arguments):\n"
            "    left[0] -= event in ('open', 'os.chmod', 'os.chown', 'os.rename')\n"
            "    if left[0] == 0:\n        left[0] = -1\n        os.kill(os.getpid(), signal.SIGKILL)\n"
            f"def replace(*arguments):\n    left[0] = {count + 1}\n    real(*arguments)\n    left[0] = -1\n"
            "vdsm._replace = replace\nsys.addaudithook(audit)\n"
        )
        text = hook.read_text().replace("\n    code = main", "\n    exec(TRAP)\n    code = main", 1)
        hook.write_text(text.replace("import sys\n", f"import sys\nTRAP = {trap!r}\n", 1))
        done = run(hook, {"_hook_domxml": str(folder / "xml")})
        found.append((folder / "xml").read_text())
        if done.returncode == 0:
            break
        assert done.returncode == -9, done.stderr
    assert len(found) >= 4, done.stderr
    assert set(found[:-1]) == {DOMAIN} and found[-1] == new


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.one_of(st.binary(max_size=200), st.text(max_size=200).map(lambda text: f"<domain>{text}</domain>".encode(errors="replace"))))
def test_no_xml_makes_it_fail(tmp_path_factory: pytest.TempPathFactory, xml: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "any.xml"
    file.write_bytes(xml)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("_hook_domxml", str(file))
        assert vdsm.main(Path("/nonexistent")) == 0
    assert file.read_bytes() == xml


@pytest.mark.parametrize("readable", [True, False])
def test_what_only_root_may_read_is_said_where_it_matters(manager: Vdsm, tmp_path: Path, readable: bool) -> None:
    """The kernel gives others than root 64 bytes of a configuration space, which do not tell a switch's ports from other bridges."""
    MACHINES["cascaded-switches"]().write(tmp_path / "root")
    launcher(manager.hooks / "60_pcinuma", tmp_path / "root")
    domain = Domain().cells("0-1").memnode(0, "0").hostdev("24:00.0").hostdev("25:00.0").raw().decode()
    if not readable:
        for config in (tmp_path / "root/sys/devices").rglob("config"):
            os.truncate(config, 64)
    for group_by, said in (("switch", not readable), ("root-complex", False)):
        manager.log.clear()
        assert manager.before_vm_start(domain, {"pcinuma_group_by": group_by}) != domain
        assert ("this user cannot read the configuration space of 0000:" in manager.log[0]) == said


def test_a_placed_vm_of_which_a_device_is_gone_keeps_what_it_has(manager: Vdsm, root: Path, tmp_path: Path) -> None:
    placed = place(DOMAIN.encode(), Request(root=root, group_by=GroupBy.SWITCH)).xml.decode()
    MACHINES["one-node"]().write(tmp_path / "root")
    launcher(manager.hooks / "60_pcinuma", tmp_path / "root")
    assert manager.before_vm_start(placed) == placed
    assert "the host has no such device" in manager.log[0] and "failed" not in manager.log[0]
