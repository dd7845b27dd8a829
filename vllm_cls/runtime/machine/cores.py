"""How many of the machine's cores this process may use: those it may run on, within its container's share."""

from __future__ import annotations

import math
import os
from pathlib import Path

_GROUPS, _OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def usable_cores() -> int:
    """Physical cores, at most as many as the container's share of processor time keeps busy."""
    quota = cpu_quota()
    cores = physical_cores()
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def physical_cores() -> int:
    """Cores that this process may run on, counting those that share one as one."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    siblings = set()
    for number in allowed:
        file = Path(f"/sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list")
        siblings.add(file.read_text().strip() if file.is_file() else str(number))
    return max(1, len(siblings))


def cpu_quota(groups: Path = _GROUPS, own: Path = _OWN) -> float | None:
    """Processors' worth of time that Linux grants this process's control groups (`docker run --cpus`, Kubernetes' limits).

    The smallest of its group's and of those above it; None where there is no limit, or no such groups.
    """
    found = [quota for folder in _folders(groups, own) if (quota := _quota_of(folder)) is not None]
    return min(found, default=None)


def _folders(groups: Path, own: Path) -> list[Path]:
    """The process's groups and all above, of version 2 (`0::/a/b`) and 1 (`4:cpu,cpuacct:/a/b`)."""
    folders: list[Path] = []
    for line in own.read_text().splitlines() if own.is_file() else []:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        # What is told as `cpuacct,cpu` is mounted as `cpu,cpuacct`, with a link that is named `cpu`.
        roots = [groups / controllers, groups / "cpu"] if controllers else [groups]
        within = Path(path.lstrip("/"))
        folders += [root / each for root in roots for each in (within, *within.parents)]
    return folders


def _quota_of(folder: Path) -> float | None:
    try:
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((folder / name).read_text().strip() for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us"))
        return float(quota) / float(period) if quota not in ("max", "-1") else None
    except (OSError, ValueError):  # no limit is told here
        return None
