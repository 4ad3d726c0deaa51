"""What must not happen: over a real sshd on loopback, with boards, directories and profiles that mean harm.

Each attack is refused with one clear message, and the surroundings of what it may write to are as they were.
docs/security.md lists the threats with the tests that show them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from edgecompress_agent import wire
from edgecompress_agent.store import try_lock
from pydantic import ValidationError

from edgecompress.board.agent import open_agent
from edgecompress.board.session import connect
from edgecompress.board.ssh import SshTransport
from edgecompress.board.transport import DeviceError, cleaned
from edgecompress.device_profile import DeviceProfile
from edgecompress.errors import StepFailed, UserError
from tests.board import hostile

if TYPE_CHECKING:
    from tests.board.conftest import Sshd

MakeProfile = Callable[..., DeviceProfile]
ROOT = Path(__file__).resolve().parents[2]
SECRET = "the secret of the machine"


class Surroundings:
    """Everything below a folder but what may be written to; `unchanged` compares it with how it was."""

    def __init__(self, folder: Path, *allowed: Path) -> None:
        self._folder, self._allowed = folder, allowed
        self._before = self._look()

    def _look(self) -> dict[str, tuple[Any, ...]]:
        found: dict[str, tuple[Any, ...]] = {}
        for path in (p for p in self._folder.rglob("*") if not any(p.is_relative_to(a) for a in self._allowed)):
            state = path.lstat()
            contents = path.read_bytes() if stat.S_ISREG(state.st_mode) else b""
            found[str(path)] = (state.st_mode, state.st_uid, hashlib.sha256(contents).hexdigest())
        return found

    def unchanged(self) -> None:
        assert self._look() == self._before


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that is nobody's business here, with a secret in it; the home and the current directory are empty ones."""
    for name in ("outside", "home", "cwd"):
        (tmp_path / name).mkdir(mode=0o700)
    (tmp_path / "outside" / "secret").write_text(SECRET)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "cwd")
    return tmp_path / "outside"


@pytest.fixture
def job(tmp_path: Path) -> tuple[wire.Job, dict[str, Path]]:
    """A job whose file is no model: no hostile board looks at it."""
    file = tmp_path / "model.onnx"
    file.write_bytes(b"a model")
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    return wire.Job("job-1", wire.Blob("model.onnx", sha256, 7), "onnxruntime", score=False, deadline_s=60), {
        sha256: file
    }


def ok(**fields: Any) -> str:
    """A result as the source of a bytes literal."""
    return repr(wire.encode(dataclasses.replace(wire.Result("job-1", "0" * 64, "ok"), **fields)))


def written(data: str) -> str:
    return f"open(result, 'wb').write({data})"


ATTACKS = {
    "endless output": ("while True: print('x' * 10000)", "printed more than"),
    "a link to a secret": ("os.symlink(outside + '/secret', result)", "is not a plain file"),
    "a pipe that nobody fills": ("os.mkfifo(result)", "is not a plain file"),
    "a link to an endless device": ("os.symlink('/dev/zero', result)", "is not a plain file"),
    "a directory": ("os.mkdir(result)", "is not a plain file"),
    "a file of 200 GB": ("open(result, 'wb').truncate(200 << 30)", "is larger than"),
    "deep nesting": (written("b'[' * 900000"), "not JSON"),
    "a bomb of lists": (written("b'[' + b'[],' * 20000000 + b'[]]'"), "20000002 lists, objects or texts"),
    "a bomb of texts": (written("b'[' + b'\"ab\",' * 9000000 + b'1]'"), "9000000 lists, objects or texts"),
    "a number without end": (written("b'{\"protocol\": ' + b'9' * 100000 + b'}'"), "not JSON"),
    "an infinite number": (written("b'{\"protocol\": 1e999}'"), "protocol inf"),
    "binary": (written("bytes(range(256)) * 100"), "not JSON"),
    "a compressed file": (written("__import__('zlib').compress(b'0' * 10**8)"), "not JSON"),
    "fields that are none of ours": (written("b'{\"protocol\": 2, \"path\": \"/etc/passwd\"}'"), "unknown fields"),
    "another job's result": (written(ok(job_id="../../outside/secret")), "it is for job ../../outside/secret"),
}  # fmt: skip


@pytest.mark.sshd
@pytest.mark.parametrize("attack", ATTACKS)
def test_a_hostile_board(
    ssh_profile: MakeProfile, tmp_path: Path, outside: Path, job: tuple[wire.Job, dict[str, Path]], attack: str
) -> None:
    source, words = ATTACKS[attack]
    profile = ssh_profile(python=str(hostile.board(tmp_path / "python", source, outside)))
    around, began = Surroundings(tmp_path, Path(profile.workdir)), time.monotonic()
    with connect(profile) as session, pytest.raises(DeviceError) as caught:
        session.measure(*job)
    message = str(caught.value)
    assert words in message and message.startswith("board: ") and len(message) < 600
    assert message.isprintable() and SECRET not in message
    assert time.monotonic() - began < 30
    around.unchanged()


@pytest.mark.sshd
def test_texts_of_a_result_are_cut_and_cannot_steer_a_terminal(
    ssh_profile: MakeProfile, tmp_path: Path, outside: Path, job: tuple[wire.Job, dict[str, Path]]
) -> None:
    result = ok(
        status="failed", reason="LONG", warnings=("\x1b[2J", "../../outside/secret"), sensor="\x9b31m",
        engine=wire.EngineInfo("x\x07", "y", "\x1b]0;z\x07", "2", ("\r",), 1, (), ()),
    )  # fmt: skip
    attack = written(f"{result}.replace(b'LONG', b'x' * 30000000)")
    profile = ssh_profile(python=str(hostile.board(tmp_path / "python", attack, outside)))
    around = Surroundings(tmp_path, Path(profile.workdir))
    with connect(profile) as session:
        got = session.measure(*job)
    assert got.reason == "…" + "x" * 4000 and got.warnings == ("?[2J", "../../outside/secret")
    assert got.engine is not None and (got.engine.name, got.engine.version) == ("x?", "?]0;z?")
    assert got.engine.providers == ("?",) and got.sensor == "?31m"
    assert cleaned(got) == got
    around.unchanged()


@pytest.mark.sshd
def test_nothing_that_a_device_sends_is_decompressed(make_sshd: Callable[..., Sshd], ssh_profile: MakeProfile) -> None:
    """A server that would compress what it sends is not let: no archive comes from a device, and no compressed stream."""
    server = make_sshd("Compression yes")
    transport = SshTransport(ssh_profile(server))
    assert transport._link.transport.remote_compression == "none"
    transport.close()
    server.stop()


PLACES = ("agent", "blobs", "jobs", "wheels", "venv", "jobs/job-1")
"""In the agent's directory."""
over_ssh_and_here = pytest.mark.parametrize(
    ("where", "place"),
    [
        *(("local", p) for p in PLACES),
        *(pytest.param("ssh", p, marks=pytest.mark.sshd) for p in ("agent", "jobs/job-1")),
    ],
)


@over_ssh_and_here
def test_links_in_the_agents_directory(
    request: pytest.FixtureRequest, local_profile: DeviceProfile, tmp_path: Path, outside: Path, where: str, place: str
) -> None:
    """As another user of the board would plant them, where he may write."""
    profile = request.getfixturevalue("ssh_profile")() if where == "ssh" else local_profile
    link = Path(profile.workdir) / place
    link.parent.mkdir(mode=0o700, parents=True)
    link.symlink_to(outside)
    around = Surroundings(tmp_path, Path(profile.workdir))
    _refused(profile, f"{link} is a symbolic link")
    around.unchanged()


@over_ssh_and_here
def test_directories_that_everybody_may_write_to(
    request: pytest.FixtureRequest, local_profile: DeviceProfile, tmp_path: Path, outside: Path, where: str, place: str
) -> None:
    profile = request.getfixturevalue("ssh_profile")() if where == "ssh" else local_profile
    for folder in (Path(profile.workdir) / place, Path(profile.workdir)):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o777)
        around = Surroundings(tmp_path, Path(profile.workdir))
        _refused(profile, f"every user there may write to {folder} ")
        assert place == "agent" or not (Path(profile.workdir) / place / "job.json").exists()
        assert place != "agent" or [p.name for p in folder.iterdir() if p.is_file()] == []  # nothing was put there
        around.unchanged()


def _refused(profile: DeviceProfile, words: str) -> None:
    """By the host before it writes; in a job's own directory, which it looks for only then, by the agent."""
    with pytest.raises((UserError, DeviceError)) as caught, connect(profile) as session:
        session.hello()
        session._agent.ask(wire.Status, "status", "job-1")
    assert words in str(caught.value) and str(caught.value).count("\n") <= 1
    if isinstance(caught.value, UserError):
        assert caught.value.fix.startswith("On the device: ")


def test_a_directory_of_another_user_or_below_one_that_is_open(local_profile: DeviceProfile, tmp_path: Path) -> None:
    workdir = Path(local_profile.workdir)
    workdir.mkdir(mode=0o700)
    if os.geteuid() == 0:
        os.chown(workdir, 54321, -1)
        with connect(local_profile) as session, pytest.raises(UserError, match="belongs to another user"):
            session.hello()
        os.chown(workdir, 0, -1)
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    below = local_profile.model_copy(update={"workdir": f"{tmp_path}/open/workdir"})
    with connect(below) as session, pytest.raises(UserError, match=r"may rename what is in .*/open "):
        session.hello()
    assert not (tmp_path / "open" / "workdir").exists()


def test_a_group_that_may_write_is_shut_out(local_profile: DeviceProfile) -> None:
    workdir = Path(local_profile.workdir)
    workdir.mkdir()
    workdir.chmod(0o775)
    agent = open_agent(local_profile)
    agent.refuse_workdir(agent.python, mend=False)
    agent.close()
    assert stat.S_IMODE(workdir.stat().st_mode) == 0o775, "a dry run changes nothing"
    agent = open_agent(local_profile)
    agent.bring()
    agent.close()
    assert stat.S_IMODE(workdir.stat().st_mode) == 0o755 and (workdir / "agent").is_dir()


@pytest.mark.sshd
@pytest.mark.heavy
@pytest.mark.parametrize("where", ["local", "ssh"])
def test_what_is_left_on_a_board_is_its_users_alone(
    make_sshd: Callable[..., Sshd], ssh_profile: MakeProfile, local_profile: DeviceProfile, tmp_path: Path, where: str
) -> None:
    """Where the board itself would have everything open to everybody (umask 000)."""
    from tests.agent import tiny_models

    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\numask 000\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    profile = local_profile.model_copy(update={"python": str(python)})
    server = make_sshd("Subsystem sftp internal-sftp -u 0000") if where == "ssh" else None
    if server is not None:
        profile = ssh_profile(server, python=str(python))
    file = tiny_models.write_onnx(tmp_path / "tiny.onnx")
    given = wire.Blob(file.name, hashlib.sha256(file.read_bytes()).hexdigest(), file.stat().st_size)
    one = wire.Job("job-1", given, "onnxruntime", warmup_s=0.05, min_s=0.1, blocks=2, score=False, deadline_s=60)
    before = os.umask(0o000)
    try:
        with connect(profile) as session:
            assert session.measure(one, {given.sha256: file}).status == "ok"
            agent = session._agent
            agent.again(lambda t: t.mkdirs(f"{agent.root}/jobs/job-2"))
            job_2 = wire.encode(dataclasses.replace(one, job_id="job-2"))
            agent.again(lambda t: t.put(job_2, f"{agent.root}/jobs/job-2/job.json"))
            agent.ask(wire.Status, "start", "job-2")
            while agent.ask(wire.Status, "status", "job-2").state != "done":
                time.sleep(0.1)
            ended = try_lock(Path(profile.workdir) / "jobs/job-2/lock", wait_s=60)  # its files come and go until then
            assert ended is not None
            os.close(ended)
            modes = _modes(Path(profile.workdir))
            agent.verb("clean", "job-2")
    finally:
        os.umask(before)
        if server is not None:
            server.stop()
    assert {"agent", "blobs", "jobs/job-2", "jobs/job-2/result.json", "jobs/job-2/log", "lock"} <= set(modes)
    assert {name: oct(mode) for name, mode in modes.items() if mode & 0o077} == {}


def _modes(folder: Path) -> dict[str, int]:
    found = {str(p.relative_to(folder)): stat.S_IMODE(p.lstat().st_mode) for p in folder.rglob("*")}
    return found | {".": stat.S_IMODE(folder.stat().st_mode)}


@pytest.mark.sshd
def test_what_is_left_here_is_its_users_alone(ssh_profile: MakeProfile, tmp_path: Path) -> None:
    pinned = tmp_path / "home" / ".ssh" / "known_hosts"
    profile = ssh_profile(pinned=False, known_hosts=pinned)
    (tmp_path / "board.yaml").write_text(yaml.safe_dump(profile.model_dump(mode="json", exclude_unset=True)))
    command = f"umask 000; exec {sys.executable} -m edgecompress device trust {tmp_path}/board.yaml --yes"
    subprocess.run(["sh", "-c", command], check=True, capture_output=True, stdin=subprocess.DEVNULL)
    assert stat.S_IMODE(pinned.stat().st_mode) == 0o600 and stat.S_IMODE(pinned.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(pinned.parent.parent.stat().st_mode) & 0o022 == 0


BAD = ("; touch {0}", "x\n  ProxyCommand touch {0}", "$(touch {0})", "`touch {0}`", "-oProxyCommand=touch {0}", "%n;touch {0}",
       "\x1b[2J", "-x")  # fmt: skip
REFUSED = {
    "name",
    "host",
    "user",
    "python",
    "workdir",
    "providers",
    "sensor",
    "scope",
    "transport",
    "engines",
    "meter_at",
}
"""Fields that take none of these values at all."""


@pytest.mark.sshd
def test_hostile_values_in_a_profile(ssh_profile: MakeProfile, sshd: Sshd, tmp_path: Path, outside: Path) -> None:
    """In every field. What is not refused when the profile is read reaches no shell, here or there, when it is used."""
    through = (
        "import socket, sys, threading, os; s = socket.create_connection((sys.argv[1], int(sys.argv[2])));"
        "t = threading.Thread(target=lambda: [s.sendall(d) for d in iter(lambda: os.read(0, 65536), b'')], daemon=True);"
        "t.start(); [os.write(1, d) for d in iter(lambda: s.recv(65536), b'')]"
    )
    (tmp_path / "connect.py").write_text(through)
    good = ssh_profile()
    assert good.ssh_config is not None
    # OpenSSH's own way of being talked into this: %h and %r of a name that somebody else chose, in a shell's line
    good.ssh_config.write_text(
        f"Host *\n  ProxyCommand {sys.executable} {tmp_path}/connect.py 127.0.0.1 {sshd.port} %h %r\n"
    )
    values = good.model_dump(mode="json", exclude_unset=True)
    assert _use(DeviceProfile.model_validate(values)) is None
    around, used = Surroundings(tmp_path, Path(good.workdir)), set()
    for field in DeviceProfile.model_fields:
        for bad in (text.format(outside / "touched") for text in BAD):
            given: Any = {"sensor_options": {"path": bad}, "providers": [bad], "engines": {"onnx": bad}}.get(field, bad)
            more = {"sensor": "replay"} if field == "sensor_options" else {}
            try:
                profile = DeviceProfile.model_validate(values | more | {field: given})
            except ValidationError:
                continue
            assert field not in REFUSED, f"{field} took {bad!r}"
            used.add(field)
            said = _use(profile)
            assert said is None or "Traceback" not in said
            assert not (outside / "touched").exists(), f"{field}: {bad!r} was run"
    assert used >= {"identity_file", "known_hosts", "ssh_config", "sensor_options"}
    around.unchanged()


def _use(profile: DeviceProfile) -> str | None:
    """Connect, send the agent, read the sensor; what it was refused with."""
    from edgecompress.board.reading import read_once

    try:
        agent = open_agent(profile)
        try:
            agent.bring()
            return read_once(profile, agent).reason if profile.sensor != "none" else None
        finally:
            agent.close()
    except (UserError, StepFailed) as error:
        return str(error)


@pytest.mark.heavy
@pytest.mark.slow
def test_a_study_on_a_board_that_lies_touches_its_run_directory_only(tmp_path: Path, outside: Path) -> None:
    """The board measures, and then writes into its results what would harm a terminal, a report or a file of this machine."""
    lie = "../../../outside/secret <script>alert(1)</script> \x1b[2J \x9b =cmd|'/c calc'!A1"
    tampering = tmp_path / "python"
    tampering.write_text(f"""#!{sys.executable}
import json, os, subprocess, sys, time
done = subprocess.run([{sys.executable!r}, *sys.argv[1:]])
if sys.argv[3:4] == ["start"]:
    file = sys.argv[4] + "/jobs/" + sys.argv[5] + "/result.json"
    while not os.path.exists(file):
        time.sleep(0.05)
    result, lie = json.load(open(file)), {lie!r}
    result["engine"].update(name=lie, package=lie, version=lie)
    result["warnings"] = [lie]
    for now in result["conditions"]:
        now.update(board=lie, cpu_model=lie, os=lie, governors=[lie], power_mode=lie)
    json.dump(result, open(file, "w"))
sys.exit(done.returncode)
""")
    tampering.chmod(0o755)
    (tmp_path / "liar.yaml").write_text(yaml.safe_dump(
        {"name": "liar", "python": str(tampering), "workdir": str(tmp_path / "workdir")}
    ))  # fmt: skip
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({
        "name": "lied-to", "model": {"name": "lenet5"}, "data": {"name": "digits", "calibration_images": 64},
        "baseline": {"epochs": 1, "lr": 0.02, "batch_size": 64}, "recipes": {"baseline": []}, "formats": ["onnx-fp32"],
        "devices": ["liar.yaml"], "measure": {"warmup_s": 0.05, "min_s": 0.1, "blocks": 2},
    }))  # fmt: skip
    around = Surroundings(tmp_path, tmp_path / "workdir", tmp_path / "run", tmp_path / "home" / ".cache")
    command = f"umask 000; exec {sys.executable} -m edgecompress run {tmp_path}/study.yaml --out {tmp_path}/run"
    environment = os.environ | {"MPLCONFIGDIR": str(tmp_path / "home" / ".cache")}  # matplotlib has files of its own
    done = subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, stdin=subprocess.DEVNULL, env=environment
    )
    assert done.returncode == 0, done.stderr
    around.unchanged()
    said = done.stdout + done.stderr
    assert re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", said) is None
    assert "<script>alert" not in (tmp_path / "run" / "report.html").read_text()
    assert "?[2J" in json.dumps(json.loads((tmp_path / "run" / "results.json").read_text())["rows"][0]["warnings"])
    assert {name: oct(mode) for name, mode in _modes(tmp_path / "run").items() if mode & 0o022} == {}


def test_the_list_of_threats_names_tests_that_exist() -> None:
    """docs/security.md: every row names tests, and each is there."""
    rows = [line for line in (ROOT / "docs" / "security.md").read_text().splitlines() if line.startswith("| ")][2:]
    named = [(row, re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row)) for row in rows]
    assert len(rows) > 15
    for row, tests in named:
        assert tests, f"no test: {row}"
        for file, name in tests:
            assert re.search(rf"^def {name}\(", (ROOT / file).read_text(), re.MULTILINE), f"{file} has no {name}"


def _tests(file: Path) -> Iterator[str]:
    yield from re.findall(r"^def (test_\w+)\(", file.read_text(), re.MULTILINE)


def test_every_test_here_is_in_the_list() -> None:
    text = (ROOT / "docs" / "security.md").read_text()
    missing = [name for name in _tests(Path(__file__)) if "list" not in name and name not in text]
    assert not missing
