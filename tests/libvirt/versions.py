"""The tests of this folder on other versions of libvirt and QEMU: ``python3 -m tests.libvirt.versions [SUITE …]``.

For each Debian release of :data:`~tests.libvirt.chroot.RELEASES` (or those named): make its chroot if it is not there, run this
folder's tests against the libvirt inside, with the release's own Python for daemon and hook, and print a table. Exit 1 if a test failed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from lxml import etree

from tests.libvirt.chroot import RELEASES, Release, chroot
from tests.libvirt.harness import CHECKOUT, PrivateLibvirt

PARTS = ("test_harness", "test_goldens_defined", "test_reconciler", "test_hook")


class Row(NamedTuple):
    """What came of one release; ``passed`` has a count such as ``12/12`` for each of :data:`PARTS`."""

    suite: str
    libvirt: str
    qemu: str
    python: str
    passed: tuple[str, ...]
    failures: tuple[str, ...]
    seconds: float


def run(release: Release) -> Row:
    """Run the tests on one release."""
    root = chroot(release)
    began = time.monotonic()
    with PrivateLibvirt(root=root) as host:
        connection = host.connect()
        libvirt, qemu = _dotted(connection.getLibVersion()), _dotted(connection.getVersion())
        python = host.run(["python3", "-c", "import platform; print(platform.python_version())"]).stdout.strip()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        subprocess.run(
            [
                *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"),
                *(f"tests/libvirt/{part}.py" for part in PARTS),
            ],
            cwd=CHECKOUT,
            env={**os.environ, "PCINUMA_TEST_ROOT": str(root)},
            check=False,
        )
        passed, failures = _read(report)
    return Row(release.suite, libvirt, qemu, python, passed, failures, time.monotonic() - began)


def _dotted(version: int) -> str:
    return f"{version // 1_000_000}.{version // 1000 % 1000}.{version % 1000}"


def _read(report: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The counts and the names of what failed, from pytest's JUnit report."""
    good, every, failures = dict.fromkeys(PARTS, 0), dict.fromkeys(PARTS, 0), []
    for case in etree.parse(str(report)).iterfind(".//testcase"):
        part = case.get("classname", "").rpartition(".")[2]
        if part not in every or case.find("skipped") is not None:
            continue
        every[part] += 1
        if case.find("failure") is None and case.find("error") is None:
            good[part] += 1
        else:
            failures.append(f"{part}: {case.get('name')}")
    return tuple(f"{good[part]}/{every[part]}" for part in PARTS), tuple(failures)


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table."""
    head = ("release", "libvirt", "QEMU", "Python", *(part[len("test_") :].replace("_", " ") for part in PARTS), "seconds")
    lines = [head, tuple("-" * len(name) for name in head)]
    lines += [(row.suite, row.libvirt, row.qemu, row.python, *row.passed, f"{row.seconds:.0f}") for row in rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |" for line in lines)


def main() -> int:
    """The command line."""
    suites = [release.suite for release in RELEASES]
    parser = argparse.ArgumentParser(prog="python3 -m tests.libvirt.versions", description="Test other versions of libvirt and QEMU.")
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"Debian releases (default: {' '.join(suites)})")
    wanted = parser.parse_args().suites or suites
    unknown = sorted(set(wanted) - set(suites))
    if unknown:
        parser.error(f"unknown release {' '.join(unknown)}; there are {' '.join(suites)}")
    rows = [run(release) for release in RELEASES if release.suite in wanted]
    print(table(rows))
    for row in rows:
        for failure in row.failures:
            print(f"{row.suite}: failed: {failure}")
    return 1 if any(row.failures for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
