# SPDX-License-Identifier: LGPL-2.1-or-later
"""A private host for tests: a real libvirtd, QEMU and all, that has the programs of the machine it runs on and nothing else of it.

:class:`PrivateLibvirt` makes namespaces (mount, PID, network, IPC, hostname) in which ``/etc``, ``/run``, ``/var`` and ``/dev``
are its own, and starts virtlogd and libvirtd there. Its ``/etc`` is made of what programs need to run
(:func:`pcinuma.lab.userland.write_etc`); its ``/usr`` is the machine's without a pcinuma that is installed there, below a layer of its
own that takes what is written (:data:`USR_WRITTEN`). So no test depends on how this machine is configured. ``/dev`` has no ``kvm``
(where KVM is there but unusable, libvirt hangs), so guests are ``<domain type='qemu'>``. Everything private lies below
:attr:`PrivateLibvirt.base`, visible from outside, so a test connects to :attr:`PrivateLibvirt.uri` from its own process and reads logs
and state as files. ``/tmp`` and the checkout are the machine's own, at the same paths inside and outside.

Lifetime: the namespaces end, with every process in them, when the context manager is left, and also when the test process dies in
any way. Several instances run side by side. With ``root`` the same is done inside a chroot of another distribution; where
``PCINUMA_TEST_MODULAR`` names a folder with virtqemud and virtproxyd, these run in libvirtd's place.

What can be started here: guests with emulated devices. A domain with a real passthrough device (hostdev, nvme disk, mdev, vDPA)
can be *defined*, and a start of it runs the qemu hook at ``prepare begin`` and then fails in libvirt, since there is no VFIO.
"""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Mapping, Optional, Sequence, Union

import libvirt
import psutil

from pcinuma.lab import userland
from tests import needs
from tests.waiting import CHECKOUT, PATIENCE, HarnessError, ended, until

NAMESPACE_SCRIPT = Path(__file__).with_name("harness_namespace.sh")
USR_WRITTEN = "usr/upper"
"""Below a private host's base, in its own mount namespace: what was written to its /usr."""
PRIVATE_FOLDERS = (
    *("dev", "run", "usr", "checkout", "etc/libvirt/hooks", "etc/sasl2"),
    *("var/home", "var/tmp", "var/log/libvirt", "var/lib/libvirt", "var/cache/libvirt/qemu"),
)

LIBVIRTD_CONF = """\
auth_unix_ro = "none"
auth_unix_rw = "none"
max_clients = 200
log_outputs = "3:file:/var/log/libvirt/libvirtd.log"
"""
QEMU_CONF = """\
user = "root"
group = "root"
cgroup_controllers = []
namespaces = []
security_driver = "none"
dynamic_ownership = 0
remember_owner = 0
"""

Argument = Union[str, "os.PathLike[str]"]

# QEMU's capabilities as libvirt probed them, by root: the second instance of a test run does not probe again.
_probed: dict[Path, Path] = {}


def default_root() -> Path:
    """The root directory of the distribution under test (``PCINUMA_TEST_ROOT``, else this machine's own)."""
    return Path(os.environ.get("PCINUMA_TEST_ROOT", "/"))


def unavailable() -> Optional[str]:
    """Why no private libvirtd can run on this machine; None if it can."""
    root = default_root()
    if needs.namespaces():
        return needs.namespaces()
    for program in ("usr/sbin/libvirtd", "usr/sbin/virtlogd", "usr/bin/virsh"):
        if not (root / program).exists():
            return f"{root / program} is not installed"
    return None


class PrivateLibvirt:
    """A libvirtd in namespaces of its own. Use it as a context manager.

    ``root``: the distribution to run (default: ``PCINUMA_TEST_ROOT``, else this machine's own). ``host_tree``: what pcinuma started
    inside reads instead of ``/`` (``PCINUMA_ROOT``). ``libvirtd``: start it at once; otherwise :meth:`start_libvirtd` does.
    ``show_tree``: libvirt sees the PCI devices of ``host_tree`` in ``/sys``, and so takes hostdev networks on them.
    """

    def __init__(
        self, *, root: Optional[Path] = None, host_tree: Optional[Path] = None, libvirtd: bool = True, show_tree: bool = False
    ) -> None:
        self.root = root or default_root()
        self.host_tree = host_tree
        self.base = Path(tempfile.mkdtemp(prefix="pcinuma-host-"))
        self.uri = f"qemu+unix:///system?socket={self.path('/run/libvirt/libvirt-sock')}"
        self._modular = os.environ.get("PCINUMA_TEST_MODULAR")
        self._daemons = ("virtqemud", "virtproxyd") if self._modular else ("libvirtd",)
        self._libvirtd_wanted = libvirtd
        self._sys = [str(host_tree / "sys")] if show_tree and host_tree else []
        self._namespace: Optional[subprocess.Popen[bytes]] = None
        self._init: Optional[psutil.Process] = None
        self._connections: list[libvirt.virConnect] = []

    # Lifetime.

    def __enter__(self) -> PrivateLibvirt:
        needs.require(unavailable())
        try:
            self._make_tree()
            self._enter_namespaces()
            if self._libvirtd_wanted:
                self.start_libvirtd()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """End every process of the private host and remove its files. May be called twice."""
        if self._namespace is not None:
            inside = self.processes()
            self._namespace.kill()
            self._namespace.wait()
            if self._init is not None:
                inside.append(self._init)
            until(lambda: all(map(ended, inside)), "the processes inside to end")
            self._namespace = None
            self._init = None
        for connection in self._connections:
            try:
                connection.close()
            except libvirt.libvirtError:
                pass  # as expected: its libvirtd is gone. The other way round, one that hangs would hang us
        self._connections.clear()
        shutil.rmtree(self.base, ignore_errors=True)

    def _make_tree(self) -> None:
        userland.write_etc(self.base / "etc", self.root)
        (self.base / "hidden").write_text("".join(f"{file}\n" for file in userland.installed(self.root)))
        userland.write_packages(self.base / "var/lib/dpkg", self.root)
        for folder in PRIVATE_FOLDERS:
            (self.base / folder).mkdir(parents=True, exist_ok=True)
        (self.base / "var/run").symlink_to("/run")
        libvirt_folder = self.base / "etc/libvirt"
        for daemon in self._daemons:
            (libvirt_folder / f"{daemon}.conf").write_text(LIBVIRTD_CONF)
        if self._modular:
            shutil.copytree(self._modular, self.path("/run/modular"))
        (libvirt_folder / "qemu.conf").write_text(QEMU_CONF)
        (libvirt_folder / "virtlogd.conf").write_text("")
        if self.root in _probed:
            shutil.copytree(_probed[self.root], self.path("/var/cache/libvirt/qemu/capabilities"))

    def _enter_namespaces(self) -> None:
        # The parent-death signal ends unshare with the test process, and unshare's --kill-child ends everything inside.
        log = (self.base / "namespace.log").open("wb")
        self._namespace = subprocess.Popen(
            [
                *("setpriv", "--pdeathsig", "KILL"),
                *("unshare", "--mount", "--pid", "--net", "--ipc", "--uts", "--fork", "--kill-child"),
                *("sh", str(NAMESPACE_SCRIPT), str(self.base), str(self.root), str(CHECKOUT), *self._sys),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        log.close()
        namespace = self._namespace
        ready = self.base / "ready"
        until(lambda: ready.exists() or namespace.poll() is not None, "the namespaces", PATIENCE, 0.005)
        if not ready.exists():
            raise HarnessError(f"the namespaces could not be made: {(self.base / 'namespace.log').read_text()}")
        (self._init,) = psutil.Process(namespace.pid).children()
        self._namespace_id = os.readlink(f"/proc/{self._init.pid}/ns/pid")

    # Processes inside.

    def popen(
        self, argv: Sequence[Argument], *, env: Optional[Mapping[str, str]] = None, **options: Any
    ) -> subprocess.Popen[str]:
        """Start ``argv`` inside, with the checkout as working directory. ``Popen.pid`` is nsenter's: signal by :meth:`processes`."""
        if self._init is None:
            raise HarnessError("the private host is not running")
        environment = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/var/home",
            "LANG": "C.UTF-8",
            **({"PCINUMA_ROOT": str(self.host_tree)} if self.host_tree else {}),
            **(env or {}),
        }
        enter = ["/usr/bin/nsenter", "-t", str(self._init.pid), "-m", "-p", "-n", "-i", "-u", "-r"]
        options = {"stdin": subprocess.DEVNULL, "text": True, **options}
        return subprocess.Popen([*enter, "--", "env", "-C", str(CHECKOUT), *_words(argv)], env=environment, **options)

    def run(
        self,
        argv: Sequence[Argument],
        *,
        input: Optional[str] = None,
        env: Optional[Mapping[str, str]] = None,
        check: bool = True,
        timeout: float = PATIENCE,
    ) -> subprocess.CompletedProcess[str]:
        """Run ``argv`` inside and return what it printed. ``check``: a non-zero exit raises HarnessError with its stderr."""
        process = self.popen(
            argv,
            env=env,
            stdin=subprocess.DEVNULL if input is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            out, err = process.communicate(input, timeout=timeout)
        except subprocess.TimeoutExpired:
            # Ends nsenter; what it started holds the pipes on, and ends with the private host at the latest.
            process.kill()
            raise
        if check and process.returncode != 0:
            raise HarnessError(f"{' '.join(_words(argv))}: exit {process.returncode}: {err or out}")
        return subprocess.CompletedProcess(list(argv), process.returncode, out, err)

    def virsh(self, *arguments: Argument, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run virsh inside, on the private libvirtd."""
        return self.run(["virsh", "-q", "-c", "qemu:///system", *arguments], check=check)

    @property
    def python(self) -> str:
        """The interpreter that runs the checkout inside: the distribution's own."""
        return "/usr/bin/python3"

    def processes(self, name: Optional[str] = None) -> list[psutil.Process]:
        """Everything that runs inside (but the first process), or what is called ``name`` (its first argument's last part)."""
        if self._init is None:
            return []
        found = []
        for process in psutil.process_iter():
            try:
                # What nsenter started has its parent outside: the namespace tells, not the tree.
                if process.pid == self._init.pid or os.readlink(f"/proc/{process.pid}/ns/pid") != self._namespace_id:
                    continue
                if name is None or name in (process.name(), Path((process.cmdline() or [""])[0]).name):
                    found.append(process)
            except (OSError, psutil.NoSuchProcess, psutil.ZombieProcess):
                continue  # gone, or ended and not reaped
        return found

    # libvirt.

    def start_libvirtd(self) -> None:
        """Start virtlogd (if it is not there) and libvirtd, and wait until libvirtd answers."""
        if not self.processes("virtlogd"):
            self.run(["virtlogd", "-d", "-p", "/run/virtlogd.pid"])
        for daemon in self._daemons:
            self.run([f"/run/modular/{daemon}" if self._modular else daemon, "-d", "-p", f"/run/{daemon}.pid"])
        try:
            until(self._answers, "libvirtd to answer", PATIENCE, 0.02)
        except HarnessError as error:
            raise HarnessError(f"{error}; its log: {self.log()}") from error
        capabilities = self.path("/var/cache/libvirt/qemu/capabilities")
        if self.root not in _probed and capabilities.is_dir():
            kept = Path(tempfile.mkdtemp(prefix="pcinuma-capabilities-"))
            atexit.register(shutil.rmtree, kept, ignore_errors=True)
            _probed[self.root] = Path(shutil.copytree(capabilities, kept / "capabilities"))

    def _answers(self) -> bool:
        try:
            connection = libvirt.open(self.uri)
        except libvirt.libvirtError:
            return False
        connection.close()
        return True

    def stop_libvirtd(self, *, kill: bool = False) -> None:
        """Stop libvirtd (``kill``: by SIGKILL). Guests keep running, as on any host."""
        daemons = [process for name in self._daemons for process in self.processes(name)]
        for daemon in daemons:
            daemon.kill() if kill else daemon.terminate()
        until(lambda: all(map(ended, daemons)), "libvirtd to stop")

    def restart(self) -> None:
        """Stop libvirtd and start it again."""
        self.stop_libvirtd()
        self.start_libvirtd()

    def connect(self) -> libvirt.virConnect:
        """A connection from the test process; closed with the private host."""
        connection = libvirt.open(self.uri)
        self._connections.append(connection)
        return connection

    def install_hook(self, hook: Path, name: str = "qemu") -> Path:
        """Install ``hook`` as /etc/libvirt/hooks/NAME; restarts libvirtd if it runs, for it looks for hooks when it starts."""
        target = self.path("/etc/libvirt/hooks") / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(hook, target)
        target.chmod(0o755)
        if self.processes(self._daemons[0]):
            self.restart()
        return target

    # Files.

    def path(self, inside: str) -> Path:
        """Where a path below the private /etc, /run or /var lies for the test process."""
        return self.base / inside.lstrip("/")

    def log(self) -> str:
        """libvirtd's log since the private host began."""
        return _text(self.path("/var/log/libvirt/libvirtd.log"))

    def guest_log(self, domain: str) -> str:
        """QEMU's log of a domain: its command lines and what it complained about."""
        return _text(self.path(f"/var/log/libvirt/qemu/{domain}.log"))


def _words(argv: Sequence[Argument]) -> list[str]:
    return [os.fspath(argument) for argument in argv]


def _text(file: Path) -> str:
    return file.read_text(errors="replace") if file.exists() else ""
