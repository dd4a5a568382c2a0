# SPDX-License-Identifier: LGPL-2.1-or-later
"""KubeVirt's plugins: the gRPC service ``DomainHookService`` with its one call, MutateDomain, on a socket below /var/run/kubevirt-plugin.

Protocol: KubeVirt's ``pkg/hooks/plugins/v1alpha1/api.proto`` and ``pkg/virt-launcher/virtwrap/plugins``. A request has the domain's type,
its XML, the VMI as JSON and why it is asked; the answer has the XML. Only a boot is placed: in a migration the guest's PCI layout must stay
what it is. A call fails where policy ``required`` is not met, and for no other reason.

Four fields are no reason for a compiler: messages are read and written here, as protocol buffers' documentation says (field number and wire
type in a varint, then a varint, 8, 4, or a length and that many bytes). gRPC itself is Debian's python3-grpcio.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional, Sequence

from pcinuma.managers.say import say

SERVICE, CALL = "kubevirt.hooks.plugins.v1alpha1.DomainHookService", "MutateDomain"
BOOT = "Boot"
_PLACE = "/usr/bin/onDefineDomain"
_DOMAIN_TYPE, _DOMAIN, _VMI, _CONTEXT = 1, 2, 3, 4
_INVOCATION, _ANSWER = 1, 1


class Request(NamedTuple):
    """MutateDomainRequest."""

    domain_type: str
    domain: bytes
    vmi: bytes
    context: str


class Refused(Exception):
    """Policy ``required`` is not met."""


def read_request(message: bytes) -> Request:
    """Raises ValueError for what is no message."""
    found = {number: value for number, value in _fields(message) if isinstance(value, bytes)}
    context = {number: value for number, value in _fields(found.get(_CONTEXT, b"")) if isinstance(value, bytes)}
    kind, invocation = found.get(_DOMAIN_TYPE, b""), context.get(_INVOCATION, b"")
    return Request(kind.decode(errors="replace"), found.get(_DOMAIN, b""), found.get(_VMI, b""), invocation.decode(errors="replace"))


def write_response(domain: bytes) -> bytes:
    """MutateDomainResponse."""
    return bytes([_ANSWER << 3 | 2]) + _varint(len(domain)) + domain


def mutate(request: Request, place: Callable[[bytes, bytes], tuple[int, bytes]]) -> bytes:
    """The XML to define. ``place``: exit code and output of ``onDefineDomain`` for an XML and a VMI. Raises Refused."""
    if request.domain_type != "libvirt" or request.context not in ("", BOOT):
        return request.domain
    try:
        code, output = place(request.domain, request.vmi)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        say(f"nothing is placed ({type(error).__name__}: {error})")
        return request.domain
    if code == 1:
        raise Refused("policy 'required' is not met; the sidecar's log says why")
    return output if code == 0 and output else request.domain


def main(argv: Optional[Sequence[str]] = None, program: str = _PLACE) -> int:
    """Serve on the socket that ``argv`` names, until a signal ends it."""
    words = sys.argv[1:] if argv is None else argv
    if len(words) != 1 or words[0].startswith("-"):
        say("usage: domainHook SOCKET, for example /var/run/kubevirt-plugin/pcinuma/hook.sock")
        return 2
    import grpc

    def call(message: bytes, context: Any) -> bytes:
        try:
            return write_response(mutate(read_request(message), lambda domain, vmi: _run(program, domain, vmi)))
        except Refused as refusal:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(refusal))
        except ValueError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"no MutateDomainRequest: {error}")
        raise AssertionError  # abort raises

    handler = grpc.method_handlers_generic_handler(SERVICE, {CALL: grpc.unary_unary_rpc_method_handler(call)})
    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((handler,))
    path = Path(words[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    server.add_insecure_port(f"unix:{path}")
    server.start()
    server.wait_for_termination()
    return 0


def _run(program: str, domain: bytes, vmi: bytes) -> tuple[int, bytes]:
    """A process of its own, since gRPC's threads forbid a fork without exec."""
    words = [program, "--vmi", os.fsdecode(vmi), "--domain", os.fsdecode(domain)]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=60)
    return done.returncode, done.stdout


def _fields(message: bytes) -> Iterator[tuple[int, object]]:
    """Number and value of each field of a message."""
    at = 0
    while at < len(message):
        key, at = _read_varint(message, at)
        kind = key & 7
        if kind == 0:
            value, at = _read_varint(message, at)
            yield key >> 3, value
            continue
        if kind == 2:
            length, at = _read_varint(message, at)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind}")
        if at + length > len(message):
            raise ValueError("it ends within a field")
        yield key >> 3, message[at : at + length]
        at += length


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise ValueError("it ends within a number")
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number is too long")


def _varint(value: int) -> bytes:
    found = bytearray()
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)
