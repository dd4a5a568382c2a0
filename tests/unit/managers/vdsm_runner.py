# SPDX-License-Identifier: LGPL-2.1-or-later
"""vdsm's way with the hooks of before_vm_start, as its lib/vdsm/common/hooks.py has it: file, environment, order, exit codes, errors."""

from __future__ import annotations

import os
import stat
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Mapping


class HookError(Exception):
    """The VM does not start; the text is what the last hook that failed said."""


@dataclass
class Vdsm:
    """``hooks``: the folder before_vm_start; ``temporary``: where vdsm keeps its files. ``log``: a line for each hook that ran."""

    hooks: Path
    temporary: Path
    log: list[str] = field(default_factory=list)

    def before_vm_start(self, domxml: str, custom: Mapping[str, str] = {}) -> str:
        """The XML that vdsm would define. Raises HookError."""
        scripts = sorted(path for path in self.hooks.iterdir() if path.is_file() and os.access(path, os.X_OK))
        descriptor, name = tempfile.mkstemp(dir=self.temporary)
        errors: list[str] = []
        try:
            os.write(descriptor, domxml.encode())
            os.close(descriptor)
            environment = {**os.environ, **custom, "vmId": "0d1e7a3c-52f7-4b0e-9d2b-9a1c3f6a8b11", "_hook_domxml": name}
            environment["PYTHONPATH"] = os.environ.get("PYTHONPATH", "") + ":/usr/lib/python3/site-packages/vdsm/hook"
            for script in scripts:
                process = subprocess.run([str(script)], stdin=subprocess.DEVNULL, capture_output=True, env=environment)
                self.log.append(f"{script.name}: rc={process.returncode} err={process.stderr.decode()}")
                if process.returncode != 0:
                    errors.append(process.stderr.decode())
                if process.returncode == 2:
                    break
            if errors:
                raise HookError(errors[-1])
            status = os.lstat(name)
            assert stat.S_ISREG(status.st_mode) and stat.S_IMODE(status.st_mode) == 0o600 and status.st_uid == os.geteuid()
            return Path(name).read_text(encoding="utf-8")
        finally:
            os.unlink(name)
