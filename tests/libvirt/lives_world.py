# SPDX-License-Identifier: LGPL-2.1-or-later
"""What stands around the lives of domains: a private libvirt with hook, daemon and proxy, and a second libvirt that nobody placed anything
on, which tells what libvirt alone makes of an owner's deeds.

The ``pcinuma`` command runs in the test's own process, on the private host's sockets: a process each would take most of the time.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple, Optional

import libvirt

from pcinuma.cli import main
from tests.hosts.build import Host
from tests.libvirt.harness import PrivateLibvirt
from tests.libvirt.lives_domains import Deed, Hardware, inactive
from tests.libvirt.running_daemon import SOCKET, RunningDaemon
from tests.libvirt.running_proxy import RunningProxy
from tests.waiting import CHECKOUT, until


class Said(NamedTuple):
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


class World:
    """A context manager. ``connection`` is the owners' one, :meth:`through` the proxy or not; ``hardware`` is what the host's tree is
    written from."""

    def __init__(self, folder: Path) -> None:
        self.hardware = Hardware()
        self.model: Host = self.hardware.build()
        self._built = str(self.hardware)
        self.tree = folder / "host"
        self.model.write(self.tree)
        self.host = PrivateLibvirt(host_tree=self.tree, libvirtd=False)
        self._twin = PrivateLibvirt()
        self.daemon = RunningDaemon(self.host)
        self.proxy = RunningProxy(self.host)
        self.connection: Any = None
        self._read = 0
        self._environment: dict[str, Optional[str]] = {}

    def __enter__(self) -> World:
        self.host.__enter__()
        try:
            self.host.install_hook(CHECKOUT / "hook/qemu")
            self.host.start_libvirtd()
            self.proxy.start()
            self.through(proxy=False)
            self._twin.__enter__()
            self._alone = self._twin.connect()
            ours = {
                "PCINUMA_SOCKET": str(self.host.path(SOCKET)),
                "PCINUMA_LIBVIRT_URI": self.host.uri,
                "PCINUMA_ROOT": str(self.tree),
                "PCINUMA_STATE": str(self.host.path("/var/lib/pcinuma")),
            }
            self._environment = {name: os.environ.get(name) for name in ours}
            os.environ.update(ours)
            self.daemon.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        for name, value in self._environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        self._hang_up()
        if self.daemon.process is not None:
            self.daemon.kill()
        if self.proxy.parent is not None:
            self.proxy.kill()
        self._twin.close()
        self.host.close()

    def through(self, *, proxy: bool) -> None:
        """From now on the owners' calls go through the proxy, or to libvirt itself."""
        self._hang_up()
        self._proxy = proxy
        self.connection = libvirt.open(self.proxy.uri if proxy else self.host.uri)

    def _hang_up(self) -> None:
        """libvirtd takes a limited number of clients."""
        if self.connection is not None:
            try:
                self.connection.close()
            except libvirt.libvirtError:
                pass  # its libvirtd has been restarted

    # The daemon.

    @property
    def watched(self) -> bool:
        """Whether the daemon runs."""
        return self.daemon.process is not None

    def stop_daemon(self, number: int = signal.SIGTERM) -> None:
        self.daemon.kill(number)

    def start_daemon(self) -> None:
        self.daemon.start()

    def forget_everything(self) -> None:
        """The daemon stops, and starts as if it never had."""
        self.stop_daemon()
        shutil.rmtree(self.host.path("/var/lib/pcinuma"))

    def sweep(self) -> None:
        """The daemon reads its configuration, and has looked at every domain afterwards."""
        assert self.daemon.process is not None
        heard = self.daemon.log().count("configuration read again")
        self.daemon.process.send_signal(signal.SIGHUP)
        until(lambda: self.daemon.log().count("configuration read again") > heard, "pcinumad to read its configuration", interval=0.002)
        self.daemon.settle()

    def restart_libvirtd(self, *, kill: bool) -> None:
        lost, made = (self.daemon.log().count(text) for text in ("connection to libvirt lost", "connected to libvirt"))
        self.host.stop_libvirtd(kill=kill)
        if self.watched:
            until(lambda: self.daemon.log().count("connection to libvirt lost") > lost, "pcinumad to miss libvirt")
        self.host.start_libvirtd()
        self.through(proxy=self._proxy)
        if self.watched:
            until(lambda: self.daemon.log().count("connected to libvirt") > made, "pcinumad to find libvirt", 30)
            self.daemon.settle()

    def complaints(self) -> list[str]:
        """The errors in the daemon's log since this was last asked."""
        log = self.daemon.log()
        new, self._read = log[self._read :], len(log)
        return [line for line in new.splitlines() if re.search(r"^\S+Z error |critical|Traceback|Error:|Exception", line)]

    # The host and its configuration.

    def rebuild(self) -> None:
        """Write the tree of :attr:`hardware` as it is now."""
        if str(self.hardware) == self._built:
            return
        self._built = str(self.hardware)
        self.model = self.hardware.build()
        shutil.rmtree(self.tree / "sys")
        self.model.write(self.tree)

    def configure(self, text: str) -> None:
        file = self.tree / "etc/pcinuma/pcinuma.conf"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    # Domains.

    def definition(self, name: str) -> str:
        return inactive(self.connection.lookupByName(name))

    def alone(self, before: Optional[str], *deeds: Deed) -> str:
        """What libvirt alone makes of these deeds on a definition. Raises libvirtError where it refuses."""
        domain = self._alone.defineXML(before) if before is not None else None
        try:
            for deed in deeds:
                domain = deed(self._alone, domain)
            assert domain is not None
            return inactive(domain)
        finally:
            for left in self._alone.listAllDomains(0):
                left.undefine()

    def pcinuma(self, *words: str) -> Said:
        """Run the command."""
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            code = main(list(words))
        return Said(code, out.getvalue(), err.getvalue())
