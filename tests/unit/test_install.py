"""install.sh below a staging directory: what it puts where, what it never touches, and that it takes away all that it brought."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from pcinuma.settings import Settings, load_settings
from tests import needs
from tests.waiting import CHECKOUT

FOREIGN_HOOK = "#!/bin/sh\n# somebody else's\nexit 0\n"


def run(*arguments: object, script: Path = CHECKOUT / "install.sh", code: int = 0) -> str:
    """What install.sh says, which ended with the exit code ``code``."""
    words = [str(argument) for argument in arguments]
    process = subprocess.run([str(script), *words], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert process.returncode == code, process.stdout + process.stderr
    return process.stdout + process.stderr


def files(root: Path) -> set[str]:
    """Every file below ``root`` and every folder that is empty."""
    return {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir() or not any(path.iterdir())}


def snapshot(root: Path) -> dict[str, tuple[int, int, bytes]]:
    """Mode, time and content of every file."""
    return {
        str(path.relative_to(root)): (path.stat().st_mode, path.stat().st_mtime_ns, path.read_bytes())
        for path in root.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the checkout's files, to be changed."""
    copy = tmp_path / "checkout"
    ignored = shutil.ignore_patterns("__pycache__")
    for folder in ("pcinuma", "hook", "systemd", "man", "completion", "config"):
        shutil.copytree(CHECKOUT / folder, copy / folder, ignore=ignored)
    shutil.copy(CHECKOUT / "install.sh", copy)
    return copy


# What is installed.


def test_staging_brings_the_program_the_launchers_the_hook_the_units_and_the_documents(staged: Path) -> None:
    outside_of_the_package = {file for file in files(staged) if not file.startswith("usr/lib/pcinuma/pcinuma/")}
    assert outside_of_the_package == {
        "etc/libvirt/hooks/qemu",
        "etc/pcinuma/pcinuma.conf",
        "etc/pcinuma/pcinuma.conf.d",
        "usr/bin/pcinuma",
        "usr/bin/pcinuma-proxy",
        "usr/bin/pcinumad",
        "usr/lib/pcinuma/install.sh",
        "usr/lib/systemd/system/pcinuma-proxy.service",
        "usr/lib/systemd/system/pcinuma-proxy.socket",
        "usr/lib/systemd/system/pcinuma.service",
        "usr/lib/systemd/system/pcinuma.socket",
        "usr/lib/tmpfiles.d/pcinuma.conf",
        "usr/share/bash-completion/completions/pcinuma",
        "usr/share/man/man5/pcinuma.conf.5",
        "usr/share/man/man8/pcinuma.8",
    }


def test_the_staged_package_is_the_one_of_the_checkout_without_compiled_files(staged: Path) -> None:
    package = staged / "usr/lib/pcinuma/pcinuma"
    sources = {path for path in (CHECKOUT / "pcinuma").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert files(package) == {str(source.relative_to(CHECKOUT / "pcinuma")) for source in sources}
    assert (package / "settings.py").read_bytes() == (CHECKOUT / "pcinuma/settings.py").read_bytes()


@pytest.mark.parametrize(
    ("path", "mode"),
    [
        ("usr/bin/pcinuma", 0o755),
        ("etc/libvirt/hooks/qemu", 0o755),
        ("usr/lib/pcinuma/pcinuma/settings.py", 0o644),
        ("usr/lib/pcinuma/pcinuma/host", 0o755),
        ("etc/pcinuma/pcinuma.conf", 0o644),
    ],
)
def test_modes_do_not_depend_on_the_umask(tmp_path: Path, path: str, mode: int) -> None:
    before = os.umask(0o077)
    try:
        run("--root", tmp_path / "root")
    finally:
        os.umask(before)
    assert (tmp_path / "root" / path).stat().st_mode & 0o7777 == mode


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


# Run again.


def test_a_second_run_changes_nothing(tmp_path: Path) -> None:
    run("--root", tmp_path)
    before = snapshot(tmp_path)
    assert run("--root", tmp_path).splitlines() == [run("--root", tmp_path).splitlines()[0]]
    assert snapshot(tmp_path) == before


def test_an_upgrade_replaces_what_changed_and_takes_away_what_is_gone(tmp_path: Path, checkout: Path) -> None:
    root = tmp_path / "root"
    (checkout / "pcinuma/gone.py").write_text("")
    run("--root", root, script=checkout / "install.sh")
    (checkout / "pcinuma/gone.py").unlink()
    (checkout / "pcinuma/new.py").write_text("new = 1\n")
    (checkout / "systemd/pcinuma.service").write_text("[Unit]\n")
    said = run("--root", root, script=checkout / "install.sh")
    package = root / "usr/lib/pcinuma/pcinuma"
    assert not (package / "gone.py").exists() and (package / "new.py").exists()
    assert (root / "usr/lib/systemd/system/pcinuma.service").read_text() == "[Unit]\n"
    assert "/usr/lib/pcinuma/pcinuma (replaced)" in said and "pcinuma.service (replaced)" in said
    assert "pcinuma.socket" not in said
    assert list(package.parent.glob("pcinuma.*")) == []


def test_an_upgraded_hook_keeps_its_time_since_libvirt_knows_it_already(tmp_path: Path, checkout: Path) -> None:
    root = tmp_path / "root"
    run("--root", root)
    hook = root / "etc/libvirt/hooks/qemu"
    os.utime(hook, (1_000_000_000, 1_000_000_000))
    with (checkout / "hook/qemu").open("a") as file:
        file.write("# newer\n")
    run("--root", root, script=checkout / "install.sh")
    assert hook.read_text().endswith("# newer\n")
    assert hook.stat().st_mtime == 1_000_000_000


def test_the_configuration_is_never_overwritten(tmp_path: Path) -> None:
    mine = tmp_path / "etc/pcinuma/pcinuma.conf"
    mine.parent.mkdir(parents=True)
    mine.write_text("[placement]\npolicy = off\n")
    run("--root", tmp_path)
    assert mine.read_text() == "[placement]\npolicy = off\n"


def test_a_run_that_broke_off_is_mended_by_the_next(tmp_path: Path, staged: Path) -> None:
    obstacle = tmp_path / "usr/lib/systemd/system"
    obstacle.parent.mkdir(parents=True)
    obstacle.write_text("a file where a folder belongs")
    said = run("--root", tmp_path, code=1)
    assert "failed while writing" in said and "run it again" in said
    obstacle.unlink()
    run("--root", tmp_path)
    assert files(tmp_path) == files(staged)


# Hooks of others.


def test_a_hook_of_somebody_else_stays_and_ours_goes_beside_it(tmp_path: Path) -> None:
    foreign = tmp_path / "etc/libvirt/hooks/qemu"
    foreign.parent.mkdir(parents=True)
    foreign.write_text(FOREIGN_HOOK)
    said = run("--root", tmp_path)
    assert foreign.read_text() == FOREIGN_HOOK
    ours = tmp_path / "etc/libvirt/hooks/qemu.d/pcinuma"
    assert ours.read_bytes() == (CHECKOUT / "hook/qemu").read_bytes()
    assert "/etc/libvirt/hooks/qemu is somebody else's and stays as it is" in said
    run("--root", tmp_path, "--purge")
    assert files(tmp_path / "etc") == {"libvirt/hooks/qemu"} and foreign.read_text() == FOREIGN_HOOK


def test_a_link_that_points_nowhere_is_somebody_elses_hook_too(tmp_path: Path) -> None:
    link = tmp_path / "etc/libvirt/hooks/qemu"
    link.parent.mkdir(parents=True)
    link.symlink_to("/nowhere")
    run("--root", tmp_path)
    assert os.readlink(link) == "/nowhere" and (tmp_path / "etc/libvirt/hooks/qemu.d/pcinuma").exists()


def test_where_both_hooks_are_taken_none_is_installed_and_it_says_so(tmp_path: Path) -> None:
    hooks = tmp_path / "etc/libvirt/hooks"
    (hooks / "qemu.d").mkdir(parents=True)
    for file in (hooks / "qemu", hooks / "qemu.d/pcinuma"):
        file.write_text(FOREIGN_HOOK)
    assert "both somebody else's" in run("--root", tmp_path)
    run("--root", tmp_path, "--purge")
    assert [file.read_text() for file in (hooks / "qemu", hooks / "qemu.d/pcinuma")] == [FOREIGN_HOOK, FOREIGN_HOOK]


def test_our_hook_stays_where_it_is_when_the_other_place_falls_free(tmp_path: Path) -> None:
    foreign = tmp_path / "etc/libvirt/hooks/qemu"
    foreign.parent.mkdir(parents=True)
    foreign.write_text(FOREIGN_HOOK)
    run("--root", tmp_path)
    foreign.unlink()
    run("--root", tmp_path)
    assert not foreign.exists() and (tmp_path / "etc/libvirt/hooks/qemu.d/pcinuma").exists()


# Taken away.


def test_uninstalling_leaves_the_configuration_and_nothing_else(tmp_path: Path) -> None:
    run("--root", tmp_path)
    assert "--purge removes it too" in run("--root", tmp_path, "--uninstall")
    assert {file for file in files(tmp_path) if (tmp_path / file).is_file()} == {"etc/pcinuma/pcinuma.conf"}


def test_purging_leaves_nothing(tmp_path: Path) -> None:
    run("--root", tmp_path)
    run("--root", tmp_path, "--purge")
    assert [file for file in files(tmp_path) if "pcinuma" in file or (tmp_path / file).is_file()] == []


def test_the_installed_copy_uninstalls_when_the_checkout_is_gone(tmp_path: Path) -> None:
    run("--root", tmp_path)
    installed = tmp_path / "usr/lib/pcinuma/install.sh"
    assert "this copy can only --uninstall or --purge" in run("--root", tmp_path, script=installed, code=1)
    run("--root", tmp_path, "--purge", script=installed)
    assert not installed.exists() and not (tmp_path / "etc/pcinuma").exists()


def test_uninstalling_where_nothing_is_installed_says_so(tmp_path: Path) -> None:
    assert "Nothing of pcinuma is installed here." in run("--root", tmp_path, "--uninstall")


# Wrong usage.


@pytest.mark.parametrize(
    "arguments",
    [["--frobnicate"], ["--root"], ["--root="], ["surplus"], ["--force"], ["--root", "/"], ["--root", "/nowhere", "--demo"]],
    ids=" ".join,
)
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
    for option in ("--no-packages", "--root DIR", "--uninstall", "--purge", "--force", "--demo", "--help"):
        assert f"  {option}" in said
    assert max(map(len, said.splitlines())) <= 96
