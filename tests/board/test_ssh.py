"""What only SSH has: host keys, logins, ways round corners, and links that break."""

from __future__ import annotations

import random
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from edgecompress.board.agent import open_agent
from edgecompress.board.ssh import SshTransport
from edgecompress.board.transport import DeviceError, LinkLost
from edgecompress.device_profile import DeviceProfile
from edgecompress.errors import UserError

if TYPE_CHECKING:
    from tests.board.loopback import Proxy, Sshd

pytestmark = pytest.mark.sshd

MakeProfile = Callable[..., DeviceProfile]


def says(profile: DeviceProfile) -> bytes:
    transport = SshTransport(profile)
    try:
        return transport.run(["echo", "well"]).stdout
    finally:
        transport.close()


def other_key(sshd: Sshd, folder: Path, make_key: Callable[..., Path]) -> str:
    return " ".join(make_key(folder / "other").with_suffix(".pub").read_text().split()[:2])


@pytest.fixture
def make_key() -> Callable[..., Path]:
    import subprocess

    def make(path: Path, kind: str = "ed25519", passphrase: str = "") -> Path:
        command = ["ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-f", str(path)]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, timeout=60)
        return path

    return make


def test_an_unknown_host_is_refused_with_the_command_that_pins_it(ssh_profile: MakeProfile) -> None:
    with pytest.raises(UserError, match="is not known") as caught:
        SshTransport(ssh_profile(pinned=False))
    assert "SHA256:" in caught.value.what and "edgecompress device trust board" in caught.value.fix


def test_a_changed_key_is_fatal(
    ssh_profile: MakeProfile, sshd: Sshd, tmp_path: Path, make_key: Callable[..., Path]
) -> None:
    profile = ssh_profile(pinned=False)
    assert profile.known_hosts is not None
    profile.known_hosts.write_text(f"[127.0.0.1]:{sshd.port} {other_key(sshd, tmp_path, make_key)}\n")
    with pytest.raises(UserError, match="HAS CHANGED") as caught:
        SshTransport(profile)
    assert "ssh-keygen" in caught.value.fix and "line 1" in caught.value.what


def test_a_key_of_another_kind_than_the_pinned_one_is_no_new_host(
    ssh_profile: MakeProfile, sshd: Sshd, tmp_path: Path, make_key: Callable[..., Path]
) -> None:
    profile = ssh_profile(pinned=False)
    assert profile.known_hosts is not None
    rsa = " ".join(make_key(tmp_path / "rsa", "ecdsa").with_suffix(".pub").read_text().split()[:2])
    profile.known_hosts.write_text(f"[127.0.0.1]:{sshd.port} {rsa}\n")
    with pytest.raises(UserError, match="HAS CHANGED"):
        SshTransport(profile)


def test_a_revoked_key(ssh_profile: MakeProfile, sshd: Sshd) -> None:
    profile = ssh_profile()
    assert profile.known_hosts is not None
    with profile.known_hosts.open("a") as file:
        file.write(f"@revoked [127.0.0.1]:{sshd.port} {sshd.host_key}\n")
    with pytest.raises(UserError, match="revoked"):
        SshTransport(profile)


def test_no_key_that_is_accepted(
    ssh_profile: MakeProfile, tmp_path: Path, make_key: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    encrypted = make_key(tmp_path / "encrypted", passphrase="secret words")
    refused = make_key(tmp_path / "refused")
    (tmp_path / "nonsense").write_text("no key\n")
    for file, reason in [
        (refused, "not accepted"),
        (encrypted, "encrypted"),
        (tmp_path / "nonsense", "not a private key"),
        (tmp_path / "absent", "No such file"),
    ]:
        with pytest.raises(UserError, match="no key was accepted") as caught:
            SshTransport(ssh_profile(identity_file=file))
        assert reason in caught.value.what and f"ssh-copy-id -i {file} -p " in caught.value.fix


def test_an_agent_that_does_not_answer_ends_in_a_message(
    ssh_profile: MakeProfile, tmp_path: Path, make_key: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgecompress.board.link._AGENT_S", 0.5)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "agent"))
        silent.listen()
        monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "agent"))
        with pytest.raises(UserError, match="no key was accepted"):
            SshTransport(ssh_profile(identity_file=make_key(tmp_path / "refused")))


def test_a_key_of_the_agent(
    ssh_profile: MakeProfile, sshd: Sshd, tmp_path: Path, make_key: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import subprocess

    agent = subprocess.Popen(["ssh-agent", "-D", "-a", str(tmp_path / "agent")], stdout=subprocess.DEVNULL)
    try:
        monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "agent"))
        for _ in range(100):
            if subprocess.run(["ssh-add", "-q", str(sshd.key)], capture_output=True).returncode == 0:
                break
            time.sleep(0.05)
        assert says(ssh_profile(identity_file=make_key(tmp_path / "refused"))) == b"well\n"
    finally:
        agent.terminate()
        agent.wait()


def test_alias_jump_host_and_proxy_command(ssh_profile: MakeProfile, sshd: Sshd, tmp_path: Path) -> None:
    connect = (
        "import socket, sys, threading, os; s = socket.create_connection((sys.argv[1], int(sys.argv[2])));"
        "t = threading.Thread(target=lambda: [s.sendall(d) for d in iter(lambda: os.read(0, 65536), b'')], daemon=True);"
        "t.start(); [os.write(1, d) for d in iter(lambda: s.recv(65536), b'')]"
    )
    (tmp_path / "connect.py").write_text(connect)
    (tmp_path / "more").write_text(f"Host gate\n  HostName 127.0.0.1\n  Port {sshd.port}\n  IdentityFile {sshd.key}\n")
    config = f"""
Include {tmp_path}/more
Host bench
  HostName 127.0.0.1
  Port {sshd.port}
  IdentityFile {sshd.key}
  ProxyJump gate
Host through
  HostName 127.0.0.1
  Port {sshd.port}
  IdentityFile {sshd.key}
  ProxyCommand {sys.executable} {tmp_path}/connect.py %h %p
"""
    for alias in ("bench", "through"):
        profile = ssh_profile(host=alias, port=None, identity_file=None, pinned=False)
        assert profile.ssh_config is not None and profile.known_hosts is not None
        profile.ssh_config.write_text(config)
        profile.known_hosts.write_text(f"[127.0.0.1]:{sshd.port} {sshd.host_key}\n")
        assert says(profile) == b"well\n"
    profile.ssh_config.write_text(config.replace("connect.py", "absent.py"))
    with pytest.raises(LinkLost, match="no SSH answer"):
        says(profile)


def test_nobody_there(ssh_profile: MakeProfile, tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: refused
        with pytest.raises(LinkLost, match="cannot be reached: Connection refused"):
            SshTransport(ssh_profile(port=unused.getsockname()[1]))
    with pytest.raises(LinkLost, match="its name is not known here"):
        SshTransport(ssh_profile(host="no-such-board.invalid"))


def test_a_server_that_says_nothing_or_nonsense(ssh_profile: MakeProfile) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        with pytest.raises(LinkLost, match="no SSH answer"):
            SshTransport(ssh_profile(port=silent.getsockname()[1], connect_timeout_s=1))
        assert time.monotonic() - began < 10

        def nonsense() -> None:
            silent.accept()  # the one from above
            connection, _ = silent.accept()
            with connection:
                connection.sendall(b"SSH-2.0-x\r\n" + b"\xff" * 5000)
                connection.recv(100)

        threading.Thread(target=nonsense, daemon=True).start()
        with pytest.raises(LinkLost, match="no SSH answer"):
            SshTransport(ssh_profile(port=silent.getsockname()[1], connect_timeout_s=2))


def test_a_link_that_is_cut_or_stalls_is_lost_and_does_not_hang(ssh_profile: MakeProfile, proxy: Proxy) -> None:
    transport = SshTransport(ssh_profile(port=proxy.port))
    threading.Timer(0.5, proxy.cut).start()
    began = time.monotonic()
    with pytest.raises(LinkLost):
        transport.run(["sleep", "30"])
    assert time.monotonic() - began < 20
    with pytest.raises(LinkLost):
        transport.exists("/")
    transport.close()

    proxy.mend()
    transport = SshTransport(ssh_profile(port=proxy.port))
    assert transport.exists("/")
    proxy.stalled.set()
    began = time.monotonic()
    with pytest.raises(LinkLost):
        transport.run(["echo"], timeout_s=1)
    assert time.monotonic() - began < 10
    transport.close()


def test_a_stalled_transfer(
    ssh_profile: MakeProfile, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgecompress.board.ssh._STALL_S", 1.0)
    transport = SshTransport(ssh_profile(port=proxy.port))
    (tmp_path / "large").write_bytes(b"x" * 50_000_000)
    threading.Timer(0.2, proxy.stalled.set).start()
    began = time.monotonic()
    with pytest.raises(LinkLost):
        for _ in range(100):
            transport.put(tmp_path / "large", str(tmp_path / "copy"))
    assert time.monotonic() - began < 20
    transport.close()


def test_an_upload_goes_on_where_it_was_cut(ssh_profile: MakeProfile, proxy: Proxy, tmp_path: Path) -> None:
    """By the next transport, which may be that of another process: it finds what is there by the contents of the file."""
    large, target = tmp_path / "large", tmp_path / "board" / "copy"
    target.parent.mkdir()
    large.write_bytes(random.Random(0).randbytes(12_000_000))
    transport, seen = SshTransport(ssh_profile(port=proxy.port)), list[int]()

    def cut_in_the_middle(there: int) -> None:
        seen.append(there)
        if there > 6_000_000:
            proxy.cut()

    with pytest.raises(LinkLost):
        transport.put(large, str(target), cut_in_the_middle)
    (part,) = target.parent.iterdir()
    had = part.read_bytes()  # once: the server may still be writing what came before the cut
    there = len(had)
    assert seen[0] == 0 and 0 < there < 12_000_000 and stat.S_IMODE(part.stat().st_mode) == 0o600
    assert large.read_bytes().startswith(had)
    proxy.mend()
    moved, seen[:] = proxy.moved, []
    transport = SshTransport(ssh_profile(port=proxy.port))
    transport.put(large, str(target), seen.append)
    assert seen[0] >= there and seen[-1] == 12_000_000
    assert proxy.moved - moved < 12_000_000 - there + 100_000
    assert target.read_bytes() == large.read_bytes() and list(target.parent.iterdir()) == [target]

    # a part that is longer than the file, or no file at all, is of no use
    for other in (lambda: part.write_bytes(b"x" * 13_000_000), lambda: part.symlink_to("/dev/null")):
        other()
        transport.put(large, str(target))
        assert target.read_bytes() == large.read_bytes() and list(target.parent.iterdir()) == [target]
    transport.close()


def test_two_workstations_that_send_the_same_file_at_once(ssh_profile: MakeProfile, tmp_path: Path) -> None:
    large, target = tmp_path / "large", tmp_path / "copy"
    large.write_bytes(random.Random(0).randbytes(6_000_000))
    first, second = SshTransport(ssh_profile()), SshTransport(ssh_profile(pinned=False))
    begun = list[int]()

    def other(there: int) -> None:
        begun.append(there)
        if len(begun) == 5:  # the second finds the first's part, ends it and renames it
            second.put(large, str(target))

    first.put(large, str(target), other)
    assert target.read_bytes() == large.read_bytes() and not list(tmp_path.glob(".*.part"))
    first.close()
    second.close()


def test_a_server_that_tells_no_limits_is_sent_small_writes(
    make_sshd: Callable[..., Sshd], ssh_profile: MakeProfile, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(random.Random(0).randbytes(1_500_000))
    for extra, largest in (("", 7 * 32704 - 29), (" -P limits", 32675)):
        server = make_sshd("Subsystem sftp internal-sftp" + extra)
        transport = SshTransport(ssh_profile(server))
        transport.put(tmp_path / "file", str(tmp_path / "copy"))
        assert transport._request_bytes == largest
        assert (tmp_path / "copy").read_bytes() == (tmp_path / "file").read_bytes()
        transport.close()
        server.stop()


def test_an_upload_that_moves_on_between_cuts_is_not_given_up(
    ssh_profile: MakeProfile, proxy: Proxy, tmp_path: Path
) -> None:
    """It is cut after every 2 MB, for longer in all than a lost link is tried again."""
    (tmp_path / "large").write_bytes(random.Random(0).randbytes(14_000_000))
    agent = open_agent(ssh_profile(port=proxy.port, reconnect_s=2.4))
    cut_at, began, cuts = 0, time.monotonic(), 0

    def nuisance(there: int) -> None:
        nonlocal cut_at, cuts
        if there > cut_at:
            cut_at, cuts = there + 2_000_000, cuts + 1
            proxy.cut()
            threading.Timer(0.5, proxy.mend).start()

    agent.send(tmp_path / "large", str(tmp_path / "copy"), nuisance)
    assert cuts >= 5 and time.monotonic() - began > 2.4
    assert (tmp_path / "copy").read_bytes() == (tmp_path / "large").read_bytes()
    agent.close()


def test_the_connection_s_server_process_is_killed(ssh_profile: MakeProfile, sshd: Sshd) -> None:
    transport = SshTransport(ssh_profile())
    threading.Timer(0.3, sshd.kill_connections).start()
    with pytest.raises(LinkLost):
        transport.run(["sleep", "30"])
    transport.close()
    assert says(ssh_profile()) == b"well\n"


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("", "offers no SFTP"),
        ('Subsystem sftp /bin/sh -c "echo Welcome to the board; cat"', "SFTP does not work.*bashrc"),
    ],
)
def test_a_board_without_working_sftp(
    make_sshd: Callable[..., Sshd], ssh_profile: MakeProfile, extra: str, message: str
) -> None:
    server = make_sshd(extra)
    transport = SshTransport(ssh_profile(server))
    with pytest.raises(DeviceError, match=message):
        transport.home()
    transport.close()
    server.stop()
