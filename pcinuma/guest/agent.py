# SPDX-License-Identifier: LGPL-2.1-or-later
"""The QEMU guest agent's files, without libvirt: commands and answers as text, within bounds; the guest may answer whatever it likes.

In: an ``exchange``, which takes a command and the seconds that it may take, and gives the answer or raises an :class:`AgentError`. Out: the
content of files in the guest, and files written there. Reading uses ``guest-info`` and ``guest-file-*`` only; the one program that is ever
started in a guest is ``mkdir``, for a file whose folder is not there. Source: QEMU ``qga/qapi-schema.json``.

All commands of one :class:`GuestAgent` share one allowance of seconds; an answer is no longer than a few pages. Whatever an answer holds
beyond that, or instead of what it should, is :data:`AgentState.NONSENSE`. Texts of the guest's come out as they are, cut short: whoever
shows them makes them printable.
"""

from __future__ import annotations

import base64
import enum
import json
import time
from typing import Any, Callable, Mapping, NoReturn, Optional

from pcinuma.errors import PcinumaError

NAME = "org.qemu.guest_agent.0"
"""The channel's, by which libvirt knows the agent."""

READING = ("guest-file-open", "guest-file-read", "guest-file-close")
WRITING = ("guest-file-open", "guest-file-write", "guest-file-close")
_LONGEST_ANSWER = 1 << 16
_LONGEST_NUMBER = 20
_LONGEST_TEXT = 200
_PIECE = 1 << 14
_LEAST, _PART = 5.0, 4
_POLL = 0.1
ABSENT = "No such file or directory"  # strerror's; the agent sets no locale
_FORBIDDEN = ("has been disabled", "has not been found", "is not allowed")


class AgentState(enum.Enum):
    """What came of asking a guest's agent, and the sentence that says so."""

    ANSWERED = "answered", "the guest's kernel was asked through its agent"
    NONE = "none", "the guest has no channel for the QEMU guest agent"
    DISCONNECTED = "disconnected", "no agent is running in the guest"
    FORBIDDEN = "forbidden", "the guest's agent forbids access to files (guest-file-open and its kin)"
    SILENT = "silent", "the guest's agent does not answer"
    UNREADABLE = "unreadable", "the guest's agent gives no access to its kernel's sysfs"
    READ_ONLY = "read-only", "the guest's agent does not write the file"
    NONSENSE = "nonsense", "the answers of the guest's agent make no sense"
    OFF = "off", "the owner's policy is off, so the guest was not asked"
    NOT_ALLOWED = "not-allowed", "this user may not ask the guest's agent"

    sentence: str

    def __new__(cls, code: str, sentence: str) -> AgentState:
        member = object.__new__(cls)
        member._value_ = code
        member.sentence = sentence
        return member


class AgentError(PcinumaError):
    """The agent cannot be asked, or not any more; ``state`` says why, ``detail`` in whose words."""

    def __init__(self, state: AgentState, detail: str = "") -> None:
        self.state = state
        self.detail = detail[:_LONGEST_TEXT]
        super().__init__(f"{state.sentence} ({self.detail})" if detail else state.sentence)


class Refused(Exception):
    """The agent answered one command with an error, which may be an answer: there is no such file."""


Exchange = Callable[[str, float], str]


class GuestAgent:
    """A connection to the agent of one running guest, open for ``seconds`` seconds."""

    def __init__(
        self,
        exchange: Exchange,
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self._exchange = exchange
        self._clock = clock
        self._wait = wait
        self._seconds = seconds
        self._end = clock() + seconds

    def require(self, commands: tuple[str, ...]) -> None:
        """Raises AgentError if the agent itself says that it does not offer one of ``commands``."""
        try:
            info = self._call("guest-info")
        except Refused:
            return  # it does not even tell what it offers; the first command will
        except AgentError as error:
            if error.state is AgentState.FORBIDDEN:
                return
            raise
        listed = info.get("supported_commands") if isinstance(info, dict) else None
        if not isinstance(listed, list):
            raise AgentError(AgentState.NONSENSE, "guest-info lists no commands")
        enabled = {entry.get("name") for entry in listed if isinstance(entry, dict) and entry.get("enabled") is True
                   and isinstance(entry.get("name"), str)}  # fmt: skip
        lacking = [command for command in commands if command not in enabled]
        if lacking:
            raise AgentError(AgentState.FORBIDDEN, ", ".join(lacking))

    def read(self, path: str, size: int = 4096) -> Optional[bytes]:
        """At most ``size`` bytes from the beginning of a file; None if there is no such file."""
        try:
            handle = self._open(path, "r")
        except Refused as refusal:
            if ABSENT in str(refusal):
                return None
            raise AgentError(AgentState.UNREADABLE, str(refusal)) from None
        data, more = b"", True
        try:
            while more and len(data) < size:
                answer = self._call("guest-file-read", {"handle": handle, "count": min(size - len(data), _PIECE)})
                piece, more = _content(path, answer)
                data += piece
        except Refused as refusal:
            raise AgentError(AgentState.UNREADABLE, f"{path}: {refusal}") from None
        finally:
            self._close(handle)
        return data[:size]

    def make_folder(self, path: str) -> None:
        """``mkdir -p`` in the guest. Raises Refused, or AgentError where the agent forbids programs."""
        answer = self._call("guest-exec", {"path": "/bin/mkdir", "arg": ["-p", path]})
        number = answer.get("pid") if isinstance(answer, dict) else None
        if type(number) is not int:
            raise AgentError(AgentState.NONSENSE, "guest-exec gives no process")
        while True:
            status = self._call("guest-exec-status", {"pid": number})
            if not isinstance(status, dict) or type(status.get("exited")) is not bool:
                raise AgentError(AgentState.NONSENSE, "guest-exec-status says nothing")
            if status["exited"]:
                break
            self._wait(_POLL)
        if status.get("exitcode") != 0:
            raise Refused(f"mkdir -p {path} failed")

    def write(self, path: str, data: bytes) -> None:
        """Write a file anew. Raises Refused with the agent's words where the guest does not let it; what is half written is said."""
        handle = self._open(path, "w")
        try:
            rest = data
            while rest:
                piece = base64.b64encode(rest[:_PIECE]).decode()
                answer = self._call("guest-file-write", {"handle": handle, "buf-b64": piece})
                count = answer.get("count") if isinstance(answer, dict) else None
                if type(count) is not int or not 0 < count <= min(len(rest), _PIECE):
                    raise AgentError(AgentState.NONSENSE, f"{path}: guest-file-write wrote {str(count)[:20]} bytes")
                rest = rest[count:]
            self._call("guest-file-flush", {"handle": handle})
        except AgentError as error:
            raise AgentError(error.state, f"{path} may be half written; {error.detail}") from None
        except Refused as refusal:
            raise Refused(f"{path} may be half written; {refusal}") from None
        finally:
            self._close(handle)

    def _open(self, path: str, mode: str) -> int:
        handle = self._call("guest-file-open", {"path": path, "mode": mode})
        if type(handle) is not int:
            raise AgentError(AgentState.NONSENSE, f"{path}: guest-file-open gives no handle")
        return handle

    def _close(self, handle: int) -> None:
        """Close a file. If the guest does not let us, that is its own loss."""
        try:
            self._call("guest-file-close", {"handle": handle})
        except (Refused, AgentError):
            pass

    def _call(self, command: str, arguments: Optional[Mapping[str, Any]] = None) -> Any:
        left = self._end - self._clock()
        if left <= 0:
            raise AgentError(AgentState.SILENT, f"not done within {self._seconds:g} s")
        asked: dict[str, Any] = {"execute": command}
        if arguments is not None:
            asked["arguments"] = arguments
        try:
            return returned(self._exchange(json.dumps(asked), min(left, max(_LEAST, self._seconds / _PART))))
        except Refused as refusal:
            if any(words in str(refusal) for words in _FORBIDDEN):
                raise AgentError(AgentState.FORBIDDEN, str(refusal)) from None
            raise


def _content(path: str, answer: Any) -> tuple[bytes, bool]:
    """What ``guest-file-read`` read, and whether there may be more."""
    text = answer.get("buf-b64") if isinstance(answer, dict) else None
    if not isinstance(text, str):
        raise AgentError(AgentState.NONSENSE, f"{path}: guest-file-read gives no data")
    try:
        piece = base64.b64decode(text, validate=True)
    except ValueError:
        raise AgentError(AgentState.NONSENSE, f"{path}: guest-file-read gives no base64") from None
    return piece, bool(piece) and answer.get("eof") is not True


def returned(answer: str) -> Any:
    """What an answer returns. Raises Refused for an error of the agent's, AgentError for what is no answer."""
    if not isinstance(answer, str) or len(answer) > _LONGEST_ANSWER:
        raise AgentError(AgentState.NONSENSE, "an answer that is too long")
    try:
        data = json.loads(answer, parse_int=_number, parse_float=_no_number, parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise AgentError(AgentState.NONSENSE, "an answer that is no JSON") from None
    error = data.get("error") if isinstance(data, dict) else None
    if isinstance(error, dict):
        raise Refused(str(error.get("desc") or error.get("class") or "an error without words")[:_LONGEST_TEXT])
    if not isinstance(data, dict) or "return" not in data:
        raise AgentError(AgentState.NONSENSE, "an answer that returns nothing")
    return data["return"]


def _number(text: str) -> int:
    if len(text) > _LONGEST_NUMBER:
        raise ValueError
    return int(text)


def _no_number(text: str) -> NoReturn:
    raise ValueError(text)
