# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is in the packages, and that their descriptions agree with each other and with the program. Nothing is installed here."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from pcinuma import __version__
from tests import needs
from tests.packages import building
from tests.waiting import CHECKOUT

CONTROL = CHECKOUT / "packaging/debian/control"
SPEC = CHECKOUT / "packaging/rpm/pcinuma.spec"
SCRIPTS = ("postinst", "prerm", "postrm")


@pytest.fixture(scope="module")
def deb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    needs.require(needs.program("dpkg-deb", "dpkg"), needs.program("make"))
    return building.plain(CHECKOUT, tmp_path_factory.mktemp("deb") / "pcinuma.deb")


@pytest.fixture(scope="module")
def unpacked(deb: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    subprocess.run(["dpkg-deb", "-R", deb, folder / "deb"], check=True)
    return folder / "deb"


def field(deb: Path, name: str) -> str:
    return subprocess.run(["dpkg-deb", "-f", deb, name], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir() and "DEBIAN" not in path.parts}


def test_the_package_has_what_is_staged_and_the_documents(unpacked: Path, staged: Path) -> None:
    def name(file: str) -> str:
        return re.sub(r"(share/man/.*)", r"\1.gz", file.replace("zsh/site-functions", "zsh/vendor-completions"))

    documents = {file for file in files(unpacked) if file.startswith("usr/share/doc/pcinuma/")}
    assert files(unpacked) - documents == {name(file) for file in files(staged)}
    assert {Path(file).name for file in documents} >= {"README.md", "copyright", "changelog.gz", "changelog.Debian.gz"}


def test_every_file_is_roots_and_only_the_configuration_is_a_conffile(deb: Path, unpacked: Path) -> None:
    listing = subprocess.run(["dpkg-deb", "-c", deb], check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    assert {line.split()[1] for line in listing} == {"root/root"}
    assert {line[:10] for line in listing} <= {"-rw-r--r--", "-rwxr-xr-x", "drwxr-xr-x", "lrwxrwxrwx"}
    assert (unpacked / "DEBIAN/conffiles").read_text() == "/etc/pcinuma/pcinuma.conf\n"


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_maintainer_script_is_sound(unpacked: Path, script: str) -> None:
    text = (unpacked / "DEBIAN" / script).read_text()
    assert text.startswith("#!/bin/sh\n") and "\nset -e\n" in text and "#DEBHELPER#" not in text
    needs.require(needs.program("shellcheck"))
    subprocess.run(["shellcheck", unpacked / "DEBIAN" / script], check=True)


def test_all_say_the_same_version(deb: Path) -> None:
    assert field(deb, "Version").rpartition("-")[0] == __version__
    assert re.findall(r"(?m)^Version: +(\S+)$", SPEC.read_text()) == [__version__]
    assert f"- {__version__}-1\n" in SPEC.read_text()


def test_all_say_the_same_licence() -> None:
    assert 'license = { text = "LGPL-2.1-or-later" }' in (CHECKOUT / "pyproject.toml").read_text()
    assert re.findall(r"(?m)^License: +(\S+)$", SPEC.read_text()) == ["LGPL-2.1-or-later"]
    assert "License: LGPL-2.1+" in (CHECKOUT / "packaging/debian/copyright").read_text()
    assert (CHECKOUT / "LICENSE").read_text().split()[:5] == ["GNU", "LESSER", "GENERAL", "PUBLIC", "LICENSE"]


def test_both_packages_and_the_installer_want_the_same_modules(deb: Path) -> None:
    wanted = set(re.findall(r"python3-[a-z]+", field(deb, "Depends")))
    assert set(re.findall(r"(?m)^Requires: +(python3-[a-z]+)", SPEC.read_text())) == wanted
    (modules,) = re.findall(r"MODULES=\(([^)]*)\)", (CHECKOUT / "install.sh").read_text())
    assert set(modules.split()) == wanted
    declared = re.findall(r'(?m)^dependencies = \[(.*)\]', (CHECKOUT / "pyproject.toml").read_text())[0]
    assert {f"python3-{name.removesuffix('-python')}" for name in re.findall(r'"([a-z-]+)', declared)} == wanted


def test_the_rpm_package_lists_what_is_staged(staged: Path) -> None:
    """As rpmbuild would say of it, which this machine need not have."""
    listed = re.search(r"(?s)\n%files\n(.*?)\n\n%changelog", SPEC.read_text())
    assert listed
    macros = {"_bindir": "usr/bin", "_datadir": "usr/share", "_mandir": "usr/share/man", "_sysconfdir": "etc", "name": "pcinuma"}
    macros |= {"_unitdir": "usr/lib/systemd/system", "_tmpfilesdir": "usr/lib/tmpfiles.d"}
    lines = [line.split()[-1] for line in listed.group(1).splitlines() if not line.startswith(("%license", "%doc"))]
    paths = {re.sub(r"%\{(\w+)\}", lambda match: macros[match.group(1)], line) for line in lines}
    for file in files(staged) | {"etc/pcinuma/pcinuma.conf.d"}:
        assert any(file == path or (path.endswith(("/", "*")) and file.startswith(path.rstrip("*"))) for path in paths), file
    for path in paths:
        assert list(staged.glob(path.rstrip("/"))), path


def test_what_the_packages_are_made_of_is_all_that_the_makefile_wants(tmp_path: Path) -> None:
    parts = (CHECKOUT / "packaging/source-files").read_text().split()
    assert set(parts) == {*building.PARTS, *building.FILES} - {"install.sh", "pyproject.toml"}


def test_every_source_file_says_its_licence() -> None:
    """packaging/spdx puts it where it is missing."""
    said = subprocess.run([CHECKOUT / "packaging/spdx", "--list"], check=True, stdout=subprocess.PIPE, text=True).stdout
    assert said == ""


def test_shells_find_their_completion(unpacked: Path) -> None:
    assert (unpacked / "usr/share/bash-completion/completions/pcinuma").read_text().endswith("complete -F _pcinuma pcinuma\n")
    assert (unpacked / "usr/share/zsh/vendor-completions/_pcinuma").read_text().startswith("#compdef pcinuma\n")
