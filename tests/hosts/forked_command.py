# SPDX-License-Identifier: LGPL-2.1-or-later
"""The command in a process of its own, without the price of starting Python and loading modules each time.

A process that has loaded the command waits at a socket, and forks for each call a child that then runs ``pcinuma.__main__`` as
``python3 -m pcinuma`` does: with its own arguments, environment, directory and standard files, to the end of the interpreter. What only
a process from nothing can show (what a command loads, the seed of its hashes) is asked of one.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import IO

from tests.hosts.memory import MEMORY

CHECKOUT = Path(__file__).resolve().parents[2]
_LONGEST = 1 << 17  # a request, which is words, an environment and a directory
_one_at_a_time = threading.Lock()


def run(words: list[str], stdin: bytes, directory: Path, environment: Mapping[str, str], timeout: float) -> tuple[int, bytes, bytes]:
    """The exit code (of a signal, its negative number), stdout and stderr of ``pcinuma WORDS``."""
    request = json.dumps([words, str(directory), dict(environment)]).encode()
    assert len(request) < _LONGEST
    with _one_at_a_time, _file() as given, _file() as out, _file() as err:
        given.write(stdin)
        given.seek(0)
        server = _server()
        server.settimeout(timeout)
        socket.send_fds(server, [request], [file.fileno() for file in (given, out, err)])
        try:
            code: int = json.loads(server.recv(_LONGEST))
        except socket.timeout:
            _server.cache_clear()  # its answer would be taken for the next one's
            raise
        return code, _content(out), _content(err)


def _file() -> IO[bytes]:
    return tempfile.TemporaryFile(dir=MEMORY)


def _content(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read()


@cache
def _server() -> socket.socket:
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with its:
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(its.fileno())], cwd=CHECKOUT, stdin=subprocess.DEVNULL, pass_fds=[its.fileno()]
        )

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


def _become_a_call(requests: socket.socket) -> None:
    """Answer requests until nobody can ask any more; comes back in each child."""
    for name in importlib.import_module("pcinuma.cli").COMMANDS:
        importlib.import_module(f"pcinuma.cli.{name}")
    gc.freeze()  # so that the end of a child does not look at all that again
    while True:
        request, files, _, _ = socket.recv_fds(requests, _LONGEST, 3)
        if not request:
            sys.exit()
        child = os.fork()
        if child == 0:
            break
        for file in files:
            os.close(file)
        requests.send(json.dumps(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])).encode())
    requests.close()
    words, directory, environment = json.loads(request)
    for standard, file in enumerate(files):
        os.dup2(file, standard)
        os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(directory)
    sys.argv[1:] = words


if __name__ == "__main__":
    _become_a_call(socket.socket(fileno=int(sys.argv[1])))
    runpy.run_module("pcinuma", run_name="__main__", alter_sys=True)
