# SPDX-License-Identifier: LGPL-2.1-or-later
"""The tests on other versions of libvirt and QEMU: ``python3 -m tests.libvirt.versions [SUITE …]``, or ``tests/run --versions``.

For each Debian release of :data:`~tests.libvirt.chroot.RELEASES`, with its chroot, and for this machine's own distribution:

- tests of this folder against the libvirt inside, with the release's own Python for daemon, hook and proxy;
- tier 1, placed guests booted by the release's QEMU and firmware and judged;
- tier 2, pcinuma's life on a virtual host whose userland is the release: its libvirt, QEMU, Python and vfio-pci on real bindings;
- the virtual host with a NIC that has virtual functions, emulated by the release's QEMU, where that is new enough;
- the start paths with virtqemud and virtproxyd in libvirtd's place, built here from the release's source package.

Each :class:`Part` is pytest runs of their own. What came of them is written to docs/versions.md by the run itself, a column for each
release; those that did not run keep what they have. A test that did not run is not counted as passed, and named with its reason; it is
a failure too, but for the reasons that lie in a release itself (:data:`BEYOND`). Nor does what is known to fail (xfail) count as passed.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from lxml import etree

from tests.libvirt.chroot import RELEASES, chroot
from tests.libvirt.harness import PrivateLibvirt
from tests.libvirt.modular import NoSource, modular
from tests.libvirt.qemu_prefix import qemu_prefix
from tests.waiting import CHECKOUT

DOCUMENT = CHECKOUT / "docs/versions.md"
MARKS = ("<!-- from here on written by tests/run --versions -->", "<!-- to here -->")

TIMEOUT = 1800
BEYOND = ("this libvirt knows expander buses on q35 only", "has no igb")
"""What reasons to skip a test begin with or contain where the release is the reason."""

TIER_1 = (
    "(two-sockets and swapped) or true_links or cascaded-switches or multifunction-gpu-root-complex-seabios or eight-gpus-node-ovmf or"
    " no_node or swapped_cells or i440fx"
)


@dataclass(frozen=True)
class Part:
    """Tests that make up a row. ``world``: what is the release's: ``libvirt``, ``machine`` (QEMU and firmware that run the machine),
    ``userland`` (of the virtual host) or ``modular`` (libvirt, as modular daemons)."""

    title: str
    world: str
    arguments: tuple[str, ...]


def _libvirt(title: str, name: str) -> Part:
    return Part(title, "libvirt", (f"tests/libvirt/{name}.py", "-m", "not full"))


PARTS = (
    _libvirt("the private libvirtd itself", "test_harness"),
    _libvirt("every golden, defined and placed again", "test_goldens_defined"),
    _libvirt("reconciler", "test_reconciler"),
    _libvirt("hook", "test_hook"),
    _libvirt("proxy", "test_proxy"),
    _libvirt("start paths, with the reconciler and with the proxy", "test_start_paths"),
    Part(
        "tier 1: placed guests, booted and judged",
        "machine",
        (*(f"tests/guest/{name}.py" for name in ("test_placed_guests", "test_the_judge_can_fail", "test_machine_types")), "-k", TIER_1),
    ),
    Part("tier 2: the release as a virtual host", "userland", ("tests/lab/test_life_on_a_host.py",)),
    Part("a virtual host with an SR-IOV NIC on the release's QEMU", "machine", ("tests/lab/test_sriov_nic.py",)),
    Part(
        "modular daemons: start paths, and the proxy enabled and refused",
        "modular",
        ("tests/libvirt/modular_daemons.py", "tests/libvirt/test_start_paths.py", "-m", "not full"),
    ),
)


@dataclass(frozen=True)
class Count:
    """What came of a part."""

    passed: int
    all: int
    seconds: float
    failures: tuple[str, ...] = ()
    not_run: tuple[str, ...] = ()

    def __str__(self) -> str:
        if not self.all:
            return "failed" if self.failures else "not run"
        return f"{self.passed}/{self.all}, {self.seconds:.0f} s"


@dataclass(frozen=True)
class Column:
    """What came of a release."""

    suite: str
    facts: Mapping[str, str]
    counts: Mapping[str, Count]

    @property
    def failures(self) -> list[str]:
        return [f"{title}: {failure}" for title, count in self.counts.items() for failure in count.failures]

    @property
    def notes(self) -> list[str]:
        """What the table does not say: what failed, and what did not run."""
        lines = [f"{self.suite}: failed: {failure}" for failure in self.failures]
        for title, count in self.counts.items():
            for reason in sorted(set(count.not_run)):
                several = f"{count.not_run.count(reason)} of {count.all}: " if count.all else ""
                lines.append(f"{self.suite}: not passed: {title}: {several}{reason}")
        return lines


def own_suite() -> str:
    """The name of this machine's release."""
    found = re.search(r"^VERSION_CODENAME=(\w+)", Path("/etc/os-release").read_text(), re.MULTILINE)
    return found.group(1) if found else "this machine"


def suites() -> list[str]:
    """All releases, the oldest first."""
    names = [release.suite for release in RELEASES]
    return [names[0], own_suite(), *names[1:]] if own_suite() not in names else names


def root_of(suite: str) -> Path:
    """The root directory of a release; its chroot is made if it is not there."""
    for release in RELEASES:
        if release.suite == suite and suite != own_suite():
            return chroot(release)
    return Path("/")


def run(suite: str) -> Column:
    """Run everything on one release."""
    root = root_of(suite)
    facts = {"measured": time.strftime("%Y-%m-%d"), **_versions(root)}
    counts = {}
    for part in PARTS:
        if part.world == "modular" and not any(release.suite == suite and release.modular for release in RELEASES):
            continue
        with tempfile.TemporaryDirectory(prefix="pcinuma-versions-") as folder:
            try:
                counts[part.title] = _pytest(part, _environment(part.world, root, Path(folder, "prefix")), Path(folder, "report.xml"))
            except NoSource as error:
                counts[part.title] = Count(0, 0, 0, not_run=(str(error),))
    return Column(suite, facts, counts)


def _environment(world: str, root: Path, prefix: Path) -> dict[str, str]:
    """What tells the tests of a part whose programs to run; ``prefix`` is a folder to be made."""
    if world == "userland":
        return {"PCINUMA_LAB_USERLAND": str(root)}
    if world == "machine":
        return {} if root == Path("/") else {"PATH": f"{qemu_prefix(root, prefix)}:{os.environ['PATH']}"}
    modular_ = {"PCINUMA_TEST_MODULAR": str(modular(root))} if world == "modular" else {}
    return {"PCINUMA_TEST_ROOT": str(root), **modular_}


def _versions(root: Path) -> dict[str, str]:
    with PrivateLibvirt(root=root) as host:
        connection = host.connect()
        libvirt, qemu = _dotted(connection.getLibVersion()), _dotted(connection.getVersion())
        python = host.run(["python3", "-c", "import platform; print(platform.python_version())"]).stdout.strip()
    return {"libvirt": libvirt, "QEMU": qemu, "Python": python}


def _dotted(version: int) -> str:
    return f"{version // 1_000_000}.{version // 1000 % 1000}.{version % 1000}"


def _pytest(part: Part, environment: Mapping[str, str], report: Path) -> Count:
    report.unlink(missing_ok=True)
    began = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *part.arguments]
    environment = {**{name: value for name, value in os.environ.items() if name != "CI"}, **environment}
    try:
        code = subprocess.run(command, cwd=CHECKOUT, env=environment, check=False, timeout=TIMEOUT).returncode
    except subprocess.TimeoutExpired:
        return Count(0, 0, TIMEOUT, (f"pytest did not end within {TIMEOUT} s",))
    seconds = time.monotonic() - began
    if not report.exists():
        return Count(0, 0, seconds, (f"pytest ended with {code} and left no report",))
    return read(report, seconds, code)


def read(report: Path, seconds: float, code: int) -> Count:
    """The count, from pytest's JUnit report and exit code."""
    cases = list(etree.parse(str(report)).iterfind(".//testcase"))
    failures, not_run = [], []
    for case in cases:
        skipped = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            failures.append(str(case.get("name")))
        elif skipped is not None:
            reason = skipped.get("message", "")
            known_failure = skipped.get("type") == "pytest.xfail"
            not_run.append(f"known to fail: {reason}" if known_failure else reason)
            if not known_failure and not any(known in reason for known in BEYOND):
                failures.append(f"{case.get('name')} did not run: {reason}")
    if not cases:
        failures.append(f"pytest ended with {code} and ran no test")
    elif code and not failures:
        failures.append(f"pytest ended with {code}")
    passed = len(cases) - len({str(case.get("name")) for case in cases if len(case.xpath("failure|error|skipped"))})
    return Count(passed, len(cases), seconds, tuple(failures), tuple(not_run))


# The document


def cells(column: Column) -> dict[str, str]:
    """A column of the table: row -> text."""
    return {**column.facts, **{title: str(count) for title, count in column.counts.items()}}


def written(document: str, columns: list[Column]) -> str:
    """The document with these columns in place of those of the same releases; the rest of it as it was."""
    before, rest = document.split(MARKS[0])
    old, after = rest.split(MARKS[1])
    table, notes = _read_table(old)
    for column in columns:
        table[column.suite] = cells(column)
        notes = [note for note in notes if not note.startswith(f"{column.suite}: ")] + column.notes
    order = [suite for suite in suites() if suite in table] + sorted(set(table) - set(suites()))
    notes.sort(key=lambda note: order.index(note.split(":")[0]))
    lines = [*_format_table({suite: table[suite] for suite in order}), "", *(f"- {note}" for note in notes)]
    return f"{before}{MARKS[0]}\n\n" + "\n".join(lines).rstrip() + f"\n\n{MARKS[1]}{after}"


def _read_table(text: str) -> tuple[dict[str, dict[str, str]], list[str]]:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    notes = [line[2:] for line in text.splitlines() if line.startswith("- ")]
    if not rows:
        return {}, notes
    head, body = rows[0], rows[2:]
    return {suite: {row[0]: row[number] for row in body if row[number]} for number, suite in enumerate(head) if number}, notes


def _format_table(table: Mapping[str, Mapping[str, str]]) -> list[str]:
    facts = ("measured", "libvirt", "QEMU", "Python")
    titles = [*facts, *(part.title for part in PARTS)]
    rows = [("Debian", *table), tuple("---" for _ in range(len(table) + 1))]
    rows += [(title, *(column.get(title, "") for column in table.values())) for title in titles]
    return ["| " + " | ".join(row) + " |" for row in rows]


def record(columns: list[Column]) -> None:
    """Write what was measured to the document."""
    DOCUMENT.write_text(written(DOCUMENT.read_text(), columns))


def main(argv: Optional[list[str]] = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python3 -m tests.libvirt.versions", description="Test other versions of libvirt and QEMU.")
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"Debian releases (default: {' '.join(suites())})")
    wanted = parser.parse_args(argv).suites or suites()
    unknown = sorted(set(wanted) - set(suites()))
    if unknown:
        parser.error(f"unknown release {' '.join(unknown)}; there are {' '.join(suites())}")
    columns = []
    for suite in wanted:
        columns.append(run(suite))
        record(columns[-1:])
    print("\n".join(_format_table({column.suite: cells(column) for column in columns})))
    for column in columns:
        for note in column.notes:
            print(note)
    return 1 if any(column.failures for column in columns) else 0


if __name__ == "__main__":
    sys.exit(main())
