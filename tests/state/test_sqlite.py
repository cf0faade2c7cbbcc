"""SQLite files that are removed, replaced, truncated, or on a disk that cannot be written."""

from __future__ import annotations

import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from engine.config import Secret
from engine.config.tree import StateConfig
from engine.errors import ConfigError, HeadraceError, StateLostError, TransientError
from engine.state.opening import open_store
from engine.state.seam import StateStore
from engine.state.sqlite import SqliteStore
from tests.disks import mounted
from tests.state.stores import TTL_S, acquired, every_act


def sqlite_store(path: Path) -> StateStore:
    return open_store(StateConfig(url=Secret(f"sqlite:///{path}")))


@pytest.mark.parametrize("name", ["state.db", "state.db-wal"])
@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_a_sqlite_file_that_was_swapped_while_open_is_lost_state(tmp_path: Path, how: str, name: str) -> None:
    """Another process would open a different file, without our writes."""
    store = sqlite_store(tmp_path / "state.db")
    lease = acquired(store, "a").lease
    store.write(lease, {"x": "1"})
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).unlink()
    if how == "replaced":
        (tmp_path / "other").write_bytes(content)
        (tmp_path / "other").rename(tmp_path / name)
    acts = [*every_act(store, lease), store.read_all, lambda: store.read_shared("d")]
    for act in (*acts, lambda: store.write_shared("d", 1, "text")):
        with pytest.raises(StateLostError, match=f"{how}.*while it was in use"):
            act()
    store.close()
    if name == "state.db":
        with pytest.raises(StateLostError):
            store.read_all()
        assert how == "replaced" or not (tmp_path / name).exists()
    store.close()


def test_closing_and_reopening_a_sqlite_file_is_not_lost_state(tmp_path: Path) -> None:
    store = sqlite_store(tmp_path / "state.db")
    lease = acquired(store, "a").lease
    store.close()
    assert not (tmp_path / "state.db-wal").exists()
    store.write(lease, {"x": "1"})
    assert store.read_all()["s"] == ({"x": "1"}, "a")
    store.close()


@pytest.mark.parametrize("read", [True, False])
def test_a_disk_that_is_read_only_for_a_while(tmp_path: Path, read: bool) -> None:
    directory = tmp_path / "disk"
    directory.mkdir()
    store = sqlite_store(directory / "state.db")
    lease = acquired(store, "a").lease
    store.close()
    mounted = subprocess.run(
        ["mount", "--bind", "-o", "ro", str(directory), str(directory)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted: {mounted.stderr.decode().strip()}")
    try:
        for act in (store.read_all,) if read else every_act(store, lease):
            with pytest.raises(TransientError, match="can write the file and its directory"):
                act()
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)
    store.write(lease, {"x": "1"})
    assert store.read_all()["s"] == ({"x": "1"}, "a")
    store.close()


@pytest.mark.parametrize("size", [0, 4096, 5000])
def test_a_truncated_sqlite_file_is_lost_state(tmp_path: Path, size: int) -> None:
    store = sqlite_store(tmp_path / "state.db")
    lease = acquired(store, "a").lease
    store.write(lease, {"x": "1" * 100_000})
    store.close()
    store.renew(lease, TTL_S)
    with (tmp_path / "state.db").open("r+b") as file:
        file.truncate(size)

    def use() -> None:
        store.write(lease, {"x": "2"})
        store.read_all()

    with pytest.raises(StateLostError):
        use()
    store.close()


def test_a_file_that_is_not_a_sqlite_database(tmp_path: Path) -> None:
    (tmp_path / "state.db").write_text("this is no database, but long enough to look at" * 10)
    store = open_store(StateConfig(url=Secret(f"sqlite:///{tmp_path}/state.db")))
    with pytest.raises(ConfigError, match="Is it a SQLite file"):
        store.read_all()


def test_checking_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    """A read-only mount, because permissions do not restrict root."""
    with mounted(tmp_path / "disk", "4m") as disk:
        config = StateConfig(Secret(f"sqlite:///{disk}/s.db"))
        for exists in (False, True):
            if exists:
                with closing(SqliteStore(config)) as store:
                    store.read_all()
            subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
            with closing(SqliteStore(config, read_only=True)) as store, pytest.raises(HeadraceError):
                store.check()
            subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
