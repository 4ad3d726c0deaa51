"""A board at the end of a serial line: real shells and a real getty on pseudo-terminals, noise, cuts, restarts, hostile ends."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import termios
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgecompress.board import serial_bootstrap, serial_login
from edgecompress.board.agent import open_agent
from edgecompress.board.devices import trust
from edgecompress.board.doctor import doctor
from edgecompress.board.serial_transport import SerialTransport, told
from edgecompress.board.transport import Completed, DeviceError, LinkLost
from edgecompress.device_profile import DeviceProfile
from edgecompress.errors import UserError
from tests.agent.conftest import wait_for
from tests.board.serial_line import KERNEL, Line, Noise

pytestmark = pytest.mark.slow

MakeLine = Callable[..., Line]
MakeProfile = Callable[..., DeviceProfile]
AGETTY = shutil.which("agetty", path="/sbin:/usr/sbin:/bin:/usr/bin")


@pytest.mark.parametrize("shell", ["bash", "dash", "sh"])
def test_a_shell_is_left_as_it_was(shell: str, console: MakeLine, serial_profile: MakeProfile) -> None:
    line = console(shell=shell)
    before = termios.tcgetattr(line.terminal)
    transport = SerialTransport(serial_profile(line))
    assert transport.home() == str(line.folder)
    said = transport.run(["sh", "-c", "echo out; echo err >&2; exit 3"])
    assert said == Completed(3, b"out\n", b"err\n")
    transport.close()
    transport.close()
    wait_for(lambda: termios.tcgetattr(line.terminal) == before)  # the helper has said goodbye, and is ending
    assert line.processes[0].poll() is None
    assert not list(line.folder.glob("*.pyz")) and not list(line.folder.glob(".*.part"))


def test_what_was_half_typed_is_not_run(console: MakeLine, serial_profile: MakeProfile, tmp_path: Path) -> None:
    line = console(shell="bash")
    line.type(b"touch " + str(tmp_path / "typed").encode())
    SerialTransport(serial_profile(line)).close()
    assert not (tmp_path / "typed").exists()


def test_files_and_answers_are_whole_over_a_noisy_line(
    console: MakeLine, serial_profile: MakeProfile, tmp_path: Path
) -> None:
    line = console(shell="bash", noise=Noise(flips=5e-5, drops=5e-5, messages=1e-4))
    transport = SerialTransport(serial_profile(line))
    for _ in range(10):
        data = os.urandom(60_000)
        transport.put(data, str(tmp_path / "file"))
        assert (tmp_path / "file").read_bytes() == data == transport.get(str(tmp_path / "file"))
        said = transport.run([sys.executable, "-c", "import sys; print('o' * 9000); sys.stderr.write('e' * 9000)"])
        assert said == Completed(0, b"o" * 9000 + b"\n", b"e" * 9000)
        if line.damaged > 20:  # mostly after one or two: which bytes go by how many times is not the same in every run
            break
    assert line.damaged > 20
    transport.close()


def test_messages_of_the_kernel_fall_into_everything(
    console: MakeLine, serial_profile: MakeProfile, tmp_path: Path
) -> None:
    line = console(shell="dash", bytes_per_s=100_000)
    ended = threading.Event()

    def print_on() -> None:
        while not ended.wait(0.04):
            line.print(KERNEL)

    printer = threading.Thread(target=print_on)
    printer.start()
    try:
        transport = SerialTransport(serial_profile(line, connect_timeout_s=2))
        data = os.urandom(50_000)
        transport.put(data, str(tmp_path / "file"))
        assert transport.get(str(tmp_path / "file")) == data
        transport.close()
    finally:
        ended.set()
        printer.join()


def test_an_upload_goes_on_where_the_cable_was_pulled(
    console: MakeLine, serial_profile: MakeProfile, tmp_path: Path
) -> None:
    line = console(shell="bash", bytes_per_s=150_000)
    profile, data, target = serial_profile(line), os.urandom(300_000), tmp_path / "there"
    seen: list[int] = []

    def pull_at_half(there: int) -> None:
        seen.append(there)
        if there > 150_000 and line.port.exists():
            line.pull()

    transport = SerialTransport(profile)
    with pytest.raises(LinkLost, match="serial port"):
        transport.put(data, str(target), pull_at_half)
    transport.close()
    assert not target.exists()
    assert len(list(tmp_path.glob(".there.*.part"))) == 1
    with pytest.raises(LinkLost, match="is gone"):  # a cable that was pulled may be plugged in again
        SerialTransport(profile)
    line.plug()
    transport = SerialTransport(profile)  # the helper is there still
    carried, again = line.carried, list[int]()
    transport.put(data, str(target), again.append)
    assert target.read_bytes() == data
    # a piece of 16 KB may have been acknowledged and not yet been written; all of it anew would be 375 KB on the line
    assert seen[0] == 0 and again[0] >= 150_000 - 16_384
    assert line.carried - carried < 300_000
    assert not list(tmp_path.glob(".there.*.part"))
    transport.close()


def test_an_agent_goes_on_by_itself_when_the_cable_is_plugged_in_again(
    console: MakeLine, serial_profile: MakeProfile, tmp_path: Path
) -> None:
    line = console(shell="bash", bytes_per_s=150_000)
    file, notices, seen = tmp_path / "wheel", list[str](), list[int]()
    file.write_bytes(os.urandom(200_000))
    agent = open_agent(serial_profile(line))
    agent.notice = notices.append

    def pull_once(there: int) -> None:
        seen.append(there)
        if there > 100_000 and not notices and line.port.exists():
            line.pull()
            threading.Timer(0.7, line.plug).start()

    agent.send(file, str(tmp_path / "there"), pull_once)
    agent.close()
    assert (tmp_path / "there").read_bytes() == file.read_bytes()
    assert notices and "link lost" in notices[0]
    assert seen == sorted(seen) and seen[-1] == 200_000


def test_a_part_that_is_not_of_this_file_is_sent_anew(
    console: MakeLine, serial_profile: MakeProfile, tmp_path: Path
) -> None:
    line = console(shell="bash")
    transport = SerialTransport(serial_profile(line))
    data, target = os.urandom(50_000), tmp_path / "there"
    part = tmp_path / f".there.{hashlib.sha256(data).hexdigest()[:16]}.part"
    part.write_bytes(bytes(70_000))
    old = tmp_path / ".there.0123456789abcdef.part"
    old.write_bytes(b"of an older file")
    victim = tmp_path / "victim"
    victim.write_bytes(b"untouched")
    transport.put(data, str(target))
    assert target.read_bytes() == data
    assert not part.exists() and not old.exists()
    part.symlink_to(victim)
    with pytest.raises(DeviceError, match="cannot write"):
        transport.put(data, str(target))
    assert victim.read_bytes() == b"untouched"
    transport.close()


def test_a_download_goes_on_where_the_cable_was_pulled(
    console: MakeLine, serial_profile: MakeProfile, tmp_path: Path
) -> None:
    line = console(shell="bash", bytes_per_s=150_000)
    profile, data = serial_profile(line), os.urandom(300_000)
    (tmp_path / "result").write_bytes(data)
    transport = SerialTransport(profile)
    carried = line.carried

    def pull_at_half() -> None:
        wait_for(lambda: line.carried - carried > 180_000)
        line.pull()

    pulling = threading.Thread(target=pull_at_half)
    pulling.start()
    with pytest.raises(LinkLost):
        transport.get(str(tmp_path / "result"))
    pulling.join()
    transport.close()
    line.plug()
    transport = SerialTransport(profile)
    carried = line.carried
    assert transport.get(str(tmp_path / "result")) == data
    assert line.carried - carried < 300_000
    transport.close()


def test_a_host_that_was_killed_finds_its_helper(console: MakeLine, serial_profile: MakeProfile) -> None:
    line = console(shell="bash")
    first = SerialTransport(serial_profile(line))
    first._port.close()  # all that the kernel does for a process that was killed
    carried = line.carried
    second = SerialTransport(serial_profile(line))
    assert second.run(["echo", "well"]).stdout == b"well\n"
    assert line.carried - carried < 9000  # it did not need to bring it again: 12 KB
    second.close()
    assert line.processes[0].poll() is None


def test_a_board_that_starts_anew_is_noticed_and_logged_in_at_again(
    console: MakeLine, serial_profile: MakeProfile
) -> None:
    line = console(shell="bash")
    transport = SerialTransport(serial_profile(line))

    def restart() -> None:
        line.kill()
        line.print(b"[  100.1] reboot: Restarting system\r\n\r\nU-Boot 2024.01\r\nHit any key to stop autoboot:  0\r\n")

    timer = threading.Timer(0.5, restart)
    timer.start()
    began = time.monotonic()
    with pytest.raises(LinkLost, match="started anew"):
        transport.run(["sleep", "30"], timeout_s=40)
    assert time.monotonic() - began < 20
    transport.close()
    line.start_shell("bash")
    again = SerialTransport(serial_profile(line))
    assert again.run(["echo", "up"]).stdout == b"up\n"
    again.close()


def test_nothing_is_typed_while_a_boot_loader_counts_down(
    console: MakeLine, serial_profile: MakeProfile, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = console()
    monkeypatch.undo()
    assert serial_login.LISTEN_S > 1
    keys: list[bytes] = []

    def boot() -> None:
        line.print(b"U-Boot 2024.01\r\nHit any key to stop autoboot:  2")
        time.sleep(0.6)  # a real one says something every second
        line.print(b"\b\b\b 1")
        time.sleep(0.6)
        keys.append(line.typed())
        line.print(b"\r\nLinux version 6.1\r\n")
        line.start_shell("bash")

    booting = threading.Thread(target=boot)
    booting.start()
    time.sleep(0.1)
    transport = SerialTransport(serial_profile(line, connect_timeout_s=10))
    booting.join()
    assert keys == [b""]
    transport.close()


def test_ports_that_cannot_be_opened(console: MakeLine, serial_profile: MakeProfile, tmp_path: Path) -> None:
    line = console(shell="bash")
    with pytest.raises(UserError, match="is not there") as absent:
        SerialTransport(serial_profile(line, serial_port=tmp_path / "ttyUSB5"))
    assert "serial_port" in absent.value.fix
    (tmp_path / "file").write_text("no port")
    for none in (tmp_path / "file", tmp_path, Path("/dev/null")):
        with pytest.raises(UserError, match=f"^board: {none} cannot be used as a serial port: it is none\n"):
            SerialTransport(serial_profile(line, serial_port=none))
    transport = SerialTransport(serial_profile(line))
    with pytest.raises(UserError, match="in use by another program"):
        SerialTransport(serial_profile(line))
    assert transport.run(["echo", "well"]).stdout == b"well\n"
    transport.close()
    if os.geteuid() != 0:
        line.port.resolve().chmod(0)
        with pytest.raises(UserError, match="no permission") as refused:
            SerialTransport(serial_profile(line))
        assert "dialout" in refused.value.fix


def test_lines_at_which_nobody_or_nothing_of_use_answers(console: MakeLine, serial_profile: MakeProfile) -> None:
    silent = console()
    with pytest.raises(LinkLost, match="nobody answers"):
        SerialTransport(serial_profile(silent, connect_timeout_s=0.5))
    babble = console()
    babble.start([shutil.which("cat") or "cat", "/dev/urandom"], {"HOME": "/"})
    began = time.monotonic()
    with pytest.raises(LinkLost, match="neither a login nor a shell"):
        SerialTransport(serial_profile(babble, connect_timeout_s=0.5))
    assert time.monotonic() - began < 20


def test_a_board_without_a_python(console: MakeLine, serial_profile: MakeProfile, tmp_path: Path) -> None:
    line = console()
    env = {"HOME": str(line.folder), "PATH": str(tmp_path), "TERM": "linux"}
    line.start([shutil.which("dash") or "sh"], env)
    with pytest.raises(UserError, match=r"no Python from 3\.8"):
        SerialTransport(serial_profile(line, python="~/none/bin/python", connect_timeout_s=2))
    transport = SerialTransport(serial_profile(line, python=sys.executable))
    assert transport.run([sys.executable, "-c", "print(1)"]).stdout == b"1\n"
    transport.close()


_LOGIN = """#!/bin/bash
if [ "$1" != -f ]; then
  stty -echo; printf 'Password: '; read -r secret; stty echo; echo
  for user in "$@"; do :; done
  if [ "$secret" != "s3cret word" ] || [ "$user" != pi ]; then echo 'Login incorrect'; sleep 0.3; exit 1; fi
fi
echo 'Last login: Tue Nov 24 08:00:00 on ttyS0'; echo 'Welcome. Use your login: pi'
exec -a -bash bash
"""


@pytest.fixture
def getty(console: MakeLine, tmp_path: Path) -> Callable[..., Line]:
    """A line with a real agetty; a login of our own behind it, as a test adds no users to a system."""
    if AGETTY is None:
        pytest.skip("needs agetty (Debian: apt install util-linux)")
    program = tmp_path / "login"
    program.write_text(_LOGIN)
    program.chmod(0o755)

    def make(*options: str) -> Line:
        line = console()
        env = {"HOME": str(line.folder), "PATH": os.environ["PATH"], "TERM": "linux"}
        line.start([AGETTY, "--noclear", *options, "-l", str(program), "-", "115200", "linux"], env)
        return line

    return make


def test_a_getty_is_logged_in_at_and_left_logged_out(
    getty: Callable[..., Line], serial_profile: MakeProfile, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = getty()
    monkeypatch.setenv("CONSOLE_PASSWORD", "s3cret word")
    transport = SerialTransport(serial_profile(line, user="pi", password_env="CONSOLE_PASSWORD"))
    assert transport.run(["echo", "in"]).stdout == b"in\n"
    assert line.processes[0].poll() is None
    transport.close()
    line.processes[0].wait(60)  # init would start a new getty


def test_a_getty_that_logs_in_by_itself(getty: Callable[..., Line], serial_profile: MakeProfile) -> None:
    line = getty("--autologin", "root")
    transport = SerialTransport(serial_profile(line))
    assert transport.run(["echo", "in"]).stdout == b"in\n"
    transport.close()


def test_logins_that_are_refused(
    getty: Callable[..., Line],
    serial_profile: MakeProfile,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    line = getty()
    with pytest.raises(UserError, match="asks who logs in"):
        SerialTransport(serial_profile(line))
    profile = serial_profile(line, user="pi", password_env="CONSOLE_PASSWORD", connect_timeout_s=4)
    with pytest.raises(UserError, match="CONSOLE_PASSWORD is not set"):
        SerialTransport(profile)
    line.kill()
    line.start(*line.last)
    monkeypatch.setenv("CONSOLE_PASSWORD", "wr0ng one")
    stopped = threading.Event()

    def respawn() -> None:  # as init does
        while not stopped.wait(0.05):
            if line.processes[-1].poll() is not None:
                line.start(*line.last)

    init = threading.Thread(target=respawn)
    init.start()
    try:
        with pytest.raises(UserError, match="does not accept the password of pi") as refused:
            SerialTransport(profile)
    finally:
        stopped.set()
        init.join()
    assert "wr0ng" not in str(refused.value) + "".join(capfd.readouterr())


def test_passwords_that_cannot_be_sent(
    serial_profile: MakeProfile, console: MakeLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = console()
    monkeypatch.setattr("sys.stdin", open(os.devnull))  # noqa: PTH123, SIM115
    with pytest.raises(UserError, match="nobody is here to type it"):
        serial_login.password(serial_profile(line, user="pi"), again=False)
    monkeypatch.setenv("CONSOLE_PASSWORD", "wrong\x03one")
    with pytest.raises(UserError, match="control characters"):
        serial_login.password(serial_profile(line, user="pi", password_env="CONSOLE_PASSWORD"), again=False)


_HOSTILE = """
import os, sys, time, tty, zlib
from edgecompress_agent import console_link as cl
tty.setraw(0)
session, answers = [b"000000"], [0]
def out(kind, number, payload):
    os.write(1, cl.encode(b"b", kind, session[0], number, payload))
rest = b""
while True:
    *lines, rest = (rest + os.read(0, 65536)).split(b"\\n")
    for line in lines:
        frame = cl.decode(line)
        if frame is None:
            os.write(1, cl.encode(b"b", b"I", b"000000", 0, sys.argv[2].encode()))
        elif frame.kind == b"H":
            session[0], answers[0] = frame.session, 0
            out(b"I", 0, sys.argv[2].encode())
        elif frame.kind == b"E":
            out(b"A", frame.number + 1, b"0")
            answer = answers[0]
            answers[0] += 1
            if sys.argv[1] == "endless":
                for number in range(1000):
                    out(b"D", number, bytes(512))
            elif sys.argv[1] == "bomb":
                out(b"E", answer, zlib.compress(bytes(400_000), 9))
            elif sys.argv[1] == "nonsense":
                out(b"E", answer, cl.pack(b"[" * 20_000))
            elif sys.argv[1] == "wrong":
                out(b"E", answer, cl.pack(b'{"status": "x", "out": -5, "identity": 7, "size": "big", "path": 3, "have": -1}'))
            elif sys.argv[1] == "escape":
                out(b"E", answer, cl.pack(b'{"error": "\\\\u001b[31mred\\\\u0007"}'))
"""


@pytest.mark.parametrize("how", ["endless", "bomb", "nonsense", "wrong", "escape"])
def test_a_hostile_end_is_refused(how: str, console: MakeLine, serial_profile: MakeProfile, tmp_path: Path) -> None:
    line = console()
    (tmp_path / "hostile.py").write_text(_HOSTILE)
    env = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    version = serial_bootstrap.helper()[1]
    line.start([sys.executable, str(tmp_path / "hostile.py"), how, version], env)
    wait_for(
        lambda: not termios.tcgetattr(line.terminal)[3] & termios.ECHO
    )  # until it has begun, the terminal would echo
    transport = SerialTransport(serial_profile(line))
    with pytest.raises(DeviceError) as refused:
        transport.get("/result") if how != "escape" else transport.exists("/x")
    assert "\x1b" not in str(refused.value)
    with pytest.raises(DeviceError):
        transport.run(["true"]) if how != "endless" else transport.home()
    transport.close()


def test_doctor_and_trust(console: MakeLine, serial_profile: MakeProfile) -> None:
    line = console(shell="bash")
    checks = {check.name: check for check in doctor(serial_profile(line))}
    assert checks["reachable"].ok and f"{line.port} at 115200 baud" in checks["reachable"].detail
    assert checks["python"].ok and checks["files"].ok
    absent = list(doctor(serial_profile(line, serial_port=line.folder / "ttyUSB5")))
    assert [check.name for check in absent] == ["reachable"] and "is not there" in absent[0].detail
    with pytest.raises(UserError, match="there is no key to trust"):
        trust(serial_profile(line), lambda question: True)


def test_the_time_of_an_upload_is_told() -> None:
    assert (
        told(60_000_000, 115200)
        == "60 MB over the console at 115200 baud: about 1 h 43 min; it goes on where it was cut"
    )
    assert "about 1 min;" in told(270_000, 115200)
