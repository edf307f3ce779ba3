"""How much memory is free, on a device or in RAM."""

from __future__ import annotations

import os
import re
from pathlib import Path

import torch


def free_memory(device: str | torch.device = "cpu") -> int | None:
    """Bytes that can be allocated on `device` now; None if it is unknown.

    For the CPU on Linux, what the kernel calls available, or less if this process may use less (cgroups).
    """
    device = torch.device(device)
    if device.type == "cpu":
        return free_ram()
    try:
        return torch.get_device_module(device).mem_get_info(device)[0]
    except (AttributeError, AssertionError, RuntimeError):  # a device without mem_get_info, or that does not exist
        return None


def free_ram(root: Path = Path("/")) -> int | None:
    """The smaller one of MemAvailable and of what every cgroup above this process leaves; `root` is for the tests."""
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", (root / "proc/meminfo").read_text(), flags=re.MULTILINE)
    except OSError:
        return None
    if found is None:
        return None
    free = [int(found[1]) * 1024]
    names = {"memory.max": "memory.current", "memory.limit_in_bytes": "memory.usage_in_bytes"}  # version 2, version 1
    for group in cgroups(root):
        for limit, used in names.items():
            try:
                most, now = (int((group / name).read_text()) for name in (limit, used))
                # the page cache counts as used, but is reclaimable
                files = re.search(r"^(?:total_)?inactive_file (\d+)", (group / "memory.stat").read_text(), re.MULTILINE)
            except (OSError, ValueError):  # not there, or "max": no limit
                continue
            free.append(max(0, most - now + (int(files[1]) if files else 0)))
    return min(free)


def cgroups(root: Path) -> list[Path]:
    """Folders of the memory cgroups that this process is in, from its own up to the top."""
    top, folders = root / "sys/fs/cgroup", []
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        _, kinds, path = line.split(":", 2)
        if kinds in ("", "memory"):
            base = top / kinds
            own = Path(os.path.normpath(base / path.lstrip("/")))
            folders += [folder for folder in (own, *own.parents) if folder.is_relative_to(base)]
    return folders
