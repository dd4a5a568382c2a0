# SPDX-License-Identifier: LGPL-2.1-or-later
"""Varlink by itself: descriptions, calls and replies as bytes, and that nothing of pcinuma is needed for them."""

from __future__ import annotations

import ast
import socket
import threading
from pathlib import Path
from typing import Any, Mapping, Optional

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pcinuma.varlink
from pcinuma.varlink import client, wire
from pcinuma.varlink.client import CallError, Failure
from pcinuma.varlink.interface import STANDARD, Interface, unfit_parameter

LAMP = Interface.parse("""\
# A lamp.
interface org.example.lamp

type Colour (name: string)

method Switch(on: bool, level: ?int) -> (was: Colour)

method Paint(
  colour: object,
  name: string
) -> ()

error Broken ()
""")
SAMPLES: Mapping[str, list[Any]] = {"string": ["", "x"], "bool": [True, False], "int": [0, 7], "object": [{}, {"a": 1}]}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def test_it_imports_nothing_of_pcinuma_but_itself() -> None:
    for file in Path(pcinuma.varlink.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or "."] if isinstance(node, ast.ImportFrom) else []
            assert all(not name.startswith("pcinuma") or name.startswith("pcinuma.varlink") for name in names), file.name


def test_a_description_gives_the_methods_and_what_each_takes() -> None:
    assert LAMP.name == "org.example.lamp"
    assert LAMP.methods == {
        "org.example.lamp.Switch": {"on": ("bool", False), "level": ("int", True)},
        "org.example.lamp.Paint": {"colour": ("object", False), "name": ("string", False)},
    }
    assert STANDARD.methods["org.varlink.service.GetInfo"] == {}


def test_a_description_that_names_no_interface_is_refused() -> None:
    with pytest.raises(ValueError, match="no interface"):
        Interface.parse("method Switch() -> ()\n")


@pytest.mark.parametrize("method", sorted(LAMP.methods))
@pytest.mark.parametrize("kind", [*SAMPLES, "null", "left out"])
def test_each_parameter_is_checked_against_its_type(method: str, kind: str) -> None:
    takes = LAMP.methods[method]
    for name, (wanted, optional) in takes.items():
        for value in SAMPLES.get(kind, [None]):
            call = {other: SAMPLES[its_type][0] for other, (its_type, _) in takes.items()} | {name: value}
            if kind == "left out":
                del call[name]
            fits = optional if kind in ("null", "left out") else kind == wanted
            assert unfit_parameter(takes, call) == (None if fits else name)
    assert unfit_parameter(takes, {"more": 1}) == "more"


@settings(max_examples=30)
@given(st.text(), st.dictionaries(st.text(), JSON))
def test_a_call_is_read_as_it_was_written(method: str, parameters: dict[str, Any]) -> None:
    message = wire.encode_call(method, parameters)
    assert message.index(0) == len(message) - 1
    assert wire.decode_call(message[:-1]) == {"method": method, "parameters": parameters}


@settings(max_examples=30)
@given(st.dictionaries(st.text(), JSON), st.none() | st.text(min_size=1))
def test_a_reply_is_read_as_it_was_written(parameters: dict[str, Any], error: Optional[str]) -> None:
    message = wire.encode_reply(parameters, error)
    if error is None:
        assert wire.decode_reply(message) == parameters
        return
    with pytest.raises(wire.ErrorReply) as failed:
        wire.decode_reply(message)
    assert (failed.value.error, failed.value.parameters) == (error, parameters)


@given(st.binary() | JSON.map(lambda value: repr(value).encode()))
def test_what_is_no_message_reads_as_none(message: bytes) -> None:
    call = wire.decode_call(message)
    assert call is None or isinstance(call["method"], str)
    try:
        reply = wire.decode_reply(message)
    except (ValueError, wire.ErrorReply):
        return
    assert isinstance(reply, dict)


def answering(path: Path, answer: bytes) -> threading.Thread:
    """Somebody who gives one peer this answer, and hangs up."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        with listener, listener.accept()[0] as connection:
            try:
                connection.recv(1 << 16)
                connection.sendall(answer)
            except OSError:
                pass  # the peer had enough

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


@pytest.mark.parametrize(
    ("answer", "failure", "detail"),
    [
        (b"", Failure.HUNG_UP, ""),
        (b"{", Failure.HUNG_UP, ""),
        (b"x" * 200_000, Failure.TOO_LONG, ""),
        (b"{\0", Failure.NO_REPLY, "is no JSON"),
        (b"[]\0", Failure.NO_REPLY, "is no varlink reply"),
        (b'{"parameters": 7}\0', Failure.NO_REPLY, "is no varlink reply"),
    ],
)
def test_a_call_without_a_reply_says_of_what_kind_it_failed(tmp_path: Path, answer: bytes, failure: Failure, detail: str) -> None:
    path = tmp_path / "socket"
    thread = answering(path, answer)
    with pytest.raises(CallError) as failed:
        client.call(path, "org.example.lamp.Switch", None, timeout=60, longest=100_000)
    thread.join()
    assert failed.value.failure is failure
    assert failed.value.detail.startswith(detail)


def test_where_nobody_listens_that_is_what_failed(tmp_path: Path) -> None:
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(tmp_path / "left"))
    left.close()
    for name in ("left", "nothing"):
        with pytest.raises(CallError) as failed:
            client.call(tmp_path / name, "org.example.lamp.Switch", None, timeout=1, longest=100)
        assert failed.value.failure is Failure.NOBODY_LISTENS


def test_an_error_reply_comes_as_it_is(tmp_path: Path) -> None:
    thread = answering(tmp_path / "socket", wire.encode_reply({"lamp": 3}, "org.example.lamp.Broken"))
    with pytest.raises(wire.ErrorReply) as failed:
        client.call(tmp_path / "socket", "org.example.lamp.Switch", {"on": True}, timeout=60, longest=100_000)
    thread.join()
    assert (failed.value.error, failed.value.parameters) == ("org.example.lamp.Broken", {"lamp": 3})
