"""How much memory is free, on a device and for this process."""

import pytest
import torch

from xlmrxl_min.checkpoints.memory import free_memory, free_ram

MEMINFO = {"proc/meminfo": "MemTotal: 9000 kB\nMemFree: 10 kB\nMemAvailable:    4000 kB\n"}


def free_ram_with(root, files):
    """`free_ram` on a system with these files."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return free_ram(root)


def test_free_ram_without_cgroups(tmp_path):
    assert free_ram_with(tmp_path / "no proc", {}) is None
    assert free_ram_with(tmp_path / "old kernel", {"proc/meminfo": "MemTotal: 9000 kB\n"}) is None
    assert free_ram_with(tmp_path / "no limit", MEMINFO) == 4000 * 1024


def test_free_ram_in_a_cgroup_of_version_2(tmp_path):
    group = {"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/memory.max": "max\n"}
    group |= {"sys/fs/cgroup/a/memory.max": f"{3000 * 1024}\n", "sys/fs/cgroup/a/memory.current": f"{2000 * 1024}\n"}
    group |= {"sys/fs/cgroup/a/memory.stat": f"anon 7\ninactive_file {500 * 1024}\n"}
    assert free_ram_with(tmp_path, {**MEMINFO, **group}) == 1500 * 1024


@pytest.mark.parametrize(
    ("limit", "usage", "expected"),
    [(2000 * 1024, 1900 * 1024, 100 * 1024), (2000 * 1024, 2100 * 1024, 0), (2**63 - 4096, 2100 * 1024, 4000 * 1024)],
)
def test_free_ram_in_a_cgroup_of_version_1(limit, usage, expected, tmp_path):
    prefix = "sys/fs/cgroup/memory/c/memory"
    group = {"proc/self/cgroup": "3:cpu:/c\n2:memory:/c\n", f"{prefix}.limit_in_bytes": f"{limit}"}
    group |= {f"{prefix}.usage_in_bytes": f"{usage}", f"{prefix}.stat": "total_inactive_file 0\n"}
    assert free_ram_with(tmp_path, {**MEMINFO, **group}) == expected


def test_free_memory_of_devices():
    assert free_memory("cpu") == pytest.approx(free_ram(), rel=0.2)
    assert free_memory("meta") is None  # a device that cannot be asked
    if not torch.cuda.is_available():
        assert free_memory("cuda") is None


@pytest.mark.cuda
def test_free_memory_of_a_gpu():
    assert free_memory("cuda:0") == pytest.approx(torch.cuda.mem_get_info(0)[0], rel=0.1)
