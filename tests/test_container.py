"""The image, built and run by a real engine, on a base made here in place of a registry's.

The base is a small Debian with its own Python, under the name of the official image: it shows that
the Dockerfile builds and what it builds, not that Python's version. Made once, it stays in pytest's
cache.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from tests.client import check, kinds
from tests.conftest import ROOT, Process
from tests.test_repository import modules

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

BASE = "docker.io/library/python:3.13-slim"
BASE_CONTAINERFILE = """\
FROM debian
COPY ca-certificates.crt /etc/ssl/certs/
COPY pip.conf /etc/
RUN rm /usr/lib/python3*/EXTERNALLY-MANAGED && ln -s python3 /usr/bin/python
"""


def unavailable(reason: str) -> NoReturn:
    """Skip the test; fail it if CI is set."""
    if "CI" in os.environ:
        pytest.fail(reason)
    pytest.skip(reason)


def run(*command: str | Path, stdin: str = "") -> str:
    """Run a command and return what it printed."""
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout.strip()


# --------------------------------------------------------------------------------- the engine


class Podman:
    """The engine, with a store of its own: ``podman("images")``."""

    def __init__(self, store: Path) -> None:
        storage = [f"--root={store / 'root'}", f"--runroot={store / 'run'}"]
        # Debian's crun refuses a machine that has both versions of cgroups.
        self.command = ["podman", *storage, "--runtime=runc", "--cgroup-manager=cgroupfs"]

    def __call__(self, *arguments: str | Path, stdin: str = "") -> str:
        return run(*self.command, *arguments, stdin=stdin)

    def build(self, tag: str, context: Path, containerfile: str = "") -> str:
        """Build an image from a folder, and return what the engine printed."""
        return self(
            # Images in the OCI's format, podman's own choice, have no health check.
            *("build", "--format=docker", "--pull=never", f"--tag={tag}"),
            *("--network=host", "--isolation=chroot"),
            *(("--file=-", context) if containerfile else (context,)),
            stdin=containerfile,
        )

    def files(self, image: str, folder: str = "") -> set[str]:
        """Return the paths of all files that an image has below a folder."""
        top = Path(self("image", "mount", image), folder)
        try:
            return {str(path.relative_to(top)) for path in top.rglob("*") if path.is_file()}
        finally:
            self("image", "unmount", image)


@pytest.fixture(scope="module")
def debian(request: pytest.FixtureRequest) -> Path:
    """The archive of a Debian with pip, from the mirror that this machine's apt uses."""
    for program in ("podman", "runc", "debootstrap", "apt-get"):
        if not shutil.which(program):
            unavailable(f"{program} is not installed")
    if os.geteuid() != 0:
        unavailable("only root can make the base image")
    targets = run(
        *("apt-get", "indextargets", "--format=$(CODENAME) $(REPO_URI)"),
        *("Created-By: Packages", "Origin: Debian", "Component: main"),
    )
    if not targets:
        unavailable("apt knows no mirror of Debian: apt-get update")
    codename, mirror = targets.splitlines()[0].split()
    cache = request.config.cache
    assert cache
    archive = cache.mkdir("container") / f"{codename}.tar"
    if not archive.exists():
        folder, part = archive.with_suffix(".folder"), archive.with_suffix(".part")
        shutil.rmtree(folder, ignore_errors=True)
        packages = "--include=python3-minimal,python3-pip"
        run("debootstrap", "--variant=minbase", packages, codename, folder, mirror)
        run("tar", "-C", folder, "--exclude=./var/cache/apt/archives/*.deb", "-cf", part, ".")
        shutil.rmtree(folder)
        part.rename(archive)
    return archive


def pip_conf() -> str:
    """Return a pip.conf with this machine's package indexes, if a container can reach them."""
    listed = run(sys.executable, "-m", "pip", "config", "list").splitlines()
    # The environment's options are called ":env:", come last like this, and win.
    options = dict(
        re.findall(r"\.([a-z-]+)='(.*)'$", "\n".join(sorted(listed)[::-1]), re.MULTILINE)
    )
    names = ("index-url", "extra-index-url", "proxy", "trusted-host")
    found = {name: options[name] for name in names if "file:" not in options.get(name, "file:")}
    return "[global]\n" + "".join(f"{name} = {value}\n" for name, value in found.items())


@pytest.fixture(scope="module")
def podman(debian: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Podman]:
    podman = Podman(tmp_path_factory.mktemp("store"))
    podman("import", "--quiet", debian, "debian")
    context = tmp_path_factory.mktemp("base")
    shutil.copy("/etc/ssl/certs/ca-certificates.crt", context)
    (context / "pip.conf").write_text(pip_conf())
    podman.build(BASE, context, BASE_CONTAINERFILE)
    yield podman
    podman("rmi", "--all", "--force")


@pytest.fixture(scope="module")
def image(podman: Podman) -> str:
    podman.build("agent", ROOT)
    return "agent"


# What podman sets by itself takes CAP_SYS_RESOURCE, which not every machine gives to root.
LIMITS = ("--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024")


@pytest.fixture
async def container(podman: Podman, image: str, tmp_path: Path) -> AsyncIterator[Process]:
    """A client of the server in the container ``agent``, on the machine's own network."""
    log = tmp_path / "log"
    with socket.create_server(("", 0)) as free:
        port = free.getsockname()[1]
    with log.open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            *(*podman.command, "run", "--rm", "--name=agent", "--read-only"),
            # With Docker /tmp is read-only, too.
            *("--read-only-tmpfs=false", "--network=host", f"--env=PORT={port}"),
            # Docker can be configured to set a proxy; nobody listens at this one.
            *("--env=http_proxy=http://127.0.0.1:9", *LIMITS, image),
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
        )
    try:
        assert process.stdout
        line = (await process.stdout.readline()).decode()
        assert line.startswith("Serving ") and f"http://0.0.0.0:{port};" in line, log.read_text()
        # A server that listens on 127.0.0.1 alone would not be found at this address.
        async with Process(f"http://127.0.0.2:{port}", process, log) as client:
            yield client
    finally:
        podman("rm", "--force", "--ignore", "agent")
        await process.wait()


def is_healthy(podman: Podman) -> bool:
    """Run the image's own health check in the container."""
    command = [*podman.command, "healthcheck", "run", "agent"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


# ------------------------------------------------------------------------------------ the tests


def test_the_image_gets_what_it_runs_and_nothing_else(podman: Podman, image: str) -> None:
    pages = [path for path in ROOT.glob("static/**/*") if path.is_file()]
    wanted = {str(path.relative_to(ROOT)) for path in [*modules(), *pages]}
    wanted |= {"README.md", "requirements.txt", "deploy/requirements.txt"}
    assert podman.files(image, "app") == wanted
    packages = podman.files(image, "packages")
    for path in ("aiohttp/web.py", "langchain_openai/__init__.py"):
        assert path in packages
    assert not [path for path in packages if re.search(r"(^|/)(pip|tests|zstandard)/", path)]
    # The engine gets nothing else either, whatever a Dockerfile might then copy of it.
    podman.build("context", ROOT, "FROM scratch\nCOPY . /\n")
    assert podman.files("context") == wanted


def test_the_image_adds_at_most_95_mb_to_its_base(podman: Podman, image: str) -> None:
    base, whole = (int(podman("inspect", "--format={{.Size}}", name)) for name in (BASE, image))
    assert (whole - base) / 1e6 <= 95


def test_a_change_of_the_code_installs_nothing_again(
    podman: Podman, image: str, tmp_path: Path
) -> None:
    for name in ("Dockerfile", ".dockerignore", "requirements.txt", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("static", "deploy"):
        shutil.copytree(ROOT / name, tmp_path / name)
    (tmp_path / "app.py").write_text("# changed\n")
    printed = podman.build("changed", tmp_path)
    steps = re.split(r"^\[\d/\d\] STEP ", printed, flags=re.MULTILINE)
    (install,) = (step for step in steps if "pip install" in step)
    assert "Using cache" in install
    assert "Using cache" not in next(step for step in steps if "COPY . ." in step)


async def test_an_answer_streams_from_a_read_only_root_file_system(
    podman: Podman, container: Process
) -> None:
    events = await container.run("12 * (3 + 4) と東京の時刻は?")
    check(events)
    assert kinds(events)[-3:] == ["text_delta", "final_answer", "done"]
    assert "84" in events[-2]["content"]
    # It searches the README that came with it.
    hits = (await container.run("search the docs for heartbeat"))[3]["result"]["hits"]
    assert hits
    assert is_healthy(podman)
    for folder in ("/", "/app", "/tmp"):
        write = f"touch {folder}/x 2>&1 || true"
        printed = podman("exec", "--user=0", "agent", "sh", "-c", write)
        assert printed.endswith("Read-only file system")


async def test_the_server_is_not_root_and_cannot_change_its_own_code(
    podman: Podman, container: Process
) -> None:
    process_id = podman("inspect", "--format={{.State.Pid}}", "agent")
    status = Path(f"/proc/{process_id}/status").read_text()
    for field in ("Uid", "Gid"):
        assert f"{field}:\t10001\t10001\t10001\t10001\n" in status
    find = ("find", "/app", "-writable")
    assert podman("run", "--rm", "--network=host", *LIMITS, "agent", *find) == ""


async def test_sigterm_ends_streams_in_order_and_the_container_in_time(
    podman: Podman, container: Process
) -> None:
    stream = await container.ask("wait 30 seconds")
    await stream.until("tool_progress")
    began = time.monotonic()
    podman("kill", "--signal=TERM", "agent")
    async with asyncio.timeout(10):
        while (await container.call("GET", "/healthz"))[0] == 200:
            pass
    assert not is_healthy(podman)
    assert (await stream.until("done"))["reason"] == "shutdown"
    assert await asyncio.wait_for(container.process.wait(), 30) == 0
    # Docker kills after ten seconds.
    assert time.monotonic() - began < 10
