"""The image, built and run: without root, on a read-only root, with 64 MB of /dev/shm, against real servers.

With EXPLORE=1, where buildah, podman, runc and debootstrap are installed and may make namespaces (as root). No
image is pulled: the base is made of Debian's packages. TESTED_IMAGE names an image that is there already.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import ssl
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

from bench.local import LocalStack
from bench.local.servers import wait_until
from tests.exploring import explored
from tests.integration.harness import EngineConfig, Lake
from tests.test_documents import ROOT

Client = MongoClient[dict[str, Any]]
TOOLS = ("buildah", "podman", "runc", "debootstrap")
# Not crun, which refuses machines that have control groups of both versions.
PODMAN = ("podman", "--runtime", "runc")
DEBIAN = os.environ.get("DEBIAN_MIRROR", "http://deb.debian.org/debian")
IMAGE, BASE = "localhost/headrace-test:latest", "localhost/headrace-base:latest"
USER, ENOUGH = 10001, 4096


def limits() -> Iterator[str]:
    """No more than this process has, which a runtime cannot raise everywhere."""
    for name, kind in (("nofile", resource.RLIMIT_NOFILE), ("nproc", resource.RLIMIT_NPROC)):
        most = resource.getrlimit(kind)[1]
        number = ENOUGH if most == resource.RLIM_INFINITY else min(most, ENOUGH)
        yield f"--ulimit={name}={number}:{number}"


LIMITS = tuple(limits())

pytestmark = [
    explored("builds an image, which takes minutes"),
    pytest.mark.timeout(1800),
]


def run(*command: str, code: int = 0, timeout_s: float = 900) -> str:
    """The output of a command, which must end with this code."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=timeout_s)
    assert done.returncode == code, f"{command}: {done.returncode}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
    return done.stdout.strip()


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The Dockerfile's image, on a base that has what python:3.13-slim has."""
    if given := os.environ.get("TESTED_IMAGE"):
        return given
    if missing := [each for each in TOOLS if shutil.which(each) is None]:
        pytest.skip(f"not installed: {', '.join(missing)}")
    root = tmp_path_factory.mktemp("base")
    packages = "--include=python3,python3-venv,ca-certificates"
    run("debootstrap", "--variant=minbase", packages, "bookworm", str(root / "root"), DEBIAN)
    (root / "root/usr/bin/python").symlink_to("python3")
    # It trusts whom this machine trusts, as pip must reach the package index from it.
    certificates = ssl.get_default_verify_paths().cafile or "/etc/ssl/certs/ca-certificates.crt"
    shutil.copy(certificates, root / "root/etc/ssl/certs/ca-certificates.crt")
    run("tar", "-C", str(root / "root"), "-cf", str(root / "base.tar"), ".")
    shutil.rmtree(root / "root")
    variable = "ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt"
    run(*PODMAN, "import", "--change", variable, str(root / "base.tar"), BASE)
    build = (
        "buildah",
        "build",
        "--runtime",
        "runc",
        "--format",
        "docker",
        "--network",
        "host",
        "--build-arg",
        f"BASE={BASE}",
    )
    run(*build, "-f", "configs/deploy/Dockerfile", "-t", IMAGE, ".")
    return IMAGE


@contextmanager
def container(image: str, name: str, *options: str, command: tuple[str, ...] = ()) -> Iterator[None]:
    """A container as compose runs it: hardened, and with Docker's 64 MB of shared memory."""
    hardened = [
        *LIMITS,
        "--read-only",
        "--cap-drop",
        "all",
        "--security-opt",
        "no-new-privileges",
        "--shm-size",
        "64m",
    ]
    hardened += ["--tmpfs", "/tmp:size=64m,mode=1777", "--memory", "1152m", "--user", f"{USER}:{USER}"]
    try:
        run(*PODMAN, "run", "--detach", "--name", name, "--network", "host", *hardened, *options, image, *command)
        yield
    finally:
        run(*PODMAN, "rm", "--force", "--ignore", "--time", "0", name)


@contextmanager
def inserting(uri: str, database: str) -> Iterator[None]:
    """A client inserts meanwhile."""
    stopped = threading.Event()

    def insert() -> None:
        with MongoClient[dict[str, Any]](uri) as client:
            while not stopped.wait(0.05):
                client[database].orders.insert_many([{"text": "x" * 500} for _ in range(500)])

    thread = threading.Thread(target=insert)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def test_the_image_runs_hardened_and_stops_in_order(
    image: str, stack: LocalStack, mongo: Client, tmp_path: Path, unique: str
) -> None:
    """A live workload, SIGTERM in the middle of it, and a second container that goes on: exact."""
    assert stack.mongo is not None
    config = EngineConfig(stack, tmp_path, unique)
    config.set("memory", limit="1GiB")
    config.set("state", url="lake")
    config.set("source", uri="${MONGODB_URI}")
    secret = tmp_path / "mongodb-uri"
    secret.write_text(stack.mongo.uri + "\n")
    for each in (secret, config.path):
        each.chmod(0o644)
    listen = f"HEADRACE_TELEMETRY__LISTEN=127.0.0.1:{config.port}"
    options = ["--volume", f"{config.path}:/etc/headrace/headrace.toml:ro", "--env", listen]
    options += ["--volume", f"{secret}:/run/secrets/mongodb-uri:ro"]
    options += ["--env", "MONGODB_URI_FILE=/run/secrets/mongodb-uri"]
    orders, name = mongo[config.name].orders, f"headrace-test-{os.getpid()}"
    orders.insert_many([{"text": "x" * 500} for _ in range(20_000)])

    with container(image, name, *options):
        with inserting(stack.mongo.uri, config.name):
            wait_until(lambda: is_healthy(name), "the health check of the image", 60)
            wait_until(lambda: committed(config) > 20_000, "the live workload", 120)
            inside = {
                "id": run(*PODMAN, "exec", name, "id", "-u"),
                "root": run(*PODMAN, "exec", name, "sh", "-c", "touch /x 2>&1 || true"),
                "shm": run(*PODMAN, "exec", name, "df", "-k", "--output=size", "/dev/shm").split()[-1],
                "used": run(*PODMAN, "exec", name, "df", "-k", "--output=used", "/dev/shm").split()[-1],
            }
            run(*PODMAN, "stop", "--time", "40", name)  # as compose and the chart: shutdown.timeout and 15 s
        state = json.loads(run(*PODMAN, "inspect", "--format", "{{json .State}}", name))
        assert state["ExitCode"] == 0, run(*PODMAN, "logs", name)
    print(inside, orders.count_documents({}), "documents")
    assert inside["id"] == str(USER)
    assert "Read-only file system" in inside["root"]
    assert (inside["shm"], inside["used"]) == ("65536", "0")
    Lake(stack, config.name).check_no_token_twice()

    caught_up = ("run", "--config", "/etc/headrace/headrace.toml", "--until-caught-up")
    with container(image, name, *options, command=caught_up):
        assert run(*PODMAN, "wait", name) == "0"
    assert len(Lake(stack, config.name).check_no_token_twice()) == orders.count_documents({})


def is_healthy(name: str) -> bool:
    """Whether the health check that is in the image passes."""
    done = subprocess.run([*PODMAN, "healthcheck", "run", name], capture_output=True, check=False)
    return done.returncode == 0


def committed(config: EngineConfig) -> int:
    """How many events of the stream are committed, by the endpoints."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{config.port}/status", timeout=5) as answer:
            return sum(each["events_committed"] for each in json.load(answer)["streams"])
    except OSError:
        return 0


def test_commands_without_a_configuration(image: str) -> None:
    """What a user of the image alone can ask it."""
    once = (*PODMAN, "run", "--rm", *LIMITS, "--read-only", "--network", "none", image)
    assert run(*once, "--version").startswith("headrace ")
    assert "telemetry.listen" in run(*once, "docs", "configuration")
