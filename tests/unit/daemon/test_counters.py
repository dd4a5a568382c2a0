# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the daemon counts: each start once, whatever is known of it first; durations in the right bucket; and never more than fits."""

from __future__ import annotations

import socket
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("libvirt")

from pcinuma.daemon.client import decode, encode
from pcinuma.daemon.counters import BOUNDS, FAILED, LAYOUTS, MOST, REFUSED, RESULTS, RUNNING, UNKNOWN, Counters, Histogram
from pcinuma.daemon.start_check import StartCheck
from pcinuma.reason import Outcome
from pcinuma.report import DeviceReport, Result
from pcinuma.settings import Policy
from tests.hosts.small import GPU_0, GPU_1, small_host
from tests.libvirt.domains import guest
from tests.unit.daemon_process import DaemonProcess, write_state
from tests.waiting import until

DEVICE = DeviceReport("0000:17:00.0", "0000:17:00.0", "hostdev-pci", 0, 0, None, True, None)
STRAY = DEVICE._replace(placed=False)
BARE = Result(Outcome.UNCHANGED, None, None, None, (), b"")
PLACED = replace(BARE, devices=(DEVICE, STRAY))
LEFT = replace(BARE, devices=(STRAY,))
FALLBACK = replace(BARE, outcome=Outcome.FALLBACK, devices=(DEVICE,))


def check(name: str, *, placed: Optional[bytes] = None, refusal: Optional[str] = None) -> StartCheck:
    return StartCheck(b"", name, None, Policy.PREFERRED, True, BARE, placed, refusal)


def counted(counters: Counters) -> dict[tuple[str, str, str], int]:
    return {(s["by"], s["layout"], s["result"]): s["count"] for s in counters.as_json()["starts"] if s["count"]}


@pytest.mark.parametrize(
    ("layout", "given_xml", "refusal", "placed_by", "persistent", "expected"),
    [
        (PLACED, None, None, None, True, ("reconciler", "placed")),
        (PLACED, None, None, "reconciler", True, ("reconciler", "placed")),
        (PLACED, None, None, "command", True, ("command", "placed")),
        (PLACED, None, None, "proxy", False, ("proxy", "placed")),
        (PLACED, None, None, None, False, ("other", "placed")),
        (FALLBACK, b"<x/>", None, None, True, ("hook", "unplaced")),
        (FALLBACK, b"<x/>", "no", None, True, ("nobody", "unplaced")),
        (FALLBACK, None, None, "proxy", True, ("nobody", "unplaced")),
        (LEFT, None, None, None, True, ("nobody", "left")),
        (BARE, None, None, "command", False, ("nobody", "left")),
    ],
)
@pytest.mark.parametrize("result", [RUNNING, FAILED, UNKNOWN])
@pytest.mark.parametrize("first", ["what it is", "how it ended"])
def test_a_start_counts_once_by_whose_work_it_is(
    layout: Result,
    given_xml: Optional[bytes],
    refusal: Optional[str],
    placed_by: Optional[str],
    persistent: bool,
    expected: tuple[str, str],
    result: str,
    first: str,
) -> None:
    counters = Counters()
    if placed_by is not None:
        counters.placed("vm", "command" if placed_by == "reconciler" else "reconciler")
        counters.placed("vm", placed_by)
    counters.start_begins("u")
    if first == "how it ended":
        counters.start_ended("u", result)
    counters.start_is("u", check("vm", placed=given_xml, refusal=refusal), layout, persistent=persistent)
    if first == "what it is":
        assert counted(counters) == {}
        counters.start_ended("u", result)
    counters.start_ended("u", RUNNING)
    counters.start_ended("u", FAILED)
    counters.start_is("u", check("vm"), BARE, persistent=True)
    counters.disconnected()
    assert counted(counters) == {(*expected, result): 1}
    assert expected[0] in LAYOUTS[expected[1]] and result in RESULTS


EVENTS = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from(["begin", "is", RUNNING, REFUSED, FAILED, "gone"])), max_size=60
)


@given(EVENTS)
def test_no_start_is_lost_or_counted_twice(events: list[tuple[str, str]]) -> None:
    """Those of which it never became known what they were, or how they ended, are all that is missing; a later start of the same domain
    tells that the one before failed."""
    counters, known, open_starts = Counters(), Counter[str](), dict[str, dict[str, bool]]()
    for uuid, event in events:
        if event == "begin":
            if open_starts.get(uuid, {}).get("is"):
                known["counted"] += 1
            counters.start_begins(uuid)
            open_starts[uuid] = {}
            continue
        if event == "gone":
            counters.disconnected()
            touched = [(each, "ended") for each in open_starts]
        elif event == "is":
            counters.start_is(uuid, check(uuid), LEFT, persistent=True)
            touched = [(uuid, "is")]
        else:
            counters.start_ended(uuid, event)
            touched = [(uuid, "ended")]
        for each, what in touched:
            if each in open_starts:
                open_starts[each][what] = True
                if len(open_starts[each]) == 2:
                    del open_starts[each]
                    known["counted"] += 1
    assert sum(counted(counters).values()) == known["counted"]


def test_what_is_kept_of_starts_and_placements_does_not_grow() -> None:
    counters = Counters()
    before = len(counters.as_json()["starts"])
    for number in range(3 * MOST):
        counters.placed(f"vm{number}", "proxy")
        counters.start_begins(f"u{number}")
    assert (len(counters._under_way), len(counters._placed_by)) == (MOST, MOST)
    for number in range(3 * MOST):
        counters.start_is(f"u{number}", check(f"vm{number}"), PLACED, persistent=False)
        counters.start_ended(f"u{number}", RUNNING)
    assert counted(counters) == {("proxy", "placed", RUNNING): MOST}
    assert len(counters.as_json()["starts"]) == before
    assert not counters._under_way


@given(st.lists(st.one_of(st.sampled_from(BOUNDS), st.floats(0, 100))))
def test_a_duration_is_in_the_bucket_of_the_smallest_bound_that_it_does_not_exceed(durations: list[float]) -> None:
    histogram = Histogram()
    for seconds in durations:
        histogram.observe(seconds)
    seen = histogram.as_json()
    assert sum(seen["counts"]) == len(durations)
    assert seen["sum"] == pytest.approx(sum(durations))
    for number, bound in enumerate(seen["bounds"]):
        assert sum(seen["counts"][: number + 1]) == sum(seconds <= bound for seconds in durations)


UUID = "6f0b2ab3-8f2c-4c5b-9c26-0a45a01d8a11"


def call(daemon: DaemonProcess, method: str, **parameters: Any) -> dict[str, Any]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(daemon.socket))
        connection.sendall(encode(method, parameters))
        answer = b""
        while not answer.endswith(b"\0"):
            answer += connection.recv(1 << 16)
    return decode(answer)


def test_the_daemon_counts_hooks_and_the_starts_that_they_tell_of(tmp_path: Path) -> None:
    write_state(tmp_path / "state")
    raw = guest("vm", [GPU_0, GPU_1], uuid=UUID)
    with DaemonProcess(tmp_path, small_host(tmp_path / "host")) as daemon:

        def hook(xml: str, operation: str = "prepare", suboperation: str = "begin") -> None:
            call(daemon, "Hook", xml=xml, operation=operation, suboperation=suboperation, domain="vm")

        def starts() -> dict[tuple[str, str, str], int]:
            return {(s["by"], s["layout"], s["result"]): s["count"] for s in call(daemon, "Counters")["starts"] if s["count"]}

        def after(xml: str, count: int) -> dict[tuple[str, str, str], int]:
            """A start, which the one after it shows to have failed once it is known what it was."""
            hook(xml)
            until(lambda: daemon.log().count(" by=hook ") == count, "the daemon to look at what starts")
            return starts()

        assert after(raw, 1) == {}
        assert after(raw, 2) == {("hook", "unplaced", "failed"): 1}
        placed = call(daemon, "Place", xml=raw, caller="proxy")["xml"]
        after(placed, 3)
        after(placed, 4)
        hook(placed, "release", "end")
        hook(placed, "started")
        found = call(daemon, "Counters")
        assert starts() == {("hook", "unplaced", "failed"): 2, ("proxy", "placed", "failed"): 1}
        assert (sum(found["hook"]["counts"]), sum(found["reconcile"]["counts"]), found["connections"]) == (4, 0, 0)
        assert 0 < found["hook"]["sum"] < 60
        refused = guest("vm", [GPU_0, GPU_1], uuid=UUID, policy="required")
        hook(refused)
        until(lambda: ("nobody", "unplaced", "refused") in starts(), "the refusal to be counted")
