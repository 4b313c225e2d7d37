"""Measures how much more memory this process can take before it is killed or refused memory.

psutil reports the memory of the machine and ignores the limits of a container. This module also
reads the cgroup of this process and all its ancestors, since the tightest limit applies and can be
set on any of them. See https://docs.kernel.org/admin-guide/cgroup-v2.html and, for version 1,
https://docs.kernel.org/admin-guide/cgroup-v1/memory.html.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import psutil

_PROC_SELF = Path("/proc/self")


@dataclass(frozen=True, slots=True)
class FreeMemory:
    """An amount of memory that can still be taken, and the limit that it comes from.

    Attributes:
        num_bytes: the amount in bytes.
        limited_by: the limit in words, such as "memory.max of /sys/fs/cgroup/app.slice".
    """

    num_bytes: int
    limited_by: str


@dataclass(frozen=True, slots=True)
class _Interface:
    """The file names of one cgroup version.

    Attributes:
        limits: files with an upper limit. Above `memory.high` the kernel kills no process, but it
            throttles them until they make no progress.
        usage: the file with the current usage.
        inactive_file: the key in `memory.stat` of the page cache that the kernel reclaims first.
            It counts as free here, as in `docker stats` and the kubelet.
    """

    limits: tuple[str, ...]
    usage: str
    inactive_file: str


_V1 = _Interface(("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file")
_V2 = _Interface(("memory.max", "memory.high"), "memory.current", "inactive_file")


def measure_free_memory(
    proc_self: Path = _PROC_SELF, *, machine_bytes: Callable[[], int] | None = None
) -> FreeMemory:
    """Return the least free memory of the machine, each cgroup and the address space.

    Args:
        proc_self: the folder in which the kernel describes this process. Tests pass their own.
        machine_bytes: returns the free bytes of the machine. The default asks psutil.
    """
    machine = psutil.virtual_memory().available if machine_bytes is None else machine_bytes()
    bounds = [
        FreeMemory(machine, "the machine's memory"),
        *_cgroup_bounds(proc_self),
        *_address_space_bounds(proc_self),
    ]
    return min(bounds, key=lambda bound: bound.num_bytes)


def _cgroup_bounds(proc_self: Path) -> Iterator[FreeMemory]:
    """Yield the free memory of each limit on the cgroup of this process and on its ancestors."""
    for interface, folder, mount_point in _memory_cgroups(proc_self):
        # Ancestors outside the mount, as in a container, cannot be read.
        for level in (folder, *folder.parents):
            yield from _level_bounds(level, interface)
            if level == mount_point:
                break


def _level_bounds(folder: Path, interface: _Interface) -> Iterator[FreeMemory]:
    # "No limit" is "max" in version 2, whose root cgroup lacks the file. In version 1 it is a huge
    # number, which never is the minimum.
    limits = {name: _read_number(folder / name) for name in interface.limits}
    if all(limit is None for limit in limits.values()):
        return
    cached = _find_number(folder / "memory.stat", f"{interface.inactive_file} ") or 0
    used = (_read_number(folder / interface.usage) or 0) - cached
    for name, limit in limits.items():
        if limit is not None:
            yield FreeMemory(max(0, limit - max(0, used)), f"{name} of {folder}")


def _memory_cgroups(proc_self: Path) -> Iterator[tuple[_Interface, Path, Path]]:
    """Yield interface, folder and mount point of the cgroups that can limit this process's memory.

    Both versions can be mounted at once. The one without the memory controller has no limit files.
    """
    own_paths: dict[str, str] = {}  # "memory" of version 1, "" of version 2
    for line in _read_lines(proc_self / "cgroup"):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        own_paths |= dict.fromkeys(controllers.split(","), path)
    for line in _read_lines(proc_self / "mountinfo"):
        mount, _, filesystem = line.partition(" - ")
        match mount.split(" "), filesystem.split(" "):
            case [_, _, _, root, point, *_], [kind, _, options, *_]:
                pass
            case _:
                continue
        if kind == "cgroup2":
            interface, controller = _V2, ""
        elif kind == "cgroup" and "memory" in options.split(","):
            interface, controller = _V1, "memory"
        else:
            continue
        if controller in own_paths:
            mount_point = Path(_unescape(point))
            folder = mount_point / _below(own_paths[controller], _unescape(root))
            yield interface, folder, mount_point


def _below(path: str, root: str) -> PurePosixPath:
    """Return the path of a cgroup relative to a mount of `root`.

    It is empty if `root` is not an ancestor of the cgroup. This happens in a container, where
    either path can be the host's; the mount is then the container's own cgroup.
    """
    try:
        below = PurePosixPath(path).relative_to(root)
    except ValueError:
        return PurePosixPath()
    return PurePosixPath() if ".." in below.parts else below


def _address_space_bounds(proc_self: Path) -> Iterator[FreeMemory]:
    """Yield the free address space under `ulimit -v`, which counts all mapped memory."""
    limit = _find_number(proc_self / "limits", "Max address space ")
    size_kib = _find_number(proc_self / "status", "VmSize:")
    if limit is not None and size_kib is not None:
        yield FreeMemory(max(0, limit - size_kib * 1024), "the address space (ulimit -v)")


def _read_number(path: Path) -> int | None:
    lines = _read_lines(path)
    return _first_number(lines[0]) if lines else None


def _find_number(path: Path, key: str) -> int | None:
    """Return the number after `key` in the first line that starts with it, or None."""
    for line in _read_lines(path):
        if line.startswith(key):
            return _first_number(line.removeprefix(key))
    return None


def _read_lines(path: Path) -> list[str]:
    """Return the lines of a file, or none if it cannot be read, as on other systems."""
    try:
        return path.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return []


def _first_number(text: str) -> int | None:
    """Return the number that a text starts with, or None for "max", "unlimited" and ""."""
    words = text.split()
    return int(words[0]) if words and words[0].isdecimal() else None


def _unescape(path: str) -> str:
    r"""Decode the octal escapes in a path of mountinfo, such as `\040` for a space."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), path)
