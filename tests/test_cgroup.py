"""Control groups of all kinds, imitated by plain files."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine import cgroup
from engine.config import Config, Secret, SinkConfig, Size
from engine.config.tree import MemoryConfig, SourceConfig
from engine.core.budget import MIB
from engine.errors import ConfigError

UNLIMITED = {"memory.limit_in_bytes": "9223372036854771712\n"}


def tree(root: Path, groups: str, files: dict[str, dict[str, str]], vmstat: str = "") -> Path:
    """The root of a machine with this /proc/self/cgroup, and these files per group below /sys/fs/cgroup."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    (root / "proc/vmstat").write_text(vmstat)
    for group, contents in files.items():
        directory = root / "sys/fs/cgroup" / group
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in contents.items():
            (directory / name).write_text(text)
    return root


V2 = {"cgroup.controllers": "cpu memory\n"}


@pytest.mark.parametrize(
    ("groups", "files", "limit"),
    [
        ("0::/app\n", {"": V2, "app": {"memory.max": "241172480\n"}}, 230 * MIB),
        ("0::/pod/app\n", {"": V2, "pod": {"memory.max": "1000\n"}, "pod/app": {"memory.max": "max\n"}}, 1000),
        ("0::/pod/app\n", {"": V2, "pod": {"memory.max": "max\n"}, "pod/app": {"memory.max": "max\n"}}, None),
        ("0::/\n", {"": V2 | {"memory.max": "5000\n"}}, 5000),  # in a namespace, this is the container's group
        ("0::/../../elsewhere\n", {"": V2 | {"memory.max": "5000\n"}}, 5000),
        ("0::/not/mounted/here\n", {"": V2 | {"memory.max": "5000\n"}}, 5000),
        ("4:memory:/app\n", {"memory/app": {"memory.limit_in_bytes": "7000\n"}, "memory": UNLIMITED}, 7000),
        ("4:cpu,memory:/a/b\n", {"memory/a/b": UNLIMITED, "memory/a": {"memory.limit_in_bytes": "9\n"}}, 9),
        ("4:memory:/docker/x\n", {"memory": {"memory.limit_in_bytes": "8000\n"}}, 8000),
        ("4:memory:/app\n", {"memory/app": UNLIMITED, "memory": UNLIMITED}, None),
        # Versions 1 and 2: the memory controller is in version 1.
        ("4:memory:/app\n0::/\n", {"memory/app": {"memory.limit_in_bytes": "6000\n"}, "unified": V2}, 6000),
        ("3:cpuset:/\n0::/x\n", {"cpuset": {}, "unified/x": {"memory.max": "4000\n"}}, 4000),
        ("", {}, None),
    ],
)
def test_the_lowest_limit_applies(
    tmp_path: Path, groups: str, files: dict[str, dict[str, str]], limit: int | None
) -> None:
    assert cgroup.memory_limit(tree(tmp_path, groups, files)) == limit


@pytest.mark.parametrize(
    ("groups", "files", "vmstat", "kills"),
    [
        ("0::/app\n", {"": V2, "app": {"memory.events": "low 0\noom 5\noom_kill 4\n"}}, "oom_kill 9\n", 4),
        ("4:memory:/app\n", {"memory/app": {"memory.oom_control": "under_oom 0\noom_kill 3\n"}}, "", 3),
        # Old kernels do not count per group.
        ("4:memory:/app\n", {"memory/app": {"memory.oom_control": "under_oom 0\n"}}, "x 1\noom_kill 9\n", 9),
        ("", {}, "oom_kill 2\n", 2),
        ("", {}, "", None),
    ],
)
def test_out_of_memory_kills_are_counted_where_reported(
    tmp_path: Path, groups: str, files: dict[str, dict[str, str]], vmstat: str, kills: int | None
) -> None:
    assert cgroup.oom_kills(tree(tmp_path, groups, files, vmstat)) == kills


def test_a_machine_without_control_groups(tmp_path: Path) -> None:
    assert cgroup.memory_limit(tmp_path) is None
    assert cgroup.oom_kills(tmp_path) is None


def config(limit: int) -> Config:
    source = SourceConfig(uri=Secret("mongodb://x"), database="shop")
    return Config(source=source, sink=SinkConfig(url="file:///"), memory=MemoryConfig(limit=Size(limit)))


def test_a_limit_above_the_containers_is_refused_with_the_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup, "memory_limit", lambda: 800 * MIB)
    with pytest.raises(ConfigError) as caught:
        cgroup.divide_within(config(1024 * MIB), 1)
    text = str(caught.value)
    assert "memory.limit is 1GiB, but this container (control group) is limited to 800MiB" in text
    assert "MiB  total" in text
    assert "Set memory.limit to at most 800MiB" in text
    assert cgroup.divide_within(config(800 * MIB), 1).limit == 800 * MIB


def test_a_container_that_is_too_small_for_any_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup, "memory_limit", lambda: 230 * MIB)
    with pytest.raises(ConfigError) as caught:
        cgroup.divide_within(config(1024 * MIB), 1)
    assert "Give the container at least 1GiB" in caught.value.remedy
    assert "230MiB cannot hold this configuration" in caught.value.remedy


@pytest.mark.parametrize(
    ("groups", "files", "cores"),
    [
        ("0::/app\n", {"": V2, "app": {"cpu.max": "150000 100000\n"}}, 1.5),
        ("0::/a/b\n", {"": V2, "a": {"cpu.max": "50000 100000\n"}, "a/b": {"cpu.max": "max 100000\n"}}, 0.5),
        ("0::/app\n", {"": V2, "app": {"cpu.max": "max 100000\n"}}, None),
        (
            "4:cpu,cpuacct:/app\n",
            {"cpu/app": {"cpu.cfs_quota_us": "200000\n", "cpu.cfs_period_us": "100000\n"}},
            2.0,
        ),
        ("4:cpu:/x\n", {"cpu": {"cpu.cfs_quota_us": "-1\n", "cpu.cfs_period_us": "100000\n"}}, None),
        ("", {}, None),
    ],
)
def test_the_lowest_limit_of_cores_applies(
    tmp_path: Path, groups: str, files: dict[str, dict[str, str]], cores: float | None
) -> None:
    assert cgroup.cpu_limit(tree(tmp_path, groups, files)) == cores
