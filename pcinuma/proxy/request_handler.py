# SPDX-License-Identifier: LGPL-2.1-or-later
"""The privileged side of a relay's requests: asks the daemon, within the deadline, and says in the journal why a
call went as it came.

Only these three requests can be asked, whatever a relay sends, and the answer never holds more than an XML. The
daemon decides (policy, managed save, who enabled what); a refusal under policy ``required`` is the hook's to
pronounce, which libvirt runs next and whose sentence it shows to the client, so here it means: as it came.
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from pathlib import Path
from typing import Any, Optional

from pcinuma.daemon import client
from pcinuma.errors import DaemonError
from pcinuma.log import log
from pcinuma.proxy.credentials import Credentials
from pcinuma.proxy.requests import REQUEST_MAX, Request, RequestKind, frame


class RequestHandler:
    """Answers relays. ``daemon``: the daemon's socket; ``timeout``: seconds that it has for an answer."""

    def __init__(self, daemon: Path, timeout: float) -> None:
        self._daemon = daemon
        self._timeout = timeout

    async def serve(self, pipe: socket.socket, who: Credentials) -> None:
        """Answer one relay until it ends."""
        reader, writer = await asyncio.open_unix_connection(sock=pipe, limit=REQUEST_MAX)
        try:
            while True:
                await self._serve_one(reader, writer, who)
        except (asyncio.IncompleteReadError, OSError):
            pass  # the relay has ended
        except (ValueError, KeyError, TypeError, asyncio.LimitOverrunError) as error:
            log.error("a relay asked what no relay asks", uid=who.uid, client_pid=who.pid, error=str(error))
        finally:
            writer.close()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, who: Credentials) -> None:
        """One request. Nothing of it, which may be megabytes, is kept until the next one."""
        raw = json.loads((await reader.readuntil(b"\0"))[:-1])
        request = Request(RequestKind(raw["kind"]), raw["domain"], raw["xml"])
        writer.write(frame({"number": raw["number"], "xml": await self._answer(request, who)}))
        await writer.drain()

    async def _answer(self, request: Request, who: Credentials) -> Optional[str]:
        """The XML to put in the call, None to leave it."""
        began = time.monotonic()
        try:
            return await asyncio.wait_for(self._ask(request), self._timeout)
        except asyncio.TimeoutError:
            reason = f"the daemon did not answer within {self._timeout:g} s"
        except DaemonError as error:
            reason = error.sentence()
        except (OSError, asyncio.IncompleteReadError) as error:
            reason = f"the daemon cannot be asked ({getattr(error, 'strerror', None) or type(error).__name__})"
        except (asyncio.LimitOverrunError, KeyError, TypeError) as error:
            reason = f"the daemon's answer is none ({error!r})"
        log.warning(
            "forwarded as it came",
            call=request.kind.value,
            domain=request.domain,
            reason=reason,
            uid=who.uid,
            client_pid=who.pid,
            duration_ms=round((time.monotonic() - began) * 1000, 1),
        )
        return None

    async def _ask(self, request: Request) -> Optional[str]:
        if request.kind is RequestKind.START:
            await self._call("PrepareStart", {"domain_uuid": request.domain})
            return None
        if request.kind is RequestKind.CREATE:
            placed = await self._call("Place", {"xml": request.xml, "caller": "proxy"})
            return None if placed["refused"] else _changed(str(placed["xml"]), request.xml)
        found = await self._call("AttachAddress", {"domain_uuid": request.domain, "device_xml": request.xml})
        return _changed(str(found["device_xml"]), request.xml) if found["changed"] else None

    async def _call(self, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        reader, writer = await asyncio.open_unix_connection(str(self._daemon), limit=client.MAX_ANSWER)
        try:
            writer.write(client.encode(method, parameters))
            await writer.drain()
            return client.decode(await reader.readuntil(b"\0"))
        finally:
            writer.close()


def _changed(new: str, old: Optional[str]) -> Optional[str]:
    return None if new == old else new
