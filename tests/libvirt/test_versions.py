# SPDX-License-Identifier: LGPL-2.1-or-later
"""The tests on other versions of libvirt and QEMU (``tests/run --versions``): one run of them a release, and what is written of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.libvirt.conftest import require
from tests.libvirt.versions import DOCUMENT, MARKS, Column, Count, read, record, run, suites, written

REPORT = """<testsuites><testsuite>
<testcase classname="a" name="one"/><testcase classname="a" name="two"><failure message="no"/></testcase>
<testcase classname="a" name="three"><skipped message="QEMU 7.2 has no igb, 8.0 has"/></testcase>
<testcase classname="a" name="four"><skipped message="not installed"/></testcase>
<testcase classname="a" name="five"><skipped type="pytest.xfail" message="a bug"/></testcase>
</testsuite></testsuites>"""
EMPTY = f"before\n{MARKS[0]}\n{MARKS[1]}\nafter\n"


@pytest.mark.versions
@pytest.mark.parametrize("suite", suites())
def test_everything_holds_on(suite: str) -> None:
    require()
    column = run(suite)
    record([column])
    print("\n".join(column.notes))
    assert column.failures == []


def test_what_was_skipped_is_never_passed_and_fails_unless_the_release_is_the_reason(tmp_path: Path) -> None:
    (tmp_path / "report.xml").write_text(REPORT)
    count = read(tmp_path / "report.xml", 3.2, 1)
    assert str(count) == "1/5, 3 s"
    assert count.failures == ("two", "four did not run: not installed")
    assert count.not_run == ("QEMU 7.2 has no igb, 8.0 has", "not installed", "known to fail: a bug")


def test_a_run_without_tests_and_a_run_that_broke_are_failures(tmp_path: Path) -> None:
    (tmp_path / "report.xml").write_text("<testsuites><testsuite/></testsuites>")
    assert read(tmp_path / "report.xml", 0, 5).failures == ("pytest ended with 5 and ran no test",)
    (tmp_path / "report.xml").write_text("<testsuites><testsuite><testcase name='one'/></testsuite></testsuites>")
    assert read(tmp_path / "report.xml", 0, 1).failures == ("pytest ended with 1",)


def test_a_release_that_ran_replaces_its_column_and_leaves_the_others() -> None:
    first, last = suites()[0], suites()[-1]
    facts = {"measured": "2026-01-01", "libvirt": "7.0.0", "QEMU": "5.2.0", "Python": "3.9.2"}
    old = written(EMPTY, [Column(suite, facts, {"hook": Count(1, 2, 5, ("one",))}) for suite in (last, first)])
    new = written(old, [Column(last, {**facts, "measured": "2026-02-02"}, {"hook": Count(2, 2, 4)})])
    assert f"| Debian | {first} | {last} |" in new
    assert "| hook | 1/2, 5 s | 2/2, 4 s |" in new and "| measured | 2026-01-01 | 2026-02-02 |" in new
    assert f"- {first}: failed: hook: one" in new and f"{last}: failed" not in new
    assert new.startswith("before\n") and new.endswith("after\n")
    assert written(new, []) == new


def test_the_document_can_be_written_again() -> None:
    assert written(DOCUMENT.read_text(), []) == DOCUMENT.read_text()
