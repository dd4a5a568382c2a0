# SPDX-License-Identifier: LGPL-2.1-or-later
"""Packages of this checkout, and of a version before or after it, for tests that install them."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.libvirt import chroot
from tests.waiting import CHECKOUT

PARTS = ("completion", "config", "docs", "hook", "man", "packaging", "pcinuma", "systemd")
FILES = ("CHANGELOG.md", "LICENSE", "Makefile", "README.md", "install.sh", "pyproject.toml")


def source(folder: Path, version: str = "") -> Path:
    """A copy of the checkout, as what is released as ``version`` (its own by default)."""
    for part in PARTS:
        shutil.copytree(CHECKOUT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    for file in FILES:
        shutil.copy(CHECKOUT / file, folder)
    if version:
        _replace(folder / "pcinuma/__init__.py", r'(?<=__version__ = ")[^"]*', version)
        _replace(folder / "packaging/debian/changelog", r"(?<=\()[^-)]*", version)
        _replace(folder / "packaging/rpm/pcinuma.spec", r"(?m)(?<=^Version:)( *).*", rf"\g<1>{version}")
    return folder


def other(folder: Path, version: str) -> Path:
    """A version in which everything differs that an upgrade may meet: a module that this one has not, another hook, other units, another
    default configuration, and a daemon that says who it is."""
    source(folder, version)
    (folder / "pcinuma/of_another_version.py").write_text("")
    for file in ("hook/qemu", "systemd/pcinuma.service", "systemd/pcinuma-proxy.service", "config/pcinuma.conf"):
        with (folder / file).open("a") as opened:
            opened.write(f"# {version}\n")
    return folder


def plain(checkout: Path, deb: Path) -> Path:
    """The Debian package by ``packaging/plain-deb``."""
    subprocess.run([checkout / "packaging/plain-deb", deb], check=True)
    return deb


def _replace(file: Path, pattern: str, new: str) -> None:
    text, count = re.subn(pattern, new, file.read_text(), count=1)
    assert count == 1, f"{file} has no {pattern}"
    file.write_text(text)


HOOK_PACKAGE = "vdsm-hook-pcinuma"


def hook_package(package: Path) -> Path:
    """Where the package for oVirt's hosts is, that is made together with ``package``."""
    return package.with_name(f"{package.stem}-hook{package.suffix}")


def debhelper(checkout: Path, deb: Path, root: Path) -> tuple[Path, str]:
    """The Debian packages by debhelper and dpkg-buildpackage of the distribution below ``root``, and what its lintian says of them."""
    with tempfile.TemporaryDirectory(prefix="pcinuma-", dir=root / "srv") as folder:
        inside = f"/srv/{Path(folder).name}"
        shutil.copytree(checkout, f"{folder}/checkout")
        # -d: it needs no compiler, and build-essential is one.
        chroot.run_inside(root, f"cd {inside} && checkout/packaging/build-deb made -d")
        said = chroot.run_inside(root, f"lintian --allow-root --fail-on none {inside}/made/*.changes")
        for name, to in (("pcinuma", deb), (HOOK_PACKAGE, hook_package(deb))):
            (made,) = Path(folder, "made").glob(f"{name}_*.deb")
            shutil.copy(made, to)
    return deb, said


def rpm(checkout: Path, package: Path, root: Path) -> tuple[Path, str]:
    """The RPM packages by the rpmbuild of the Debian below ``root``, and what its rpmlint says of them and of their description; what of
    Fedora's macros that Debian lacks is in rpm.macros."""
    with tempfile.TemporaryDirectory(prefix="pcinuma-", dir=root / "srv") as folder:
        inside = f"/srv/{Path(folder).name}"
        shutil.copytree(checkout, f"{folder}/checkout")
        shutil.copy(Path(__file__).with_name("rpm.macros"), f"{folder}/.rpmmacros")
        chroot.run_inside(root, f"cd {inside} && HOME={inside} checkout/packaging/build-rpm made --nodeps")
        lint = "rpmlint -r checkout/packaging/rpm/pcinuma.rpmlintrc made/*.rpm checkout/packaging/rpm/pcinuma.spec"
        said = chroot.run_inside(root, f"cd {inside} && {lint} || true")
        for name, to in (("pcinuma", package), (HOOK_PACKAGE, hook_package(package))):
            (made,) = Path(folder, "made").glob(f"{name}-[0-9]*.rpm")
            shutil.copy(made, to)
    return package, said
