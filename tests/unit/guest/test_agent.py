# SPDX-License-Identifier: LGPL-2.1-or-later
"""The guest agent's side of the wire: whatever a guest answers, it costs a bounded time and no more than its own answer."""

from __future__ import annotations

import base64
import json
from typing import Any, Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pcinuma.guest.agent import READING, WRITING, AgentError, AgentState, GuestAgent, Refused, returned
from tests.hosts.guest_kernel import COMMANDS, Agent

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KNOWN = st.fixed_dictionaries(
    {},
    optional={
        "return": JSON
        | st.integers(0, 9)
        | st.fixed_dictionaries({}, optional={"buf-b64": JSON | st.binary().map(lambda b: base64.b64encode(b).decode()), "count": JSON})
        | st.fixed_dictionaries({"supported_commands": JSON | st.lists(st.fixed_dictionaries({"name": JSON, "enabled": JSON}))}),
        "error": JSON | st.fixed_dictionaries({}, optional={"class": JSON, "desc": JSON}),
    },
)
ANSWERS = st.text(max_size=40) | JSON.map(json.dumps) | KNOWN.map(json.dumps)
HOSTILE = ['{"return": ' + "[" * 60000, "9" * 60000, '{"return": ' + "9" * 5000 + "}", "x" * (1 << 17), '{"return": NaN}', '"\\ud800"']


@given(st.lists(ANSWERS, min_size=1, max_size=6))
@example([HOSTILE[0]])
@example([HOSTILE[1]])
@example([HOSTILE[2]])
@example([HOSTILE[3]])
@example([HOSTILE[4]])
@example([HOSTILE[5]])
@example(['{"return": 1}', '{"return": {"buf-b64": "\\u0661\\u0662"}}'])
@example(['{"return": true}'])
def test_whatever_a_guest_answers_comes_out_as_bytes_or_as_one_error(answers: list[str]) -> None:
    said = iter([*answers, *answers, *answers])

    def exchange(command: str, seconds: float) -> str:
        return next(said, "")

    works: tuple[Callable[[GuestAgent], Any], ...] = (
        lambda agent: agent.require(READING),
        lambda agent: agent.read("/sys/x", 64),
        lambda agent: agent.write("/run/x", b"data" * 9000),
    )
    for work in works:
        try:
            done = work(GuestAgent(exchange, 30))
        except (AgentError, Refused) as error:
            assert len(str(error)) < 400
        else:
            assert done is None or (isinstance(done, bytes) and len(done) <= 64)


@pytest.mark.parametrize("answer", HOSTILE, ids=range(len(HOSTILE)))
def test_what_is_no_answer_is_nonsense(answer: str) -> None:
    with pytest.raises(AgentError) as caught:
        returned(answer)
    assert caught.value.state is AgentState.NONSENSE


@given(st.binary(max_size=100_000))
def test_a_file_comes_out_as_it_went_in_and_is_closed(data: bytes) -> None:
    there = Agent({})
    agent = GuestAgent(there, 30)
    agent.write("/run/x", data)
    assert there.files == {"/run/x": data}
    assert agent.read("/run/x", 1 << 14) == data[: 1 << 14]
    assert agent.read("/run/y") is None
    assert there.left_open == 0
    assert "guest-exec" not in there.commands


def test_all_commands_share_the_seconds() -> None:
    now = [0.0]
    given_seconds: list[float] = []

    def exchange(command: str, seconds: float) -> str:
        given_seconds.append(seconds)
        now[0] += seconds
        return '{"return": 1}'

    agent = GuestAgent(exchange, 30, clock=lambda: now[0])
    with pytest.raises(AgentError) as caught:
        while True:
            try:
                agent.read("/sys/x")
            except AgentError as error:
                if error.state is not AgentState.NONSENSE:
                    raise
    assert caught.value.state is AgentState.SILENT
    assert now[0] == sum(given_seconds) == pytest.approx(30)


@pytest.mark.parametrize("commands", [READING, WRITING])
@pytest.mark.parametrize("disabled", COMMANDS)
def test_an_agent_that_forbids_a_command_is_told_apart(commands: tuple[str, ...], disabled: str) -> None:
    there = Agent({}, (disabled,))
    if disabled in commands:
        with pytest.raises(AgentError) as caught:
            GuestAgent(there, 30).require(commands)
        assert (caught.value.state, caught.value.detail) == (AgentState.FORBIDDEN, disabled)
    else:
        GuestAgent(there, 30).require(commands)


@pytest.mark.parametrize("disabled", ["guest-file-open", "guest-file-read"])
def test_so_is_one_that_does_not_even_tell_what_it_offers(disabled: str) -> None:
    agent = GuestAgent(Agent({"/sys/x": b"1"}, ("guest-info", disabled)), 30)
    agent.require(READING)
    with pytest.raises(AgentError) as caught:
        agent.read("/sys/x")
    assert caught.value.state is AgentState.FORBIDDEN


def test_a_file_that_may_not_be_read_is_no_file_that_is_not_there() -> None:
    def exchange(command: str, seconds: float) -> str:
        raise Refused("failed to open file '/sys/x' (mode: 'r'): Permission denied")

    with pytest.raises(AgentError) as caught:
        GuestAgent(exchange, 30).read("/sys/x")
    assert caught.value.state is AgentState.UNREADABLE
