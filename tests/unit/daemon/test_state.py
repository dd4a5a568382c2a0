# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is remembered of domains: whole after a kill at any moment, and a daemon that starts whatever is in the file."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcinuma.address import PciAddress
from pcinuma.daemon.state import FILE, Decision, Record, State, from_json, load, to_json
from pcinuma.daemon.state_file import replace_file
from tests.waiting import CHECKOUT

DECISION = Decision("placed", None, None, "preferred", 4, 4, "2026-01-02T03:04:05+00:00", "reconciler")
UUID = "0d1e7a3c-52f7-4b0e-9d2b-9a1c3f6a8b11"


FULL = {UUID: Record("vm", DECISION, frozenset({PciAddress(0, 10, 0, 0)})), "b": Record("other")}
WRITTEN = to_json(FULL)


def test_what_is_written_is_read() -> None:
    assert from_json(WRITTEN) == (FULL, [], None)
    assert from_json(to_json({})) == ({}, [], None)


def test_without_a_file_nothing_is_known(tmp_path: Path) -> None:
    assert load(tmp_path) == State()
    assert load(tmp_path).existing is None, "the first start is still to come"


CORRUPT = [
    b"",
    b"{",
    b"null",
    b"[]",
    b"{}",
    b'{"version": 2}',
    WRITTEN[:-30],
    WRITTEN.replace(b'"version": 2', b'"version": 99'),
    b"\xff" * 100,
    b"[" * 100_000,
]


@pytest.mark.parametrize("content", CORRUPT, ids=range(len(CORRUPT)))
def test_a_file_that_cannot_be_used_is_kept_aside_and_everything_that_exists_is_left_alone(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    state = load(tmp_path)
    assert state.existing is None
    (aside,) = tmp_path.iterdir()
    assert aside.name.startswith(f"{FILE}.unusable-")
    assert aside.read_bytes() == content


@pytest.mark.parametrize(("good", "bad"), [(b'"name": "vm"', b'"name": 7'), (b'"devices": 4', b'"devices": "4"'), (b'"by"', b'"bye"')])
def test_a_record_that_cannot_be_used_takes_no_other_along(good: bytes, bad: bytes) -> None:
    assert from_json(WRITTEN.replace(good, bad)) == ({"b": FULL["b"]}, [UUID], None)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(["existing", "enabled", "disabled", "domains", "version"]), JSON)
def test_any_value_in_any_place_is_read_or_refused(name: str, value: Any) -> None:
    content = {**json.loads(WRITTEN), "version": 1, "existing": [], "enabled": [], "disabled": [], name: value}
    try:
        read = from_json(json.dumps(content).encode())
    except ValueError:
        return
    assert from_json(to_json(read.domains)).domains == read.domains


@given(JSON, st.sampled_from(["name", "decision", "ran_with"]))
def test_any_value_in_a_domain_is_read_or_refused(value: Any, name: str) -> None:
    content = json.loads(WRITTEN)
    content["domains"][UUID][name] = value
    read = from_json(json.dumps(content).encode())
    assert set(read.domains) | set(read.unusable) == set(FULL)
    assert from_json(to_json(read.domains)).domains == read.domains


def test_a_kill_at_any_moment_leaves_a_whole_file(tmp_path: Path) -> None:
    writer = """
import sys
from pathlib import Path
from pcinuma.daemon.state import FILE, Record, to_json
from pcinuma.daemon.state_file import replace_file
number = 0
while True:
    number += 1
    replace_file(Path(sys.argv[1]) / FILE, to_json({str(n): Record(str(number)) for n in range(300)}))
"""
    chance = random.Random(3)
    for _ in range(12):
        process = subprocess.Popen([sys.executable, "-c", writer, str(tmp_path)], cwd=CHECKOUT)
        deadline = time.monotonic() + 120
        while not (tmp_path / FILE).exists() and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        process.wait()
        domains = from_json((tmp_path / FILE).read_bytes()).domains
        assert len({record.name for record in domains.values()}) == 1, "all of one write"
    assert {file.name for file in tmp_path.iterdir()} <= {FILE, f"{FILE}.new"}


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    replace_file(tmp_path / FILE, b"old")
    (tmp_path / f"{FILE}.new").mkdir()
    with pytest.raises(OSError, match="directory"):
        replace_file(tmp_path / FILE, b"new")
    assert (tmp_path / FILE).read_bytes() == b"old"
