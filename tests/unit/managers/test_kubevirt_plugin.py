# SPDX-License-Identifier: LGPL-2.1-or-later
"""The domain hook plugin without gRPC, which only KubeVirt's image has: messages, and what is answered to which."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcinuma.managers import kubevirt_plugin
from pcinuma.managers.kubevirt_plugin import Refused, Request, mutate, read_request, write_response

BYTES = st.binary(max_size=300)
BOOT = Request("libvirt", b"<domain/>", b"{}", "Boot")


def field(number: int, value: bytes) -> bytes:
    """As protoc's own code writes one."""
    length, left = b"", len(value)
    while left > 127:
        length, left = length + bytes([left % 128 + 128]), left // 128
    return bytes([number * 8 + 2]) + length + bytes([left]) + value


@given(BYTES, BYTES, st.lists(st.sampled_from([b"\x28\x96\x01", b"\x31" + 8 * b"x", b"\x3d" + 4 * b"x", field(9, b"new")])))
def test_a_message_is_read_whatever_a_newer_kubevirt_adds(domain: bytes, vmi: bytes, more: list[bytes]) -> None:
    message = field(1, b"libvirt") + field(2, domain) + b"".join(more) + field(3, vmi) + field(4, field(1, b"Boot"))
    assert read_request(message) == Request("libvirt", domain, vmi, "Boot")


@given(BYTES)
def test_a_response_is_one_field(domain: bytes) -> None:
    assert write_response(domain) == field(1, domain)


def test_what_is_not_said_is_empty() -> None:
    assert read_request(b"") == Request("", b"", b"", "")


@given(BYTES)
def test_what_is_no_message_is_a_value_error_and_nothing_else(data: bytes) -> None:
    try:
        read_request(data)
    except ValueError:
        pass


def test_a_boot_is_placed() -> None:
    assert mutate(BOOT, lambda domain, vmi: (0, domain + vmi)) == b"<domain/>{}"
    assert mutate(BOOT._replace(context=""), lambda domain, vmi: (0, domain + vmi)) == b"<domain/>{}"


@pytest.mark.parametrize("other", [{"context": "MigrationTarget"}, {"context": "MigrationSource"}, {"domain_type": "other"}], ids=str)
def test_nothing_else_is(other: dict[str, str]) -> None:
    request = BOOT._replace(**other)
    assert mutate(request, lambda *_: pytest.fail("placed")) == BOOT.domain  # type: ignore[arg-type]


@pytest.mark.parametrize("answer", [(0, b""), (2, b""), (-9, b"<dom"), (127, b"x")], ids=str)
def test_an_answer_that_is_none_leaves_the_domain(answer: tuple[int, bytes]) -> None:
    assert mutate(BOOT, lambda *_: answer) == BOOT.domain


def test_required_that_is_not_met_is_the_one_refusal() -> None:
    with pytest.raises(Refused):
        mutate(BOOT, lambda *_: (1, b""))


@pytest.mark.parametrize("error", [OSError(7, "Argument list too long"), ValueError("null byte"), subprocess.TimeoutExpired("x", 60)])
def test_what_cannot_be_run_leaves_the_domain(error: Exception, capfd: pytest.CaptureFixture[str]) -> None:
    def fail(*_: bytes) -> tuple[int, bytes]:
        raise error

    assert mutate(BOOT, fail) == BOOT.domain
    assert "nothing is placed" in capfd.readouterr().err


def test_the_program_gets_what_the_shim_would_give_it(tmp_path: Path) -> None:
    program = tmp_path / "onDefineDomain"
    program.write_text(f"#!{sys.executable} -I\nimport os, sys\nos.write(1, os.fsencode('|'.join(sys.argv[1:])))\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    run = kubevirt_plugin._run
    assert mutate(BOOT._replace(domain="ü".encode()), lambda domain, vmi: run(str(program), domain, vmi)) == "--vmi|{}|--domain|ü".encode()


@pytest.mark.parametrize("words", [[], ["--help"], ["a", "b"]], ids=str)
def test_wrong_usage_is_said(words: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert kubevirt_plugin.main(words) == 2
    assert "usage: domainHook SOCKET" in capfd.readouterr().err
