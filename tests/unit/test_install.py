# SPDX-License-Identifier: LGPL-2.1-or-later
"""What goes where by `make install`, what host-setup does about libvirt's hook, and how install.sh speaks; on hosts: tests/libvirt and
tests/packages."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from pcinuma.settings import Settings, load_settings
from tests import needs
from tests.packages import building
from tests.waiting import CHECKOUT

FOREIGN_HOOK = "#!/bin/sh\n# somebody else's\nexit 0\n"
HOOK = "etc/libvirt/hooks/qemu.d/pcinuma"
FORMER_HOOK = "etc/libvirt/hooks/qemu"


def run(*arguments: object, script: Path = CHECKOUT / "install.sh", code: int = 0) -> str:
    """What install.sh says, which ended with the exit code ``code``."""
    words = [str(argument) for argument in arguments]
    process = subprocess.run([str(script), *words], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert process.returncode == code, process.stdout + process.stderr
    return process.stdout + process.stderr


def stage(root: Path, checkout: Path = CHECKOUT) -> None:
    subprocess.run(["make", "-s", "-C", checkout, "install", f"DESTDIR={root}"], check=True)


def setup(root: Path, word: str = "installed") -> str:
    """What host-setup says, having done ``word`` below ``root``."""
    environment = {**os.environ, "DPKG_ROOT": str(root)}
    return subprocess.run(
        [root / "usr/share/pcinuma/host-setup", word], env=environment, check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def files(root: Path) -> set[str]:
    """Every file below ``root`` and every folder that is empty."""
    return {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir() or not any(path.iterdir())}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the checkout's files, to be changed."""
    return building.source(tmp_path / "checkout")


@pytest.fixture
def root(tmp_path: Path, staged: Path) -> Path:
    """A staged installation, to be changed."""
    return Path(shutil.copytree(staged, tmp_path / "root", symlinks=True))


# What is installed.


def test_staging_brings_the_program_the_launchers_the_hook_the_units_and_the_documents(staged: Path) -> None:
    outside_of_the_package = {file for file in files(staged) if not file.startswith("usr/share/pcinuma/pcinuma/")}
    assert outside_of_the_package == {
        "etc/libvirt/hooks/qemu.d",
        "etc/pcinuma/pcinuma.conf",
        "etc/pcinuma/pcinuma.conf.d",
        "usr/bin/pcinuma",
        "usr/bin/pcinuma-proxy",
        "usr/bin/pcinumad",
        "usr/lib/systemd/system/pcinuma-metrics.service",
        "usr/lib/systemd/system/pcinuma-metrics.timer",
        "usr/lib/systemd/system/pcinuma-proxy.service",
        "usr/lib/systemd/system/pcinuma-proxy.socket",
        "usr/lib/systemd/system/pcinuma.service",
        "usr/lib/systemd/system/pcinuma.socket",
        "usr/lib/tmpfiles.d/pcinuma.conf",
        "usr/share/bash-completion/completions/pcinuma",
        "usr/share/man/man5/pcinuma.conf.5",
        "usr/share/man/man8/pcinuma-proxy.8",
        "usr/share/man/man8/pcinuma.8",
        "usr/share/man/man8/pcinumad.8",
        "usr/share/pcinuma/host-setup",
        "usr/share/pcinuma/qemu-hook",
        "usr/share/zsh/site-functions/_pcinuma",
    }


def test_the_staged_package_is_the_one_of_the_checkout_without_compiled_files(staged: Path) -> None:
    package = staged / "usr/share/pcinuma/pcinuma"
    sources = {path for path in (CHECKOUT / "pcinuma").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert files(package) == {str(source.relative_to(CHECKOUT / "pcinuma")) for source in sources}
    assert (package / "settings.py").read_bytes() == (CHECKOUT / "pcinuma/settings.py").read_bytes()


@pytest.mark.parametrize(
    ("path", "mode"),
    [
        ("usr/bin/pcinuma", 0o755),
        ("usr/share/pcinuma/qemu-hook", 0o755),
        ("usr/share/pcinuma/pcinuma/settings.py", 0o644),
        ("usr/share/pcinuma/pcinuma/host", 0o755),
        ("usr/share/man/man8", 0o755),
        ("etc/pcinuma/pcinuma.conf", 0o644),
        (HOOK, 0o755),
    ],
)
def test_modes_do_not_depend_on_the_umask(tmp_path: Path, path: str, mode: int) -> None:
    before = os.umask(0o077)
    try:
        stage(tmp_path / "root")
        setup(tmp_path / "root")
    finally:
        os.umask(before)
    assert (tmp_path / "root" / path).stat().st_mode & 0o7777 == mode


def test_the_directories_are_variables(tmp_path: Path) -> None:
    words = ["prefix=/opt/x", "sysconfdir=/opt/etc", "unitdir=/opt/units", "PYTHON=/opt/python"]
    subprocess.run(["make", "-s", "-C", CHECKOUT, "install", f"DESTDIR={tmp_path}", *words], check=True)
    assert {path.relative_to(tmp_path).parts[:2] for path in tmp_path.rglob("*") if path.is_file()} == {
        ("opt", "etc"),
        ("opt", "units"),
        ("opt", "x"),
    }
    launcher = (tmp_path / "opt/x/bin/pcinuma").read_text()
    assert launcher.startswith("#!/opt/python -I\n") and '"/opt/x/share/pcinuma"' in launcher


def test_the_launchers_use_the_distributions_python_and_hear_no_environment(staged: Path) -> None:
    for name in ("pcinuma", "pcinumad", "pcinuma-proxy"):
        launcher = (staged / "usr/bin" / name).read_text()
        assert launcher.startswith("#!/usr/bin/python3 -I\n")
        compile(launcher, name, "exec")


def test_the_installed_configuration_shows_every_setting_with_its_default(staged: Path, tmp_path: Path) -> None:
    installed = (staged / "etc/pcinuma/pcinuma.conf").read_text()
    assert load_settings(staged) == Settings()
    (tmp_path / "etc/pcinuma").mkdir(parents=True)
    shown = [line[1:] if line.startswith("#") and " = " in line and not line.startswith("# ") else line for line in installed.splitlines()]
    (tmp_path / "etc/pcinuma/pcinuma.conf").write_text("\n".join(shown))
    assert load_settings(tmp_path) == Settings()
    assert sum(" = " in line for line in shown if not line.startswith("#")) == len(Settings.__dataclass_fields__)


def test_staging_another_version_takes_away_what_is_gone(root: Path, checkout: Path) -> None:
    (checkout / "pcinuma/settings.py").unlink()
    (checkout / "pcinuma/new.py").write_text("new = 1\n")
    stage(root, checkout)
    package = root / "usr/share/pcinuma/pcinuma"
    assert not (package / "settings.py").exists() and (package / "new.py").exists()


# libvirt's hook.


def test_the_hook_is_put_where_it_is_nobodys_concern_but_ours(root: Path) -> None:
    assert setup(root) == ""
    assert (root / HOOK).read_bytes() == (CHECKOUT / "hook/qemu").read_bytes()
    assert files(root / "etc/libvirt") == {"hooks/qemu.d/pcinuma"}
    before = (root / HOOK).stat()
    assert setup(root) == ""
    assert (root / HOOK).stat() == before


def test_an_upgraded_hook_keeps_its_time_since_libvirt_knows_it_already(root: Path) -> None:
    setup(root)
    os.utime(root / HOOK, (1_000_000_000, 1_000_000_000))
    with (root / "usr/share/pcinuma/qemu-hook").open("a") as file:
        file.write("# newer\n")
    setup(root)
    assert (root / HOOK).read_text().endswith("# newer\n")
    assert (root / HOOK).stat().st_mtime == 1_000_000_000


def test_a_hook_of_ours_in_the_former_place_moves_and_keeps_its_time(root: Path) -> None:
    shutil.copy(CHECKOUT / "hook/qemu", root / FORMER_HOOK)
    os.utime(root / FORMER_HOOK, (1_000_000_000, 1_000_000_000))
    setup(root)
    assert not (root / FORMER_HOOK).exists()
    assert (root / HOOK).stat().st_mtime == 1_000_000_000 and os.access(root / HOOK, os.X_OK)


@pytest.mark.parametrize("name", [FORMER_HOOK, "etc/libvirt/hooks/qemu.d/another"])
def test_a_hook_of_somebody_else_stays_and_ours_goes_beside_it(root: Path, name: str) -> None:
    (root / name).write_text(FOREIGN_HOOK)
    assert setup(root) == ""
    assert (root / HOOK).exists()
    setup(root, "removing")
    assert files(root / "etc/libvirt") - {"hooks/qemu.d"} == {str(Path(name).relative_to("etc/libvirt"))}
    assert (root / name).read_text() == FOREIGN_HOOK


def test_a_link_that_points_nowhere_is_somebody_elses_hook_too(root: Path) -> None:
    for name in (FORMER_HOOK, HOOK):
        (root / name).symlink_to("/nowhere")
    assert "somebody else's" in setup(root)
    setup(root, "removing")
    assert [os.readlink(root / name) for name in (FORMER_HOOK, HOOK)] == ["/nowhere", "/nowhere"]


def test_where_our_place_is_taken_no_hook_is_installed_and_it_says_so(root: Path) -> None:
    (root / HOOK).write_text(FOREIGN_HOOK)
    assert f"/{HOOK} is somebody else's, so the hook is not installed" in setup(root)
    setup(root, "removing")
    assert (root / HOOK).read_text() == FOREIGN_HOOK


def test_removing_takes_the_hook_from_wherever_it_is(root: Path) -> None:
    setup(root)
    shutil.copy(CHECKOUT / "hook/qemu", root / FORMER_HOOK)
    setup(root, "removing")
    assert files(root / "etc/libvirt") == {"hooks/qemu.d"}


# Wrong usage.


@pytest.mark.parametrize("arguments", [["--frobnicate"], ["--root", "/nowhere"], ["surplus"], ["--force"]], ids=" ".join)
def test_wrong_usage_is_one_line_and_exit_code_2(arguments: list[str]) -> None:
    said = run(*arguments, code=2)
    assert said.count("\n") == 1 and said.startswith("install.sh: ") and "--help" in said


@pytest.mark.skipif(needs.other_user() is not None, reason=str(needs.other_user()))
def test_somebody_who_is_not_root_is_told_in_one_line() -> None:
    words = ["setpriv", "--reuid=65534", "--clear-groups", "bash", "install.sh", "--uninstall"]
    process = subprocess.run(words, cwd=CHECKOUT, capture_output=True, text=True)
    assert (process.returncode, process.stdout) == (1, "")
    assert process.stderr == "install.sh: must be run as root, for example: sudo install.sh --uninstall\n"


def test_the_help_names_every_option_and_fits_a_terminal() -> None:
    said = run("--help")
    for option in ("--no-packages", "--uninstall", "--purge", "--force", "--demo", "--help"):
        assert f"  {option}" in said
    assert max(map(len, said.splitlines())) <= 96


@pytest.mark.parametrize("seconds", [0.05, 0.4, 0.9, 1.9])
def test_whether_a_process_started_before_a_file_was_written_is_told_within_a_second_too(tmp_path: Path, seconds: float) -> None:
    """libvirt is reloaded where it started before the hook was there, and only there."""
    script = (CHECKOUT / "packaging/host-setup").read_text()
    functions = [re.search(rf"(?ms)^{name}\(\) \{{$.*?^\}}$", script) for name in ("start_of", "started_before", "time_of")]
    asked = 'started_before "$1" "$(time_of Y "$2")" && echo before || echo after'
    text = "\n".join([*(found.group() for found in functions if found), asked])
    earliest = time.time()
    with subprocess.Popen(["sleep", "60"]) as process:
        latest = time.time()
        said = []
        for written in (earliest - seconds, latest + seconds):
            (tmp_path / "file").touch()
            os.utime(tmp_path / "file", (written, written))
            words = ["sh", "-euc", text, "sh", str(process.pid), str(tmp_path / "file")]
            said.append(subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout.strip())
        process.kill()
    assert said == ["after", "before"]
