"""What all transports promise, each through the real thing: a subprocess here, an OpenSSH server on 127.0.0.1, and a shell at the
end of a serial line."""

from __future__ import annotations

import json
import os
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgecompress.board.transport import (
    OUTPUT_LIMIT_BYTES,
    DeviceError,
    LinkLost,
    Transport,
    command,
    on_device,
    open_transport,
    readable,
)


@pytest.fixture(
    params=["local", pytest.param("ssh", marks=pytest.mark.sshd), pytest.param("serial", marks=pytest.mark.slow)]
)
def transport(request: pytest.FixtureRequest) -> Iterator[Transport]:
    profile = request.getfixturevalue("local_profile")
    if request.param == "serial":
        line = request.getfixturevalue("console")(shell="bash")
        profile = request.getfixturevalue("serial_profile")(line)
    if request.param == "ssh":
        profile = request.getfixturevalue("ssh_profile")()
    opened = open_transport(profile)
    yield opened
    opened.close()


def _python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_arguments_arrive_as_they_are(transport: Transport) -> None:
    awkward = ["a b", "'", '"', "$HOME", "`id`", ";", "*", "", "ü\n2"]
    done = transport.run(_python("import sys, json; print(json.dumps(sys.argv[1:]))") + awkward)
    assert done.status == 0
    assert json.loads(done.stdout) == awkward


def test_both_outputs_full_and_a_long_input_do_not_deadlock(transport: Transport) -> None:
    # Far over every pipe and window: 3 MB to each of stdout and stderr, before any of the 3 MB of input is read.
    code = (
        "import sys; sys.stdout.write('o' * 3_000_000); sys.stdout.flush(); sys.stderr.write('e' * 3_000_000);"
        "print(len(sys.stdin.buffer.read()))"
    )
    done = transport.run(_python(code), stdin=b"i" * 3_000_000, timeout_s=60)
    assert done.status == 0
    assert done.stdout == b"o" * 3_000_000 + b"3000000\n"
    assert done.stderr == b"e" * 3_000_000


def test_statuses(transport: Transport) -> None:
    assert transport.run(_python("raise SystemExit(7)")).status == 7
    missing = transport.run(["no-such-command-here"])
    assert missing.status == 127
    assert b"no-such-command-here" in missing.stderr
    assert transport.run(_python("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")).status not in (0, 1)


def test_input_that_nobody_reads(transport: Transport) -> None:
    done = transport.run(_python("print('done')"), stdin=b"x" * 3_000_000)
    assert (done.status, done.stdout) == (0, b"done\n")


def test_a_command_that_does_not_end(transport: Transport) -> None:
    began = time.monotonic()
    with pytest.raises(LinkLost, match="in time"):
        transport.run(_python("import time; time.sleep(60)"), timeout_s=1)
    assert time.monotonic() - began < 10


def test_a_process_left_behind_does_not_hold_the_command(transport: Transport) -> None:
    began = time.monotonic()
    code = "import subprocess, sys; subprocess.Popen(['sleep', '30'], start_new_session=True); print('left')"
    done = transport.run(_python(code))
    assert (done.status, done.stdout) == (0, b"left\n")
    assert time.monotonic() - began < 15


def test_endless_output_is_stopped(transport: Transport) -> None:
    began = time.monotonic()
    with pytest.raises(DeviceError, match=f"more than {OUTPUT_LIMIT_BYTES} bytes"):
        transport.run(["yes", "hostile"], timeout_s=120)
    assert time.monotonic() - began < 60
    # and the transport is still of use
    assert transport.run(["echo", "well"]).stdout == b"well\n"


def test_files(transport: Transport, tmp_path: Path) -> None:
    folder = tmp_path / "remote" / "a" / "b"
    transport.mkdirs(str(folder))
    transport.mkdirs(str(folder))
    assert stat.S_IMODE(folder.stat().st_mode) == stat.S_IMODE((tmp_path / "remote").stat().st_mode) == 0o700
    source, target = tmp_path / "source", folder / "file"
    source.write_bytes(os.urandom(1_500_000))
    assert not transport.exists(str(target))
    transport.put(source, str(target))
    assert transport.exists(str(target))
    assert target.read_bytes() == source.read_bytes() == transport.get(str(target))
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    transport.put(b"short", str(target))
    assert transport.get(str(target)) == b"short"
    transport.put(b"", str(folder / "empty"))
    assert transport.get(str(folder / "empty")) == b""
    assert sorted(p.name for p in folder.iterdir()) == ["empty", "file"]


def test_files_that_cannot_be(transport: Transport, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        transport.get(str(tmp_path / "absent"))
    (tmp_path / "file").write_bytes(b"12345")
    with pytest.raises(DeviceError, match="larger than 4 bytes"):
        transport.get(str(tmp_path / "file"), limit_bytes=4)
    with pytest.raises(DeviceError, match="cannot make"):
        transport.mkdirs(str(tmp_path / "file" / "below"))
    with pytest.raises(DeviceError, match="cannot write"):
        transport.put(b"x", str(tmp_path / "no" / "folder" / "x"))
    with pytest.raises(DeviceError, match="cannot write"):
        transport.put(b"x", "/proc/x")
    assert transport.exists(str(tmp_path / "file"))


def test_a_file_that_grows_without_end_is_bounded(transport: Transport) -> None:
    with pytest.raises(DeviceError, match="larger than 100000 bytes"):
        transport.get("/proc/kallsyms", limit_bytes=100_000)  # says that it is empty, and is some megabytes


def test_home(transport: Transport) -> None:
    assert Path(transport.home()).is_dir()


def test_paths_on_the_device() -> None:
    assert on_device("~", "/home/pi") == "/home/pi"
    assert on_device("~/.cache/x", "/home/pi/") == "/home/pi/.cache/x"
    assert on_device("rel/x", "/home/pi") == "/home/pi/rel/x"
    assert on_device("/abs", "/home/pi") == "/abs"


def test_text_of_a_device_cannot_reach_the_terminal_raw() -> None:
    assert readable(b"\x1b[31mred\x1b]0;title\x07 \xff ok\r\n") == "?[31mred?]0;title? \ufffd ok"
    assert readable("x" * 5000, limit=10) == "…" + "x" * 10


def test_a_printed_command_names_a_shipped_profile_or_a_file() -> None:
    assert command("doctor", "local") == "edgecompress device doctor local"
    assert (
        command("setup", "mine", "--offline")
        == "edgecompress device setup mine.yaml --offline   (the file of its profile)"
    )
