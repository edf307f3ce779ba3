"""How much memory is free, by what the system and the device say."""

import pytest
import torch

from xlmrxl_min.checkpoints.memory import free_memory, free_ram

KB = 1024
MEMINFO = {"proc/meminfo": "MemTotal: 9000 kB\nMemFree: 10 kB\nMemAvailable:    4000 kB\n"}


def free_ram_with(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return free_ram(root)


def test_free_ram_is_what_the_kernel_calls_available(tmp_path):
    assert free_ram_with(tmp_path / "none", {}) is None
    assert free_ram_with(tmp_path / "old", {"proc/meminfo": "MemTotal: 9000 kB\n"}) is None
    assert free_ram_with(tmp_path / "new", MEMINFO) == 4000 * KB


def test_free_ram_is_limited_by_cgroups_of_version_2(tmp_path):
    group = {"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/memory.max": "max\n"}
    group |= {"sys/fs/cgroup/a/memory.max": f"{3000 * KB}\n", "sys/fs/cgroup/a/memory.current": f"{2000 * KB}\n"}
    group |= {"sys/fs/cgroup/a/memory.stat": f"anon 7\ninactive_file {500 * KB}\n"}
    assert free_ram_with(tmp_path, {**MEMINFO, **group}) == 1500 * KB


def test_free_ram_is_limited_by_cgroups_of_version_1(tmp_path):
    memory = "sys/fs/cgroup/memory/c/memory"
    group = {"proc/self/cgroup": "3:cpu:/c\n2:memory:/c\n", f"{memory}.limit_in_bytes": f"{2000 * KB}"}
    group |= {f"{memory}.usage_in_bytes": f"{1900 * KB}", f"{memory}.stat": "total_inactive_file 0\n"}
    assert free_ram_with(tmp_path / "limited", {**MEMINFO, **group}) == 100 * KB
    group[f"{memory}.usage_in_bytes"] = f"{2100 * KB}"
    assert free_ram_with(tmp_path / "exceeded", {**MEMINFO, **group}) == 0
    group[f"{memory}.limit_in_bytes"] = "9223372036854771712"
    assert free_ram_with(tmp_path / "unlimited", {**MEMINFO, **group}) == 4000 * KB


def test_free_memory_asks_the_device(monkeypatch):
    class Module:
        @staticmethod
        def mem_get_info(device):
            assert str(device) == "cuda:1"
            return 123, 456

    monkeypatch.setattr(torch, "get_device_module", lambda device: Module)
    assert free_memory("cuda:1") == 123
    monkeypatch.setattr(torch, "get_device_module", lambda device: object())
    assert free_memory("mps") is None
    assert free_memory("cpu") == pytest.approx(free_ram(), rel=0.2)
