"""trust and setup against a real server, and the profiles that are shipped."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from edgecompress.board.agent import open_agent
from edgecompress.board.devices import setup, trust
from edgecompress.board.provision import BoardPython, find_python, wheels
from edgecompress.board.ssh import SshTransport
from edgecompress.device_profile import DeviceProfile
from edgecompress.errors import StepFailed, UserError
from edgecompress.studyfile import read_device, shipped_profiles

if TYPE_CHECKING:
    from tests.board.loopback import Sshd

MakeProfile = Callable[..., DeviceProfile]


def never(question: str) -> bool:
    raise AssertionError(f"asked: {question}")


@pytest.mark.sshd
def test_trust_shows_the_fingerprint_pins_the_key_and_asks_once(ssh_profile: MakeProfile, sshd: Sshd) -> None:
    profile, asked = ssh_profile(pinned=False), list[str]()

    def yes(question: str) -> bool:
        asked.append(question)
        return True

    says = trust(profile, yes)
    shown = subprocess.run(
        ["ssh-keygen", "-lf", str(sshd.folder / "host_key.pub")], capture_output=True, text=True, check=True
    ).stdout.split()[1]
    assert shown.startswith("SHA256:") and shown in asked[0] and shown in says[0]
    SshTransport(profile).close()
    assert "is pinned already" in trust(profile, never)[0]
    # OpenSSH's own client agrees
    assert profile.known_hosts is not None
    options = ["-o", f"UserKnownHostsFile={profile.known_hosts}", "-o", "StrictHostKeyChecking=yes", "-F", "none"]
    command = ["ssh", *options, "-i", str(sshd.key), "-p", str(sshd.port), "127.0.0.1", "echo well"]
    assert subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=30).stdout == b"well\n"


@pytest.mark.sshd
def test_trust_that_is_declined_or_meets_another_key(ssh_profile: MakeProfile, sshd: Sshd) -> None:
    profile = ssh_profile(pinned=False)
    assert profile.known_hosts is not None
    with pytest.raises(UserError, match="was not pinned"):
        trust(profile, lambda question: False)
    assert not profile.known_hosts.exists()
    other = (sshd.folder / "client_key.pub").read_text().split()
    profile.known_hosts.write_text(f"[127.0.0.1]:{sshd.port} {other[0]} {other[1]}\n")
    with pytest.raises(UserError, match="HAS CHANGED"):
        trust(profile, never)
    with pytest.raises(StepFailed, match="cannot be reached"):
        trust(profile.model_copy(update={"port": 1}), never)


@pytest.mark.sshd
def test_trust_of_a_jump_host_and_what_is_behind_it(ssh_profile: MakeProfile, sshd: Sshd) -> None:
    profile = ssh_profile(host="behind", port=None, pinned=False)
    assert profile.ssh_config is not None and profile.known_hosts is not None
    place = f"  HostName 127.0.0.1\n  Port {sshd.port}\n  IdentityFile {sshd.key}\n"
    profile.ssh_config.write_text(f"Host behind\n  HostKeyAlias behind\n  ProxyJump gate\n{place}Host gate\n{place}")
    assert len(trust(profile, lambda question: True)) == 2
    assert [line.split()[0] for line in profile.known_hosts.read_text().splitlines()] == [
        f"[127.0.0.1]:{sshd.port}",
        "behind",
    ]
    SshTransport(profile).close()


def test_trust_and_setup_are_not_for_this_machine(local_profile: DeviceProfile) -> None:
    with pytest.raises(UserError, match="no key to trust"):
        trust(local_profile, never)
    with pytest.raises(UserError, match="Python that runs edgecompress"):
        setup(local_profile)


def test_wheels() -> None:
    assert "onnxruntime==1.19.2" in wheels(BoardPython("python3", (3, 8), "aarch64"), where="d")
    assert "ai-edge-litert==2.3.0" in wheels(BoardPython("python3", (3, 11), "aarch64"), where="d")
    assert wheels(BoardPython("python3", (3, 11), "armv7l"), where="d") == ("tflite-runtime==2.14.0",)
    for python, machine, message in [
        ((3, 6), "aarch64", r"Python 3\.6 on aarch64"),
        ((3, 9), "armv7l", r"Python 3\.9 on armv7l"),
        ((3, 11), "riscv64", "wheels for riscv64"),
    ]:
        with pytest.raises(UserError, match=message) as caught:
            wheels(BoardPython("python3", python, machine), where="d")
        assert caught.value.fix


@pytest.mark.parametrize(
    ("pythons", "found"),
    [
        # JetPack 4: python3 is too old, a newer one stands beside it
        ({"python3": '[[3, 6], "aarch64", 64]', "python3.8": '[[3, 8], "aarch64", 64]'}, ("python3.8", "aarch64")),
        ({"python3": '[[3, 11], "aarch64", 64]', "python3.13": '[[3, 13], "aarch64", 64]'}, ("python3", "aarch64")),
        # a 32-bit system on a 64-bit kernel
        ({"python3": '[[3, 11], "aarch64", 32]'}, ("python3", "armv7l")),
        ({"python3": "nonsense", "python3.9": '[[3, 9], "x86_64", 64]'}, ("python3.9", "x86_64")),
        ({"python3": '[[3, 6], "aarch64", 64]'}, ("python3", "aarch64")),
        ({"python3": "nonsense"}, None),
    ],
)
def test_the_python_that_setup_takes(
    local_profile: DeviceProfile,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pythons: dict[str, str],
    found: tuple[str, str] | None,
) -> None:
    for name, facts in pythons.items():
        told = facts if facts == "nonsense" else facts[:-1] + ', ["glibc", "2.36"]]'
        (tmp_path / name).write_text(f"#!/bin/sh\n[ $1 = -I ] || exit 1\necho 'a banner'\necho '{told}'\n")
        (tmp_path / name).chmod(0o755)
    agent = open_agent(local_profile)
    monkeypatch.setenv("PATH", str(tmp_path))
    if found is None:
        with pytest.raises(UserError, match="no python3"):
            find_python(agent, "d")
    else:
        python = find_python(agent, "d")
        assert (python.command, python.machine) == found


@pytest.mark.sshd
def test_setup_that_pip_cannot_finish(make_sshd: Callable[..., Sshd], ssh_profile: MakeProfile, tmp_path: Path) -> None:
    """A board without a network: pip finds nothing, and the message says so. The environment is really made."""
    here = Path(sys.executable).resolve().parent
    server = make_sshd(
        f"Subsystem sftp internal-sftp\nSetEnv PATH={here}:/usr/bin:/bin PIP_NO_INDEX=1 PIP_RETRIES=0 PIP_CONFIG_FILE=/dev/null"
    )
    with pytest.raises(UserError, match="names its Python"):
        setup(ssh_profile(server))
    with pytest.raises(StepFailed, match=r"(?s)pip there could not install (pip|numpy).*--offline"):
        setup(ssh_profile(server, python=None, pinned=False))
    assert (tmp_path / "workdir/venv/bin/python").exists()
    server.stop()


def test_shipped_profiles_are_valid_and_the_boards_are_said_to_need_a_host() -> None:
    profiles = shipped_profiles("devices")
    assert {"local", "raspberry-pi-4", "raspberry-pi-5", "jetson-nano", "jetson-orin-nano", "jetson-agx-orin"} <= set(
        profiles
    )
    for name, file in profiles.items():
        profile = read_device(name)
        assert profile.name == name and profile.board
        if profile.transport == "ssh":
            assert profile.int8_activations == "int8" and "CHANGE" in file.read_text()
