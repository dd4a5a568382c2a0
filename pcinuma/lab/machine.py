# SPDX-License-Identifier: LGPL-2.1-or-later
"""Running QEMU until the guest has said its last word.

The serial console goes to a file; the machine ends by resetting itself (``-no-reboot``), and is killed when its time is up. An exit code
says nothing about a guest, so callers judge what the console says. KVM is used where a guest really boots with it: a ``/dev/kvm`` that
exists may still hang.

Guests are emulated by one thread (:data:`GUEST_TCG`): several boot side by side on the same cores, so more threads buy them nothing, and
with one thread for each virtual CPU QEMU 7.2 now and then loses the wake-up of a CPU that sleeps; that guest's timers then stand still.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Optional

from pcinuma.lab import LabError, initramfs
from pcinuma.lab.kernel import Kernel

BRISK = (
    "console=ttyS0 quiet panic=-1 mitigations=off rodata=off tsc=reliable no_timer_check nokaslr cryptomgr.notests audit=0 nowatchdog"
    " random.trust_cpu=on"
    # Self-tests (rodata=off: of the kernel's own page tables), keys and probes that have nothing to do with PCI; a kernel without such a
    # function takes no notice.
    " initcall_blacklist=crypto_kdf108_init,load_system_certificate_list,init_ima,init_evm,init_kprobe_trace,init_blk_tracer,cmos_init"
)
"""The kernel's command line where every instruction is emulated."""
_UNUSED = (
    # BTF is parsed for the first of these.
    *("cubictcp_register", "tcp_congestion_default", "dev_map_init", "bpf_rstat_kfunc_init", "bpf_key_sig_kfuncs_init", "kfunc_init"),
    *("bpf_prog_test_run_init", "bpf_tcp_ca_kfunc_init"),
    # keys, ciphers and their users; not system_trusted_keyring_init, without which no module loads
    *("machine_keyring_init", "platform_keyring_init", "blacklist_init", "init_encrypted"),
    "init_root_keyring",
    *("digsig_init", "blake2s_mod_init", "fscrypt_init"),
    # tracing and performance counters
    *("trace_eval_init", "init_trace_printk_function_export", "tracer_init_tracefs", "init_kprobes", "init_optprobes"),
    "perf_event_sysfs_init",
    # devices that are not looked at
    *("i8042_init", "atkbd_init", "mousedev_init", "add_pcspkr", "hpet_init", "hpet_late_init", "agp_intel_init"),
    *("agp_amd64_mod_init", "sysfb_init"),
    *("vmgenid_driver_init", "vga_arb_device_init", "shpcd_init", "iosf_mbi_init", "cxl_core_init", "cxl_port_driver_init"),
    "mcheck_init_device",
    *("acpi_processor_driver_init", "init_ladder", "ledtrig_disk_init", "ledtrig_panic_init"),
    # files below /proc and /sys, and file systems, that nobody opens
    *("slab_sysfs_init", "dmi_id_init", "dmi_sysfs_init", "cacheinfo_sysfs_init", "init_clocksource_sysfs", "clockevents_init_sysfs"),
    *("proc_kcore_init", "init_mqueue_fs", "init_hugetlbfs_fs", "dquot_init", "btree_module_init"),
    # memory, and the network
    *("hugetlb_init", "init_zswap", "ksm_init", "memory_tier_init", "mip6_init", "packet_init"),
)
LEAN = f"acpi=noirq ipv6.disable=1 pnpacpi=off lsm=none initcall_blacklist={','.join(_UNUSED)}"
"""Further words for the kernel of a guest that does no more than tell what it sees: a quarter of its boot is left out, and of one that is
emulated in an emulated host a third."""
CMDLINE = f"{BRISK} {LEAN} pcie_ports=compat"
GUEST_TCG = "tcg,thread=single"
PATIENCE = 900.0
"""Seconds after which a guest that has not said its last word is given up: an emulated one needs ten, and a busy machine ten times that."""
STALL = "rcu_preempt detected stalls"
_OVMF = (("OVMF", "_4M.fd"), ("OVMF", ".fd"), ("edk2/ovmf", ".fd"))


@dataclass(frozen=True)
class Run:
    """A machine that has ended: its console, and the seconds that it took."""

    console: str
    seconds: float
    timed_out: bool


def binary() -> str:
    """The QEMU of this machine."""
    for candidate in (shutil.which("qemu-system-x86_64"), shutil.which("qemu-kvm"), "/usr/libexec/qemu-kvm"):
        if candidate and Path(candidate).is_file():
            return candidate
    raise LabError("there is no QEMU for x86-64", hint="install qemu-system-x86 (Debian) or qemu-kvm (Fedora)")


def ovmf() -> tuple[Path, Path]:
    """OVMF's code and variables: those beside :func:`binary` (``PREFIX/share``), else those of /usr."""
    for prefix in (Path(binary()).parent.parent, Path("/usr")):
        for folder, end in _OVMF:
            code, variables = (prefix / "share" / folder / f"OVMF_{kind}{end}" for kind in ("CODE", "VARS"))
            if code.is_file() and variables.is_file():
                return code, variables
    raise LabError("there is no OVMF firmware", hint="install ovmf (Debian) or edk2-ovmf (Fedora)")


def run(
    argv: Sequence[str],
    *,
    timeout: float,
    scratch: Path,
    watch: Optional[Callable[[str], None]] = None,
    stop_at: Optional[str] = None,
    second_serial: Optional[str] = None,
    unwanted: Optional[threading.Event] = None,
) -> Run:
    """Run QEMU with ``argv`` (no serial console in it) until it exits, ``stop_at`` shows on the console, or ``timeout`` seconds are over.

    ``watch`` is called with each new complete line; ``unwanted`` ends the machine when it is set. Raises :class:`LabError` if QEMU refuses
    its command line.
    """
    console = scratch / "console.log"
    console.write_bytes(b"")
    started = time.monotonic()
    timed_out = False
    with (scratch / "qemu.log").open("w+") as errors:
        serials = ["-serial", f"file:{console}", *(["-serial", second_serial] if second_serial else [])]
        process = subprocess.Popen([*argv, *serials], stdin=subprocess.DEVNULL, stdout=errors, stderr=errors, close_fds=True)
        try:
            seen = 0
            while True:
                code = process.poll()
                text = console.read_text(errors="replace")
                if watch is not None:
                    lines = text.replace("\r", "").split("\n")[:-1]
                    for line in lines[seen:]:
                        watch(line)
                    seen = len(lines)
                if code is not None or (stop_at is not None and stop_at in text) or (unwanted is not None and unwanted.is_set()):
                    break
                if time.monotonic() - started > timeout:
                    timed_out = True
                    break
                time.sleep(0.05)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
        if code is not None and code < 0:
            raise LabError(f"QEMU was killed by signal {-code}", hint="somebody did that, or the kernel for want of memory (see dmesg)")
        if code not in (None, 0):
            errors.seek(0)
            raise LabError(f"QEMU ended with {code}: {errors.read().strip()[-600:]}")
    return Run(console.read_text(errors="replace"), time.monotonic() - started, timed_out)


@cache
def accelerator(kernel: Kernel) -> str:
    """``kvm`` if a guest boots with it in a few seconds, else ``tcg``."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    with tempfile.TemporaryDirectory(prefix="pcinuma-lab-") as scratch:
        try:
            done = boot_tree(kernel, ["-accel", "kvm", "-machine", "q35", "-cpu", "max", "-m", "256"], Path(scratch), timeout=8)
        except LabError:
            return "tcg"
    return "kvm" if initramfs.END in done.console else "tcg"


def boot_tree(
    kernel: Kernel, hardware: Sequence[str], scratch: Path, *, firmware: str = "seabios", timeout: float = PATIENCE, aperture_mib: int = 0
) -> Run:
    """Boot ``hardware`` (arguments for QEMU) with the kernel that prints its tree.

    ``aperture_mib``: the size of the 64-bit window that OVMF is to make, 0 for its default. A guest whose kernel says that its own timers
    stopped, and that never came to its tree, is booted once more, with a warning: that is the emulator's failure and says nothing of PCI.
    """
    initrd = scratch / "tree.cpio"
    if not initrd.exists():
        initrd.write_bytes(initramfs.tree_image())
    argv = [binary(), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", *hardware]
    if firmware == "ovmf":
        code, variables = ovmf()
        own = scratch / "vars.fd"
        shutil.copy(variables, own)
        argv += ["-drive", f"if=pflash,format=raw,unit=0,readonly=on,file={code}"]
        argv += ["-drive", f"if=pflash,format=raw,unit=1,file={own}"]
        if aperture_mib:
            argv += ["-fw_cfg", f"name=opt/ovmf/X-PciMmio64Mb,string={aperture_mib}"]
    image = kernel.vmlinux if firmware == "seabios" else kernel.bzimage
    argv += ["-kernel", str(image), "-initrd", str(initrd), "-append", CMDLINE]
    ended = run(argv, timeout=timeout, scratch=scratch, stop_at=initramfs.END)  # now and then a reset hangs
    if initramfs.END not in ended.console and STALL in ended.console:
        warnings.warn("QEMU lost a guest's timer interrupts; that guest is booted again", stacklevel=2)
        ended = run(argv, timeout=timeout, scratch=scratch, stop_at=initramfs.END)
    return ended
