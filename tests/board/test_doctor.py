"""`device doctor` against real servers, real interpreters and real file systems; on records only where a board is missing."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from edgecompress_agent import permission, probe, wire
from edgecompress_agent import survey as agent_survey
from edgecompress_agent.store import try_lock
from edgecompress_agent.survey import _workdir as workdir_of
from edgecompress_agent.survey_record import Process, Survey, Workdir

from edgecompress.board import doctor as doctor_module
from edgecompress.board import survey
from edgecompress.board.doctor import doctor, document, sensor_line
from edgecompress.board.health import Check, health, throttling
from edgecompress.board.transport import open_transport
from edgecompress.cli import main
from edgecompress.device_profile import DeviceProfile

if TYPE_CHECKING:
    from tests.board.conftest import Sshd

MakeProfile = Callable[..., DeviceProfile]

NAMES = [
    "reachable", "host key", "user", "files", "python", "architecture", "os", "workdir", "engine onnxruntime",
    "engine litert", "sensor", "memory", "governor", "clocks", "temperature", "throttling", "load", "clock",
]  # fmt: skip
"""They stay: programs read them."""
OF_THE_MOMENT = {"memory", "temperature", "throttling", "load", "engine litert"}
"""Lines that may be red on the machine that runs these tests."""


def by_name(profile: DeviceProfile) -> dict[str, Check]:
    checks = list(doctor(profile))
    assert len({check.name for check in checks}) == len(checks)
    for check in checks:
        assert check.ok or check.fix, f"red without what mends it: {check}"
        assert all(c.isprintable() for c in check.name + check.detail.replace("\n", "") + check.fix), check
    return {check.name: check for check in checks}


def snapshot(*folders: Path) -> dict[str, tuple[int, int]]:
    """Every path below → (mode, change time in ns)."""
    paths = [p for folder in folders for p in (folder, *folder.rglob("*"))]
    return {str(p): (p.lstat().st_mode, p.lstat().st_ctime_ns) for p in paths}


def script(path: Path, text: str) -> Path:
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return path


def with_python(profile: DeviceProfile, python: Path) -> DeviceProfile:
    return profile.model_copy(update={"python": str(python)})


@pytest.mark.sshd
@pytest.mark.slow
def test_one_table_before_anything_is_copied_and_nothing_stays_there(
    make_sshd: Callable[..., Sshd], ssh_profile: MakeProfile, tmp_path: Path
) -> None:
    for name in ("home", "tmp"):
        (tmp_path / name).mkdir()
    server = make_sshd(f"Subsystem sftp internal-sftp\nSetEnv HOME={tmp_path}/home TMPDIR={tmp_path}/tmp")
    profile = ssh_profile(server)
    before = snapshot(tmp_path)
    checks = by_name(profile)
    assert snapshot(tmp_path) == before
    server.stop()
    assert list(checks) == NAMES
    assert all(check.ok for name, check in checks.items() if name not in OF_THE_MOMENT), checks
    assert f"127.0.0.1:{server.port}" in checks["reachable"].detail and "SHA256:" in checks["host key"].detail
    assert sys.executable in checks["python"].detail and "will be made" in checks["workdir"].detail
    assert checks["architecture"].detail.startswith(os.uname().machine) and os.uname().release in checks["os"].detail
    assert "as this machine's" in checks["clock"].detail and "CPUs in use by others" in checks["load"].detail


@pytest.mark.slow
def test_this_machine_and_what_a_profile_asks_too_much(local_profile: DeviceProfile) -> None:
    asked = {"cpus": (4096,), "providers": ("NoSuchProvider",), "engines": {"onnx": "onnxruntime"}}
    checks = by_name(local_profile.model_copy(update=asked))
    assert checks["reachable"].detail == "this machine" and "host key" not in checks and "engine litert" not in checks
    assert not checks["cpus"].ok and not checks["providers"].ok and "GB free" in checks["workdir"].detail
    assert not Path(local_profile.workdir).exists()


@pytest.mark.sshd
@pytest.mark.slow
def test_an_environment_that_an_interrupt_left_half_made(ssh_profile: MakeProfile) -> None:
    profile = ssh_profile(python=None)
    (folder := Path(profile.workdir) / "venv/bin").mkdir(mode=0o700, parents=True)
    Path(profile.workdir).chmod(0o700)
    script(folder / "python", f'exec {shlex.quote(sys.executable)} "$@"\n')
    (Path(profile.workdir) / "venv-unfinished").touch()
    with (Path(profile.workdir) / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert not by_name(profile)["python"].warning, "that setup, or a measurement, is at work"
    found = by_name(profile)["python"]
    assert found.ok and found.warning and "half made" in found.detail and "edgecompress device setup" in found.fix


@pytest.mark.sshd
def test_boards_that_let_nobody_in(
    ssh_profile: MakeProfile, sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    (check,) = doctor(ssh_profile(port=1))
    assert (check.name, check.ok) == ("reachable", False) and "refused" in check.detail and "ssh -p 1 " in check.fix
    (check,) = doctor(ssh_profile(host="no-such-board.invalid"))
    assert (check.name, check.ok) == ("reachable", False) and "its name is not known" in check.detail
    first, check = doctor(ssh_profile(pinned=False, known_hosts=tmp_path / "none"))
    assert first.ok and (check.name, check.ok) == ("host key", False) and "device trust board" in check.fix
    other = " ".join((sshd.folder / "client_key.pub").read_text().split()[:2])
    (tmp_path / "changed").write_text(f"[127.0.0.1]:{sshd.port} {other}\n")
    *_, check = doctor(ssh_profile(pinned=False, known_hosts=tmp_path / "changed"))
    assert (check.name, check.ok) == ("host key", False) and "HAS CHANGED" in check.detail and "ssh-keygen" in check.fix
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "wrong")], check=True)
    *_, check = doctor(ssh_profile(identity_file=tmp_path / "wrong"))
    assert (check.name, check.ok) == ("user", False) and "not accepted" in check.detail and "ssh-copy-id" in check.fix


@pytest.mark.sshd
@pytest.mark.slow
def test_a_board_without_sftp_is_looked_at_all_the_same(
    make_sshd: Callable[..., Sshd], ssh_profile: MakeProfile, tmp_path: Path
) -> None:
    server = make_sshd("")
    checks = by_name(ssh_profile(server))
    server.stop()
    assert list(checks) == NAMES and not checks["files"].ok and "offers no SFTP" in checks["files"].detail
    assert "openssh-sftp-server" in checks["files"].fix and checks["python"].ok and checks["workdir"].ok


@pytest.mark.parametrize("python", ["absent", "2.7", "3.6", "3.7"])
def test_no_python_or_one_that_is_too_old(local_profile: DeviceProfile, tmp_path: Path, python: str) -> None:
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    found = tmp_path / "absent" if python == "absent" else next(pyenv.glob(f"versions/{python}.*/bin/python"), None)
    if found is None:
        pytest.skip(f"needs Python {python} of pyenv: pyenv install {python}")
    checks = by_name(with_python(local_profile, found))
    assert list(checks) == ["reachable", "files", "python", "os"] and not checks["python"].ok
    assert ("no Python at" if python == "absent" else f"Python {python}; the agent needs 3.8") in checks[
        "python"
    ].detail
    assert os.uname().release in checks["os"].detail


@pytest.mark.slow
def test_a_disk_that_is_full_or_read_only(local_profile: DeviceProfile, tmp_path: Path) -> None:
    """A file system of its own for the board: its Python is started in a mount namespace."""
    (tmp_path / "disk").mkdir()
    for options, words, fix in (
        ("size=4m", "MB free, ", "rm -rf"),
        ("size=4m,ro", "mounted read-only", "remount,rw"),
    ):
        mounts = f'mount -t tmpfs -o {options} none {tmp_path}/disk && exec {sys.executable} "$@"'
        python = script(tmp_path / "python", f'exec unshare -rm sh -c {shlex.quote(mounts)} sh "$@"\n')
        if subprocess.run([str(python), "-c", ""], capture_output=True).returncode:
            pytest.skip("needs a user and mount namespace (unshare -rm)")
        profile = with_python(local_profile, python).model_copy(update={"workdir": f"{tmp_path}/disk/workdir"})
        check = by_name(profile)["workdir"]
        assert not check.ok and words in check.detail and fix in check.fix, check


def test_a_workdir_that_cannot_be(local_profile: DeviceProfile, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    for name, words, fix in (
        ("file", "is not a directory", "mv "),
        ("open", "every user there may write", "chmod -R go-w"),
        ("open/below", "every user there may rename", "chmod o-w"),
        ("file/below", "file is not a directory", "mv "),
    ):
        profile = local_profile.model_copy(update={"workdir": str(tmp_path / name)})
        check = doctor_module._workdir(profile, of(workdir=workdir_of(tmp_path / name)))
        assert not check.ok and words in check.detail and fix in check.fix and "chown" not in check.fix, check
    assert (tmp_path / "open").stat().st_mode & 0o777 == 0o777  # looked at only


@pytest.mark.slow
def test_beside_a_measurement_neither_engine_nor_sensor_is_touched(
    local_profile: DeviceProfile, tmp_path: Path
) -> None:
    Path(local_profile.workdir).mkdir(mode=0o700)
    options = {"path": str(tmp_path / "absent.csv")}
    profile = local_profile.model_copy(update={"sensor": "replay", "sensor_options": options})
    lock = try_lock(Path(profile.workdir) / "lock")
    assert lock is not None
    checks = by_name(profile)
    os.close(lock)
    for name in ("engine onnxruntime", "sensor", "load"):
        assert checks[name].ok and "has the board now" in checks[name].detail, checks[name]


def test_engines_that_take_long_to_import_make_no_process_look_idle(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    used_s, looked = iter([10.0, 10.5]), list[float]()

    def slow() -> tuple[str, dict[str, wire.EngineFound]]:
        looked.append(time.monotonic())
        time.sleep(1.5)
        return "", {}

    monkeypatch.setattr(agent_survey, "_LOOK_S", 0.5)
    monkeypatch.setattr(agent_survey, "_cpu_seconds", lambda: {77: ("ffmpeg", next(used_s))})
    monkeypatch.setattr(probe, "engines_found", slow)
    began = time.monotonic()
    (busiest,) = agent_survey.survey(tmp_path, {}).processes
    assert (busiest.pid, busiest.name) == (77, "ffmpeg") and 0.5 / (looked[0] - began) <= busiest.cpus <= 1.0


@pytest.mark.slow
def test_the_sensor_is_read_once_where_it_hangs(local_profile: DeviceProfile, tmp_path: Path) -> None:
    (tmp_path / "trace.csv").write_text("seconds,watts\n0,2.5\n0.1,2.5\n")
    options = {"path": str(tmp_path / "trace.csv")}
    replayed = local_profile.model_copy(update={"sensor": "replay", "sensor_options": options, "scope": "board"})

    def line(profile: DeviceProfile) -> Check:
        transport = open_transport(profile)
        return sensor_line(profile, survey.look(profile, transport, sys.executable, profile.workdir, engines=False))

    for where in ("device", "host"):
        check = line(replayed.model_copy(update={"meter_at": where}))
        assert check.ok and "2.500 W now" in check.detail and "scope board" in check.detail, check
        assert ("at this machine" in check.detail) == (where == "host")
        assert "recorded by trace.csv, not at this measurement" in check.fix
    check = line(replayed.model_copy(update={"sensor_options": {"path": str(tmp_path / "none.csv")}}))
    assert not check.ok and "cannot be read" in check.detail and "docs/sensors.md" in check.fix
    assert not Path(local_profile.workdir).exists()


def of(**fields: object) -> Survey:
    """A survey of a healthy board; keyword arguments replace fields, of its conditions too."""
    conditions = wire.Conditions(
        "hello", 1, "Raspberry Pi 4", "Cortex-A72", 4, "aarch64", "6.1", "Debian", "3.11.2", ("performance",), (1500.0,),
        {"cpu": 50.0}, "0x0", None, 0.1, 1 << 30, 0, None,
    )  # fmt: skip
    names = {f.name for f in dataclasses.fields(conditions)}
    conditions = dataclasses.replace(conditions, **{k: v for k, v in fields.items() if k in names})  # type: ignore[arg-type]
    seen = Survey(
        "3.11.2", "/usr/bin/python3", "pi", ("pi",), "aarch64", Workdir("/w", "/", 10**10, None), conditions,
        0.02, (), True, False, {},
    )  # fmt: skip
    return dataclasses.replace(seen, **{k: v for k, v in fields.items() if k not in names})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "name", "ok", "words"),
    [
        ({}, "load", True, "0.02 of 4 CPUs"),
        ({"others_cpus": 1.5, "processes": (Process(77, "ffmpeg", 1.4),)}, "load", False, "ffmpeg (pid 77) 1.40"),
        ({"others_cpus": 0.2}, "load", True, "0.20 of 4"),
        ({"mem_available_bytes": 50_000_000}, "memory", False, "50 MB available, 200 MB needed"),
        ({"temperatures_c": {"cpu": 85.0}}, "temperature", False, "85 °C"),
        ({"governors": ("ondemand",) * 4}, "governor", True, "ondemand"),
        ({"cpu_mhz": (600.0, 1500.0)}, "clocks", True, "600 to 1500 MHz"),
        ({"cpu_mhz": None}, "clocks", True, "does not tell"),
        (
            {"throttled": None, "throttle_counts": {"core_throttle_count": 3}},
            "throttling",
            True,
            "core_throttle_count 3",
        ),
    ],
)
def test_health(fields: dict[str, object], name: str, ok: bool, words: str) -> None:
    check = {c.name: c for c in health(DeviceProfile(name="d"), of(**fields))}[name]
    assert check.ok is ok and words in check.detail
    assert ok or check.fix


@pytest.mark.parametrize(
    ("throttled", "ok", "words"),
    [
        ("0x0", True, "now: none; since boot: none"),
        ("0x50000", True, "since boot: under-voltage, throttled"),
        ("0x50005", False, "now: under-voltage, throttled"),
        ("0x8", False, "now: soft temperature limit"),
        ("\x1b[2J", True, "not understood: ?[2J"),
    ],
)
def test_what_a_raspberry_pi_says_of_throttling(throttled: str, ok: bool, words: str) -> None:
    check = throttling(of(throttled=throttled).conditions)
    assert check.ok is ok and words in check.detail


def test_a_sensor_without_permission_names_the_group_s_command(tmp_path: Path) -> None:
    device = tmp_path / "i2c-1"
    device.touch(mode=0o600)  # whatever group whoever runs this is in
    reason = permission.refused(str(device), "i2c").replace("root alone", "nobody")
    profile = DeviceProfile(name="d", sensor="ina219")
    check = sensor_line(profile, of(sensor=wire.SensorReading(reason=reason)))
    assert not check.ok and check.fix.startswith("On the device: sudo usermod -aG i2c ")
    hostile = "sudo usermod -aG i2c pi; rm -rf / #"
    check = sensor_line(profile, of(sensor=wire.SensorReading(reason=hostile)))
    assert check.fix == "On the device: sudo usermod -aG i2c pi, then log in again."


def test_what_auto_took_and_why() -> None:
    info = wire.SensorInfo(
        "rapl", "RAPL: package-0", "cpu-package", 0.05, 1e-3, 0.05, 0, chosen_because="no meter was found",
        notes=("better: an INA219",),
    )  # fmt: skip
    profile = DeviceProfile(name="d", sensor="auto")
    check = sensor_line(profile, of(sensor=wire.SensorReading(info, 7_000_000)))
    assert check.ok and check.fix == "better: an INA219"
    assert "RAPL: package-0: 7.000 W now" in check.detail and "chosen because no meter was found" in check.detail


def test_no_sensor_is_a_warning_where_none_is_named() -> None:
    nothing = wire.SensorReading(reason="nothing that reads power was found here")
    check = sensor_line(DeviceProfile(name="d", sensor="auto"), of(sensor=nothing))
    assert check.ok and check.warning and "energy is not measured" in check.detail and "sensor: none" in check.fix
    check = sensor_line(DeviceProfile(name="d", sensor="rapl"), of(sensor=nothing))
    assert not check.ok and not check.warning
    info = wire.SensorInfo("ina219", "an INA219", "board", 0.01, 1e-3, 0.01, 0)
    silent = wire.SensorReading(info=info, reason="it gives no new value")
    assert not sensor_line(DeviceProfile(name="d", sensor="auto"), of(sensor=silent)).ok, (
        "one that is there is to be read"
    )


@pytest.mark.parametrize(("late_s", "ok"), [(7200, False), (10, True)])
def test_a_clock_that_is_wrong(local_profile: DeviceProfile, tmp_path: Path, late_s: int, ok: bool) -> None:
    late = f"import time; print(time.time() - {late_s})"
    python = script(
        tmp_path / "python",
        f'case "$*" in *time.time*) exec {sys.executable} -c "{late}";; *) exec {sys.executable} "$@";; esac\n',
    )
    profile = with_python(local_profile, python)
    check = doctor_module._clock(profile, open_transport(profile), str(python), of())
    assert check.ok is ok and "timedatectl set-ntp true" in check.fix
    # half of what its Python takes to start is not known
    told = r"2\.0 hours behind" if late_s == 7200 else r"([5-9]|10)\.\d s behind"
    assert re.search(told, check.detail) and "±" in check.detail


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("echo nonsense", "ended with status 0 and said: nonsense"),
        ('echo \'{"python": "\\u001b[2J3.6"}\'', "Python ?[2J3.6"),
        ("echo '{\"user\": 3}'", "missing fields"),
        ('printf \'{"error": "\\\\u001b[31mred"}\'; exit 1', "?[31mred"),
        ("exec yes", "more than"),
        ("head -c 200000 /dev/zero | tr '\\\\0' '['", "ended with status 0"),
        ("kill -9 $$", "ended with status"),
    ],
)
def test_a_hostile_board_makes_one_red_line(
    local_profile: DeviceProfile, tmp_path: Path, answer: str, words: str
) -> None:
    hostile = script(tmp_path / "python", f'case "$1" in -c) echo 3.11;; *) {answer};; esac\n')
    checks = by_name(with_python(local_profile, hostile))
    red = [check for check in checks.values() if not check.ok]
    assert len(red) == 1 and words in red[0].detail and "Traceback" not in red[0].detail


@pytest.mark.slow
def test_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "here.yaml"
    file.write_text(f"name: here\nworkdir: {tmp_path}/workdir\npython: {tmp_path}/absent\n")
    assert main(["device", "doctor", str(file)]) == 1
    out = capsys.readouterr().out
    assert "ok    reachable" in out and "FAIL  python" in out and "→ Change python" in out
    assert main(["device", "doctor", str(file), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["device"] == "here" and told["ok"] is False
    assert [c["name"] for c in told["checks"]] == ["reachable", "files", "python", "os"]
    assert told == document(DeviceProfile(name="here"), [Check(**c) for c in told["checks"]])


@pytest.mark.slow
def test_the_look_leaves_no_file_where_there_is_no_memfd(local_profile: DeviceProfile, tmp_path: Path) -> None:
    """As with a Python that was built for an old glibc: the agent then runs from a file that has no name."""
    (tmp_path / "tmp").mkdir()
    gone = script(
        tmp_path / "python",
        f'[ "$2" = -c ] || exec {sys.executable} "$@"\ncode="import os; del os.memfd_create\n$3"; shift 3\n'
        f'TMPDIR={tmp_path}/tmp exec {sys.executable} -I -c "$code" "$@"\n',
    )
    profile = with_python(local_profile, gone)
    seen = survey.look(profile, open_transport(profile), str(gone), profile.workdir, engines=False)
    assert seen.executable == sys.executable and list((tmp_path / "tmp").iterdir()) == []
