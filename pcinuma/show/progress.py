# SPDX-License-Identifier: LGPL-2.1-or-later
"""Signs of life on standard error for whatever takes longer than two seconds; silence for everything else."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType
from typing import Optional, TextIO

from pcinuma.printable import printable

QUIET_SECONDS = 2.0


class Progress:
    """``with Progress("asking libvirt") as progress: … progress.step("vm1 (1 of 20)")``.

    After two seconds a terminal shows one line that is rewritten and finally erased; anything else gets a line per ten seconds.
    """

    def __init__(self, what: str, stream: Optional[TextIO] = None) -> None:
        self._what = what
        self._stream = stream or sys.stderr
        self._detail = ""
        self._done = threading.Event()
        self._shown = 0
        self._started = time.monotonic()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def step(self, detail: str) -> None:
        """Say what is being done at the moment."""
        self._detail = detail

    def __enter__(self) -> Progress:
        self._thread.start()
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self._done.set()
        self._thread.join()
        if self._shown:
            self._stream.write("\r" + " " * self._shown + "\r")
            self._stream.flush()

    def _watch(self) -> None:
        terminal = self._stream.isatty()
        wait = QUIET_SECONDS
        while not self._done.wait(wait):
            seconds = int(time.monotonic() - self._started)
            text = printable(f"{self._what}{': ' + self._detail if self._detail else ''} ({seconds} s)")
            if terminal:
                self._stream.write("\r" + text.ljust(self._shown))
                self._shown = max(self._shown, len(text))
                wait = 0.5
            else:
                self._stream.write(f"pcinuma: {text}\n")
                wait = 10.0
            self._stream.flush()
