"""Fixtures: a real OpenSSH server on 127.0.0.1, a proxy before it, serial lines, and profiles of these and of this machine."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgecompress.board import serial_login
from edgecompress.device_profile import DeviceProfile
from tests.board import loopback
from tests.board.loopback import Proxy, Sshd
from tests.board.serial_line import Line


@pytest.fixture(scope="session")
def make_sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Sshd]]:
    if reason := loopback.why_no_sshd():
        pytest.skip(reason)
    started: list[Sshd] = []

    def make(extra: str | None = None) -> Sshd:
        server = loopback.make_sshd(tmp_path_factory.mktemp("sshd"), extra)
        started.append(server)
        return server.start()

    yield make
    for server in started:
        server.stop()


@pytest.fixture(scope="session")
def shared_sshd(make_sshd: Callable[..., Sshd]) -> Sshd:
    return make_sshd()


@pytest.fixture
def sshd(shared_sshd: Sshd) -> Sshd:
    """The server that tests share; one that ended it has it started again."""
    if shared_sshd.process is None or shared_sshd.process.poll() is not None:
        shared_sshd.start()
    return shared_sshd


@pytest.fixture
def proxy(sshd: Sshd) -> Iterator[Proxy]:
    """A proxy before the shared server."""
    running = Proxy(sshd.port).start()
    yield running
    running.stop()


@pytest.fixture
def ssh_profile(sshd: Sshd, tmp_path: Path) -> Callable[..., DeviceProfile]:
    """A profile of the shared server with its key pinned; keyword arguments replace fields (port: of the proxy)."""

    def make(server: Sshd = sshd, *, pinned: bool = True, **fields: object) -> DeviceProfile:
        values: dict[str, object] = {
            "name": "board",
            "transport": "ssh",
            "host": "127.0.0.1",
            "port": server.port,
            "identity_file": server.key,
            "known_hosts": tmp_path / "known_hosts",
            "ssh_config": tmp_path / "ssh_config",
            "python": sys.executable,
            "workdir": str(tmp_path / "workdir"),
            "connect_timeout_s": 10,
            "reconnect_s": 20,
        }
        profile = DeviceProfile.model_validate(values | fields)
        (tmp_path / "ssh_config").touch()
        if pinned and profile.known_hosts is not None:
            with profile.known_hosts.open("a") as file:
                file.write(f"[127.0.0.1]:{profile.port} {server.host_key}\n")
        return profile

    return make


@pytest.fixture
def console(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Line]]:
    """Makes serial lines; keyword arguments as of `Line`, and shell: what is started at its far end. Only the test of boot loaders
    has one that needs the long listening."""
    monkeypatch.setattr(serial_login, "LISTEN_S", 0.3)
    made: list[Line] = []

    def make(*, shell: str | None = None, **fields: Any) -> Line:
        folder = tmp_path / f"line-{len(made)}"
        folder.mkdir()
        made.append(Line(folder, **fields))
        if shell is not None:
            made[-1].start_shell(shell)
        return made[-1]

    yield make
    for line in made:
        line.stop()


@pytest.fixture
def serial_profile(tmp_path: Path) -> Callable[..., DeviceProfile]:
    """A profile of the board at the end of a line; keyword arguments replace fields."""

    def make(line: Line, **fields: object) -> DeviceProfile:
        values: dict[str, object] = {
            "name": "board",
            "transport": "serial",
            "serial_port": line.port,
            "python": sys.executable,
            "workdir": str(tmp_path / "workdir"),
            "connect_timeout_s": 6,
            "reconnect_s": 20,
        }
        return DeviceProfile.model_validate(values | fields)

    return make


@pytest.fixture
def local_profile(tmp_path: Path) -> DeviceProfile:
    return DeviceProfile(name="here", workdir=str(tmp_path / "local-workdir"))
