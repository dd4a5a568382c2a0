# SPDX-License-Identifier: LGPL-2.1-or-later
"""A stock kernel to boot guests with: fetched from the distribution, unpacked into a cache, never installed.

On Debian and its kin the kernel comes from ``apt-get download`` of what the meta package depends on (one package, or from Linux 7 on
several); elsewhere (and where apt reaches no mirror) from ``/lib/modules/*/vmlinuz`` of a kernel that is installed.
In both cases the cache directory ends up holding, per release::

    RELEASE/vmlinuz                 the bzImage; OVMF boots this one
    RELEASE/vmlinux                 the ELF inside it; QEMU boots it directly by PVH, in half the time
    RELEASE/lib/modules/RELEASE     the modules that the lab may load, with modules.dep

A release directory is complete or absent: it is built beside and renamed. A lock serialises builders. One that another version of the lab
built, with fewer modules, is built anew.
"""

from __future__ import annotations

import bz2
import fcntl
import lzma
import shutil
import struct
import subprocess
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from pcinuma.lab import LabError

DEFAULT_CACHE = Path("/var/cache/pcinuma/lab")
META_PACKAGE = "linux-image-amd64"

_MODULE_FOLDERS = (
    *("arch/x86", "block", "crypto", "lib", "virt", "fs/9p", "fs/fscache", "fs/netfs", "fs/overlayfs"),
    *("drivers/block", "drivers/char", "drivers/md", "drivers/net", "drivers/nvme", "drivers/pci", "drivers/vfio"),
    *("drivers/virtio", "net/9p", "net/802", "net/8021q", "net/bridge", "net/core", "net/ipv6", "net/llc"),
)
_NOTE = "module-folders"
_NOT_NEEDED = (
    *("drivers/char/ipmi", "drivers/char/tpm", "drivers/net/wireless", "drivers/net/usb", "drivers/net/ethernet/mellanox"),
    "drivers/net/can",
)


@dataclass(frozen=True)
class Kernel:
    """An unpacked kernel. ``modules`` is the directory that holds ``modules.dep``."""

    release: str
    bzimage: Path
    vmlinux: Path
    modules: Path

    @classmethod
    def in_folder(cls, folder: Path) -> Kernel:
        release = folder.name
        return cls(release, folder / "vmlinuz", folder / "vmlinux", folder / "lib" / "modules" / release)


def fetch(cache: Path = DEFAULT_CACHE) -> Kernel:
    """The kernel in ``cache``, put there first if need be. Raises :class:`LabError` that says what is missing."""
    there = kept(cache)  # complete or absent: to look needs no lock, which an ordinary user may not have
    if there is not None:
        return there
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache):
        there = kept(cache)
        if there is not None:
            return there
        with tempfile.TemporaryDirectory(dir=cache, prefix="building-") as scratch:
            return _install(_unpack(Path(scratch)), cache, Path(scratch))


def kept(cache: Path) -> Optional[Kernel]:
    """The newest kernel in ``cache``; None if there is none, or none with all modules."""
    if not cache.is_dir():
        return None
    present = sorted(folder for folder in cache.iterdir() if (folder / "vmlinux").is_file() and _is_complete(folder))
    return Kernel.in_folder(present[-1]) if present else None


def _is_complete(folder: Path) -> bool:
    """Whether a release has all the modules that this lab may load."""
    noted = folder / _NOTE
    return noted.is_file() and set(noted.read_text().split()) >= set(_MODULE_FOLDERS)


@contextmanager
def _locked(cache: Path) -> Iterator[None]:
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _run(*argv: str, cwd: Optional[Path] = None) -> str:
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabError(f"{argv[0]} failed: {' '.join(done.stderr.split())[-300:]}", subject=" ".join(argv))
    return done.stdout


def _unpack(scratch: Path) -> Path:
    """A directory that looks like a root with ``lib/modules/RELEASE``, below /usr or not; the kernel is there or in ``boot``."""
    tree = scratch / "tree"
    if shutil.which("apt-get") and shutil.which("dpkg-deb"):
        try:
            packages = _download(scratch)
        except LabError:
            if _installed_kernel() is None:
                raise
        else:
            tree.mkdir()
            for package in packages:
                _run("dpkg-deb", "-x", str(package), str(tree))
            return tree
    image = _installed_kernel()
    if image is None:
        raise LabError("there is no kernel to boot guests with", hint="install a kernel package (one that owns /lib/modules/*/vmlinuz)")
    return _copy_installed(image, tree)


def _download(scratch: Path) -> list[Path]:
    names = _dependencies(META_PACKAGE, "linux-image-")
    if not names:
        raise LabError("apt knows no kernel package", subject=META_PACKAGE, hint="run apt-get update")
    parts = _dependencies(names[0], "linux-base-", "linux-binary-", "linux-modules-")
    _run("apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", names[0], *parts, cwd=scratch)
    return sorted(scratch.glob("*.deb"))


def _dependencies(package: str, *prefixes: str) -> list[str]:
    """The packages that it depends on whose names begin so."""
    depends = _run("apt-cache", "depends", "--no-suggests", package)
    names = [line.split()[-1] for line in depends.splitlines() if "Depends: " in line]
    return [name for name in names if name.startswith(prefixes)]


def _installed_kernel() -> Optional[Path]:
    """The newest kernel image that is installed together with its modules."""
    found = [file for file in Path("/lib/modules").glob("*/vmlinuz") if file.is_file()]
    found += [file for file in Path("/boot").glob("vmlinuz-*") if Path("/lib/modules", file.name[len("vmlinuz-") :]).is_dir()]
    return max(found, key=lambda file: file.stat().st_mtime, default=None)


def _copy_installed(image: Path, tree: Path) -> Path:
    release = _release(image)
    (tree / "boot").mkdir(parents=True)
    shutil.copy(image, tree / "boot" / f"vmlinuz-{release}")
    shutil.copytree(Path("/lib/modules") / release, tree / "lib" / "modules" / release, symlinks=True)
    return tree


def _release(image: Path) -> str:
    """Of ``/boot/vmlinuz-RELEASE`` or ``/usr/lib/modules/RELEASE/vmlinuz``."""
    return image.parent.name if image.name == "vmlinuz" else image.name[len("vmlinuz-") :]


def _install(tree: Path, cache: Path, scratch: Path) -> Kernel:
    image = next((file for where in ("boot/vmlinuz-*", "usr/lib/modules/*/vmlinuz") for file in tree.glob(where)), None)
    if image is None:
        raise LabError("the kernel package holds no vmlinuz", subject=str(tree))
    release = _release(image)
    source = next(folder for folder in (tree / "lib/modules" / release, tree / "usr/lib/modules" / release) if folder.is_dir())
    folder = scratch / release
    modules = folder / "lib" / "modules" / release
    for name in _MODULE_FOLDERS:
        if (source / "kernel" / name).is_dir():
            unwanted = shutil.ignore_patterns(*(item.rsplit("/", 1)[1] for item in _NOT_NEEDED))
            shutil.copytree(source / "kernel" / name, modules / "kernel" / name, symlinks=True, ignore=unwanted)
    for name in ("modules.builtin", "modules.builtin.modinfo", "modules.order"):
        if (source / name).is_file():
            shutil.copy(source / name, modules / name)
    _run("depmod", "-b", str(folder), release)
    shutil.copy(image, folder / "vmlinuz")
    (folder / "vmlinux").write_bytes(elf_of(image.read_bytes()))
    (folder / _NOTE).write_text("\n".join(_MODULE_FOLDERS) + "\n")
    if (cache / release).exists():
        (cache / release).rename(scratch / "incomplete")
    folder.rename(cache / release)
    return Kernel.in_folder(cache / release)


def elf_of(bzimage: bytes) -> bytes:
    """The ELF file inside a bzImage (header fields: Linux' ``Documentation/x86/boot.rst``)."""
    if bzimage[0x202:0x206] != b"HdrS":
        raise LabError("not a bzImage")
    setup_sectors = bzimage[0x1F1] or 4
    offset, length = struct.unpack_from("<II", bzimage, 0x248)
    payload = bzimage[(setup_sectors + 1) * 512 + offset :][:length]
    elf = _decompress(payload)
    if elf[:4] != b"\x7fELF":
        raise LabError("the payload of the bzImage is no ELF file")
    return elf


def decompressed(tool: str, content: bytes) -> bytes:
    """What ``tool`` (``zstd``, ``lz4``) makes of it."""
    if shutil.which(tool) is None:
        raise LabError(f"the kernel is compressed with {tool}, which is not installed", hint=f"install {tool}")
    done = subprocess.run([tool, "-dc"], input=content, capture_output=True, check=False)
    if done.returncode:
        raise LabError(f"{tool} cannot decompress the kernel", hint="fetch it again")
    return done.stdout


def _decompress(payload: bytes) -> bytes:
    if payload.startswith(b"\xfd7zXZ"):
        return lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(payload)
    if payload.startswith(b"\x1f\x8b"):
        return zlib.decompressobj(31).decompress(payload)
    if payload.startswith(b"BZh"):
        return bz2.BZ2Decompressor().decompress(payload)
    # The last four bytes are the size that the kernel's build appends.
    for magic, tool in ((b"\x28\xb5\x2f\xfd", "zstd"), (b"\x02\x21\x4c\x18", "lz4")):
        if payload.startswith(magic):
            return decompressed(tool, payload[:-4])
    raise LabError("the kernel is compressed in a way that the lab does not know", subject=payload[:6].hex())
