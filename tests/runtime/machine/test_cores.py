"""The cores that a process may use, within the share of its container."""

from __future__ import annotations

from pathlib import Path

import pytest

from vllm_cls.runtime.machine import cores
from vllm_cls.runtime.machine.cores import cpu_quota, physical_cores, usable_cores


def groups(folder: Path, own: str, files: dict[str, str]) -> float | None:
    """The quota that a tree of control groups tells."""
    (folder / "own").write_text(own)
    for name, text in files.items():
        (folder / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "groups" / name).write_text(text)
    return cpu_quota(folder / "groups", folder / "own")


@pytest.mark.parametrize(
    ("own", "files", "quota"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/a/b\n", {"cpu.max": "max 100000\n", "a/cpu.max": "200000 100000\n", "a/b/cpu.max": "400000 100000\n"}, 2.0),
        ("0::/../other\n", {}, None),
        (
            "5:memory:/x\n4:cpu,cpuacct:/x\n",
            {"cpu,cpuacct/x/cpu.cfs_quota_us": "300000\n", "cpu,cpuacct/x/cpu.cfs_period_us": "100000\n"},
            3.0,
        ),
        ("4:cpuacct,cpu:/\n", {"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0.5),
        ("4:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ("0::/\n", {"cpu.max": "nonsense\n"}, None),
    ],
)  # fmt: skip
def test_quotas(tmp_path: Path, own: str, files: dict[str, str], quota: float | None) -> None:
    assert groups(tmp_path, own, files) == quota


def test_where_there_are_no_groups(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path / "groups", tmp_path / "own") is None


@pytest.mark.parametrize(("quota", "used"), [(None, 8), (2.0, 2), (1.5, 2), (0.5, 1), (64.0, 8)])
def test_cores_within_the_share(monkeypatch: pytest.MonkeyPatch, quota: float | None, used: int) -> None:
    monkeypatch.setattr(cores, "cpu_quota", lambda: quota)
    monkeypatch.setattr(cores, "physical_cores", lambda: 8)
    assert usable_cores() == used


def test_this_machine() -> None:
    assert 1 <= usable_cores() <= physical_cores()
