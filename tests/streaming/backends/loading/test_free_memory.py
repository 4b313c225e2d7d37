"""The tightest memory limit is found, at any level of made-up cgroup trees."""

from __future__ import annotations

from pathlib import Path

import pytest

from streaming.backends.loading.free_memory import FreeMemory, measure_free_memory

GIB = 2**30
MACHINE_BYTES = 64 * GIB
NO_LIMIT_V1 = 9223372036854771712


class Host:
    """A folder with the files in which the kernel describes one process."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.proc_self = root / "proc"
        self.proc_self.mkdir()

    def write(self, folder: str, **files: object) -> None:
        """Write the files of a cgroup; the argument `memory_max` is the file `memory.max`."""
        path = self.root / folder
        path.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (path / name.replace("memory_", "memory.")).write_text(f"{content}\n")

    def describe(self, *, cgroup: str, mountinfo: str = "", **others: str) -> None:
        """Write the files of `/proc/self`; `{root}` stands for the folder of the mounts."""
        mounts = mountinfo.format(root=str(self.root).replace(" ", "\\040"))
        for name, content in {"cgroup": cgroup, "mountinfo": mounts, **others}.items():
            (self.proc_self / name).write_text(content)

    def free(self) -> tuple[int, str]:
        """Return the free bytes and the limit, its path relative to the root."""
        found = measure_free_memory(self.proc_self, machine_bytes=lambda: MACHINE_BYTES)
        return found.num_bytes, found.limited_by.replace(f"{self.root}/", "")


@pytest.fixture
def host(tmp_path: Path) -> Host:
    root = tmp_path / "a host"  # mountinfo writes a space as \040
    root.mkdir()
    return Host(root)


V2_MOUNT = "29 23 0:26 / {root}/cg rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNTS = (
    "32 31 0:29 / {root}/cg/cpu rw,relatime - cgroup cgroup rw,cpu\n"
    "35 31 0:32 / {root}/cg/memory rw,relatime shared:5 master:2 - cgroup cgroup rw,memory\n"
)
HYBRID_MOUNTS = V1_MOUNTS + "41 31 0:38 / {root}/cg/unified rw - cgroup2 cgroup2 rw\n"
UNLIMITED = (MACHINE_BYTES, "the machine's memory")


def test_version_2_leaves_the_limit_less_the_usage(host: Host):
    host.describe(cgroup="0::/app.slice/run.scope\n", mountinfo=V2_MOUNT)
    host.write(
        "cg/app.slice/run.scope",
        memory_max=4 * GIB,
        memory_high="max",
        memory_current=3 * GIB,
        memory_stat=f"anon 1\ninactive_anon 5\nactive_file 7\ninactive_file {GIB}\nslab 9",
    )
    assert host.free() == (2 * GIB, "memory.max of cg/app.slice/run.scope")


def test_version_1_leaves_the_limit_less_the_usage(host: Host):
    host.describe(cgroup="4:memory:/docker/a\n1:cpu,cpuacct:/b\n", mountinfo=V1_MOUNTS)
    host.write(
        "cg/memory/docker/a",
        memory_limit_in_bytes=4 * GIB,
        memory_usage_in_bytes=3 * GIB,
        memory_stat=f"inactive_file 5\ntotal_inactive_file {GIB}",
    )
    host.write("cg/memory", memory_limit_in_bytes=NO_LIMIT_V1, memory_usage_in_bytes=50 * GIB)
    host.write("cg/cpu/docker/a", memory_limit_in_bytes=1, memory_usage_in_bytes=0)
    assert host.free() == (2 * GIB, "memory.limit_in_bytes of cg/memory/docker/a")


@pytest.mark.parametrize("level", ["", "/a", "/a/b", "/a/b/c"])
def test_the_tightest_level_counts(host: Host, level: str):
    host.describe(cgroup="0::/a/b/c\n", mountinfo=V2_MOUNT)
    for folder in ("/a", "/a/b", "/a/b/c"):
        host.write(f"cg{folder}", memory_max=9 * GIB, memory_current=GIB)
    host.write(f"cg{level}", memory_max=8 * GIB, memory_current=6 * GIB)
    host.write("cg/a/b/c/d", memory_max=1, memory_current=0)
    host.write("cg/a/other", memory_max=1, memory_current=0)
    assert host.free() == (2 * GIB, f"memory.max of cg{level}")


def test_the_least_free_memory_counts_rather_than_the_lowest_limit(host: Host):
    """A slice can have a higher limit and be filled by other processes."""
    host.describe(cgroup="0::/slice/one\n", mountinfo=V2_MOUNT)
    host.write("cg/slice/one", memory_max=4 * GIB, memory_current=GIB)
    host.write("cg/slice", memory_max=10 * GIB, memory_current=9 * GIB)
    assert host.free() == (GIB, "memory.max of cg/slice")


def test_memory_high_is_a_limit(host: Host):
    host.describe(cgroup="0::/a\n", mountinfo=V2_MOUNT)
    host.write("cg/a", memory_max=4 * GIB, memory_high=3 * GIB, memory_current=GIB)
    assert host.free() == (2 * GIB, "memory.high of cg/a")


@pytest.mark.parametrize(
    ("mount_root", "cgroup"),
    [
        ("/docker/abc", "/docker/abc"),
        ("/", "/"),
        ("/docker/abc", "/"),
        ("/..", "/"),
        ("/", "/../other"),
        ("/docker/abc", "/elsewhere"),
    ],
    ids=[
        "host paths for both",
        "its own namespace",
        "mounted by the host",
        "mounted above the namespace",
        "moved out of the namespace",
        "unrelated paths",
    ],
)
def test_in_a_container_the_mount_is_its_own_cgroup(host: Host, mount_root: str, cgroup: str):
    mount = V2_MOUNT.replace(" / ", f" {mount_root} ")
    host.describe(cgroup=f"0::{cgroup}\n", mountinfo=mount)
    host.write("cg", memory_max=GIB, memory_current=GIB // 4)
    assert host.free() == (GIB * 3 // 4, "memory.max of cg")


def test_a_cgroup_outside_the_mount_is_skipped(host: Host):
    host.describe(cgroup="4:memory:/docker/abc\n", mountinfo=V1_MOUNTS)
    host.write("cg/memory", memory_limit_in_bytes=GIB, memory_usage_in_bytes=0)
    assert host.free() == (GIB, "memory.limit_in_bytes of cg/memory")


@pytest.mark.parametrize("version", ["cg/memory/a", "cg/unified/a"])
def test_both_versions_at_once(host: Host, version: str):
    """The version without the memory controller has no limit files."""
    host.describe(cgroup="4:memory:/a\n0::/a\n", mountinfo=HYBRID_MOUNTS)
    files = {"memory_limit_in_bytes": GIB} if "memory" in version else {"memory_max": GIB}
    host.write("cg/memory/a")
    host.write("cg/unified/a")
    host.write(version, **files)
    assert host.free()[0] == GIB


@pytest.mark.parametrize("used", [4 * GIB, 5 * GIB])
def test_a_full_cgroup_has_no_free_memory(host: Host, used: int):
    host.describe(cgroup="0::/a\n", mountinfo=V2_MOUNT)
    host.write("cg/a", memory_max=4 * GIB, memory_current=used)
    assert host.free() == (0, "memory.max of cg/a")


def test_page_cache_counted_elsewhere_adds_no_free_memory(host: Host):
    host.describe(cgroup="0::/a\n", mountinfo=V2_MOUNT)
    host.write(
        "cg/a", memory_max=4 * GIB, memory_current=GIB, memory_stat=f"inactive_file {2 * GIB}"
    )
    assert host.free() == (4 * GIB, "memory.max of cg/a")


def test_the_machine_can_have_less_than_the_cgroup(host: Host):
    host.describe(cgroup="0::/a\n", mountinfo=V2_MOUNT)
    host.write("cg/a", memory_max=2 * MACHINE_BYTES, memory_current=0)
    assert host.free() == UNLIMITED


@pytest.mark.parametrize("limit", ["max", "", "-1", "many"])
def test_a_limit_without_a_number_is_ignored(host: Host, limit: str):
    host.describe(cgroup="0::/a\n", mountinfo=V2_MOUNT)
    host.write("cg/a", memory_max=limit, memory_current=GIB)
    assert host.free() == UNLIMITED


@pytest.mark.parametrize(
    ("cgroup", "mountinfo"),
    [
        ("", ""),
        ("0::/a\n", "garbage\n29 23 0:26 - cgroup2\n\n"),
        ("garbage\n", V2_MOUNT),
        ("1:cpu:/a\n", V1_MOUNTS),
    ],
)
def test_unreadable_descriptions_are_ignored(host: Host, cgroup: str, mountinfo: str):
    host.describe(cgroup=cgroup, mountinfo=mountinfo)
    host.write("cg/a", memory_max=1, memory_current=0)
    assert host.free() == UNLIMITED


def test_without_proc_only_the_machine_counts(tmp_path: Path):
    found = measure_free_memory(tmp_path / "none", machine_bytes=lambda: GIB)
    assert found == FreeMemory(GIB, "the machine's memory")


def test_the_address_space_is_a_limit(host: Host):
    row = "Max address space         {}           {}           bytes \n"
    others = "Max cpu time   1   1   seconds\n"
    status = "Name:\tpython\nVmPeak:\t 9 kB\nVmSize:\t 1048576 kB\nVmRSS:\t 1 kB\n"
    host.describe(cgroup="", limits=others + row.format(3 * GIB, "unlimited"), status=status)
    assert host.free() == (2 * GIB, "the address space (ulimit -v)")
    host.describe(cgroup="", limits=others + row.format("unlimited", "unlimited"), status=status)
    assert host.free() == UNLIMITED


def test_this_process_has_free_memory():
    assert measure_free_memory().num_bytes > 0
