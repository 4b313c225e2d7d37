"""How much more memory this process may take before it is killed or refused memory.

psutil knows the machine and not what a container may use of it. So the cgroups of this process are
read, too: its own and all above it, as the tightest limit holds and may lie on any of them. See
https://docs.kernel.org/admin-guide/cgroup-v2.html and cgroup-v1/memory.html beside it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import psutil

_PROC_SELF = Path("/proc/self")


@dataclass(frozen=True, slots=True)
class FreeMemory:
    """Memory that can still be taken, and what limits it.

    Attributes:
        limited_by: for people, such as "memory.max of /sys/fs/cgroup/app.slice".
    """

    num_bytes: int
    limited_by: str


class SpareMemory:
    """Tells whether there is memory to spare, by a look once in a while.

    Args:
        measure: returns what is free.
        reserve_bytes: what shall stay free.
        num_calls_per_look: how many calls one look answers.
    """

    def __init__(
        self,
        measure: Callable[[], FreeMemory],
        *,
        reserve_bytes: int,
        num_calls_per_look: int,
    ) -> None:
        assert num_calls_per_look > 0
        self._measure = measure
        self._reserve_bytes = reserve_bytes
        self._num_calls_per_look = num_calls_per_look
        self._num_calls_left = 0
        self._is_there = True

    def __call__(self) -> bool:
        if self._num_calls_left == 0:
            # Where it cannot be seen, as without a file descriptor left, it is as it was.
            with suppress(OSError):
                self._is_there = self._measure().num_bytes > self._reserve_bytes
            self._num_calls_left = self._num_calls_per_look
        self._num_calls_left -= 1
        return self._is_there


@dataclass(frozen=True, slots=True)
class _Interface:
    """The files of one version of cgroups.

    Attributes:
        limits: most that may be used. Above `memory.high` nobody is killed, but the kernel slows
            the processes down until they are of no use.
        inactive_file: the key in `memory.stat` of the page cache that is given up first, without
            harm: `docker stats` and the kubelet do not count it as used either.
    """

    limits: tuple[str, ...]
    usage: str
    inactive_file: str


_V1 = _Interface(("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file")
_V2 = _Interface(("memory.max", "memory.high"), "memory.current", "inactive_file")


def free_memory(
    proc_self: Path = _PROC_SELF, *, machine_bytes: Callable[[], int] | None = None
) -> FreeMemory:
    """Return the smallest of what the machine, each cgroup and the address space have left.

    Args:
        proc_self: where the kernel describes this process; tests have their own.
        machine_bytes: returns what the machine has left; by default, psutil does.
    """
    machine = psutil.virtual_memory().available if machine_bytes is None else machine_bytes()
    bounds = [
        FreeMemory(machine, "the machine's memory"),
        *_cgroup_bounds(proc_self),
        *_address_space_bounds(proc_self),
    ]
    return min(bounds, key=lambda bound: bound.num_bytes)


def _cgroup_bounds(proc_self: Path) -> Iterator[FreeMemory]:
    """Yield what each limit on the cgroups of this process, its own and those above, leaves."""
    for interface, folder, mount_point in _memory_cgroups(proc_self):
        # An ancestor that is not mounted here, as in a container, cannot be read.
        for level in (folder, *folder.parents):
            yield from _level_bounds(level, interface)
            if level == mount_point:
                break


def _level_bounds(folder: Path, interface: _Interface) -> Iterator[FreeMemory]:
    # No limit is "max" in version 2, where the root has no file at all, and a huge number in
    # version 1: that one needs no care, as the machine has less.
    limits = {name: _read_number(folder / name) for name in interface.limits}
    if all(limit is None for limit in limits.values()):
        return
    cached = _find_number(folder / "memory.stat", f"{interface.inactive_file} ") or 0
    used = (_read_number(folder / interface.usage) or 0) - cached
    for name, limit in limits.items():
        if limit is not None:
            yield FreeMemory(max(0, limit - max(0, used)), f"{name} of {folder}")


def _memory_cgroups(proc_self: Path) -> Iterator[tuple[_Interface, Path, Path]]:
    """Yield interface, folder and mount point of the cgroups that may limit this process's memory.

    Both versions may be mounted at once; the one that lacks the memory controller has no limits.
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
    """Return where a cgroup is below a mount of `root`.

    That is the mount itself, where `root` is not above the cgroup: in a container, either may be
    told from outside of it, and what is mounted is its own cgroup.
    """
    try:
        below = PurePosixPath(path).relative_to(root)
    except ValueError:
        return PurePosixPath()
    return PurePosixPath() if ".." in below.parts else below


def _address_space_bounds(proc_self: Path) -> Iterator[FreeMemory]:
    """Yield what `ulimit -v` leaves: it counts memory that is asked for, used or not."""
    limit = _find_number(proc_self / "limits", "Max address space ")
    size_kib = _find_number(proc_self / "status", "VmSize:")
    if limit is not None and size_kib is not None:
        yield FreeMemory(max(0, limit - size_kib * 1024), "the address space (ulimit -v)")


def _read_number(path: Path) -> int | None:
    lines = _read_lines(path)
    return _first_number(lines[0]) if lines else None


def _find_number(path: Path, key: str) -> int | None:
    """Return the number after the key that a line begins with; None where there is none."""
    for line in _read_lines(path):
        if line.startswith(key):
            return _first_number(line.removeprefix(key))
    return None


def _read_lines(path: Path) -> list[str]:
    """Return the lines of a file; none where it cannot be read, as on other systems."""
    try:
        return path.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return []


def _first_number(text: str) -> int | None:
    """Return the number that a text begins with; None for "max", "unlimited" and nothing."""
    words = text.split()
    return int(words[0]) if words and words[0].isdecimal() else None


def _unescape(path: str) -> str:
    r"""Return a path of mountinfo as it is: a space is written as `\040` there."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), path)
