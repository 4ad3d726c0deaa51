"""Jobs of the real agent through both transports, and everything that may break meanwhile."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from edgecompress_agent import wire

from edgecompress.board.session import connect
from edgecompress.board.transport import DeviceError
from edgecompress.device_profile import DeviceProfile
from edgecompress.errors import StepFailed, UserError

if TYPE_CHECKING:
    from tests.board.loopback import Proxy, Sshd

pytestmark = pytest.mark.heavy

MakeProfile = Callable[..., DeviceProfile]
IMAGES = 40


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A linear classifier of 8 × 8 images as an ONNX file, and images with it: name → file."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    folder, random = tmp_path_factory.mktemp("files"), np.random.default_rng(0)
    weight = numpy_helper.from_array(random.normal(size=(64, 10)).astype(np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["input"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["logits"])],
        "linear",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 10])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "linear.onnx")
    np.save(folder / "images.npy", random.integers(0, 256, (IMAGES, 8, 8, 1), dtype=np.uint8))
    return {"artifact": folder / "linear.onnx", "images": folder / "images.npy"}


def blob(path: Path) -> wire.Blob:
    data = path.read_bytes()
    return wire.Blob(path.name, hashlib.sha256(data).hexdigest(), len(data))


@pytest.fixture
def job(files: dict[str, Path]) -> wire.Job:
    return wire.Job(
        job_id="job-1",
        artifact=blob(files["artifact"]),
        engine="onnxruntime",
        images=blob(files["images"]),
        mean=(0.5,),
        std=(0.5,),
        warmup_s=0.05,
        min_s=0.2,
        blocks=2,
        deadline_s=60,
    )


@pytest.fixture
def blobs(files: dict[str, Path]) -> dict[str, Path]:
    return {blob(path).sha256: path for path in files.values()}


class Seen:
    """A progress that remembers. sent: the bars of uploads, each with its size."""

    def __init__(self) -> None:
        self.done, self.texts, self.sent = 0.0, list[str](), list[tuple[Seen, float]]()

    @contextmanager
    def task(self, label: str, total: float | None) -> Iterator[Seen]:
        if ": sending " in label:
            assert total is not None
            self.sent.append((Seen(), total))
            yield self.sent[-1][0]
        else:
            assert total == 1.0
            yield self

    def advance(self, steps: float = 1) -> None:
        assert steps >= 0
        self.done += steps

    def describe(self, text: str) -> None:
        self.texts.append(text)

    def say(self, text: str) -> None:
        self.texts.append(text)


def jobs_left(profile: DeviceProfile) -> list[str]:
    return [p.name for p in (Path(profile.workdir) / "jobs").iterdir()]


def wait_until_it_measures(profile: DeviceProfile, job: wire.Job) -> None:
    """Until the job's worker is at work (its process has started and loads or runs the model)."""
    file, until = Path(profile.workdir) / "jobs" / job.job_id / "progress.json", time.monotonic() + 60
    while time.monotonic() < until:
        with suppress(FileNotFoundError):
            if json.loads(file.read_bytes())["phase"] not in ("waiting", "starting"):
                return
        time.sleep(0.02)
    raise AssertionError("the job was not started")


def in_the_middle(profile: DeviceProfile, job: wire.Job, *actions: Callable[[], None]) -> threading.Thread:
    """Do the actions, half a second apart, once the job is at work."""

    def act() -> None:
        wait_until_it_measures(profile, job)
        for action in actions:
            action()
            time.sleep(0.5)

    thread = threading.Thread(target=act)
    thread.start()
    return thread


@pytest.mark.sshd
def test_the_same_job_through_both_transports(
    local_profile: DeviceProfile,
    ssh_profile: MakeProfile,
    job: wire.Job,
    blobs: dict[str, Path],
    files: dict[str, Path],
) -> None:
    results, inodes = [], []
    for profile in (local_profile, ssh_profile()):
        seen = Seen()
        with connect(profile) as session:
            results.append(session.measure(job, blobs, seen, "x"))
            sent = Path(profile.workdir) / "blobs" / job.artifact.sha256
            inodes.append(sent.stat().st_ino)
            assert session.measure(dataclasses.replace(job, job_id="job-2"), blobs).status == "ok"
            assert sent.stat().st_ino == inodes[-1]  # the second job found the files there
        assert seen.done == pytest.approx(1.0) and any("sending linear.onnx" in t for t in seen.texts)
        assert (
            [bar.done for bar, _ in seen.sent]
            == [total for _, total in seen.sent]
            == [f.stat().st_size for f in files.values()]
        )
        assert jobs_left(profile) == []
        assert len(list((Path(profile.workdir) / "agent").iterdir())) == 1
    here, there = results
    assert here.status == there.status == "ok" and here.job_id == "job-1"
    assert here.predictions == there.predictions and here.agent_sha256 == there.agent_sha256
    # and they are what numpy says
    import onnx
    from onnx import numpy_helper

    weight = numpy_helper.to_array(onnx.load(files["artifact"]).graph.initializer[0])
    flat = ((np.load(files["images"]) / 255 - 0.5) / 0.5).astype(np.float32).reshape(IMAGES, 64)
    assert here.predictions is not None
    assert [p[0] for p in here.predictions] == (flat @ weight).argmax(1).tolist()
    assert sum(n for b in there.blocks for n in b.latencies_ns) >= 0.2e9 * 0.5  # the loop, and others, take the rest


@pytest.mark.sshd
def test_a_link_cut_in_the_middle_loses_nothing(
    ssh_profile: MakeProfile, proxy: Proxy, job: wire.Job, blobs: dict[str, Path]
) -> None:
    profile, seen = ssh_profile(port=proxy.port), Seen()
    with connect(profile) as session:
        thread = in_the_middle(profile, job, proxy.cut, proxy.mend)
        result = session.measure(dataclasses.replace(job, min_s=1.5), blobs, seen)
        thread.join()
    assert result.status == "ok" and proxy.accepted >= 2
    assert any("link lost" in text for text in seen.texts)
    assert len([b for b in result.blocks if b.latencies_ns]) == 2


@pytest.mark.sshd
def test_a_link_cut_at_many_moments(
    ssh_profile: MakeProfile, proxy: Proxy, job: wire.Job, blobs: dict[str, Path]
) -> None:
    """Cut again and again while files are sent and the job is started, waited for and collected."""
    stop = threading.Event()

    def nuisance() -> None:
        while not stop.wait(0.45):
            proxy.cut(refuse=False)

    with connect(ssh_profile(port=proxy.port, reconnect_s=60)) as session:
        session.hello()
        thread = threading.Thread(target=nuisance)
        thread.start()
        # A pause between cuts is shorter than what hello and a handshake take together: let it go after a while.
        threading.Timer(4.0, stop.set).start()
        try:
            result = session.measure(job, blobs)
        finally:
            stop.set()
            thread.join()
    assert result.status == "ok" and proxy.accepted > 2


@pytest.mark.sshd
def test_sshd_killed_in_the_middle(ssh_profile: MakeProfile, sshd: Sshd, job: wire.Job, blobs: dict[str, Path]) -> None:
    profile = ssh_profile()
    with connect(profile) as session:
        thread = in_the_middle(profile, job, sshd.stop, lambda: None, lambda: sshd.start() and None)
        result = session.measure(dataclasses.replace(job, min_s=1.5), blobs)
        thread.join()
    assert result.status == "ok"


_HOST = """
import json, sys
from pathlib import Path
from edgecompress_agent import wire
from edgecompress.board.session import connect
from edgecompress.device_profile import DeviceProfile
given = json.loads(sys.stdin.read())
with connect(DeviceProfile.model_validate(given["profile"])) as session:
    session.hello()
    print("ready", flush=True)
    result = session.measure(wire.from_json(wire.Job, given["job"]), {k: Path(v) for k, v in given["blobs"].items()})
    sys.stdout.buffer.write(wire.encode(result))
"""


@pytest.mark.parametrize("transport", ["local", pytest.param("ssh", marks=pytest.mark.sshd)])
def test_a_host_killed_in_the_middle_collects_when_run_again(
    request: pytest.FixtureRequest, transport: str, job: wire.Job, blobs: dict[str, Path]
) -> None:
    profile: DeviceProfile = request.getfixturevalue("local_profile")
    if transport == "ssh":
        profile = request.getfixturevalue("ssh_profile")()
    job = dataclasses.replace(job, min_s=3.0)
    given = {
        "profile": profile.model_dump(mode="json"),
        "job": wire.to_json(job),
        "blobs": {k: str(v) for k, v in blobs.items()},
    }
    host = subprocess.Popen([sys.executable, "-c", _HOST], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert host.stdin and host.stdout
    host.stdin.write(json.dumps(given).encode())
    host.stdin.close()
    assert host.stdout.readline() == b"ready\n"
    wait_until_it_measures(profile, job)
    time.sleep(0.3)
    host.kill()
    host.wait()
    killed_at = time.time()
    with connect(profile) as session:
        result = session.measure(job, blobs)
    assert result.status == "ok" and result.started_unix_s is not None
    assert result.started_unix_s < killed_at  # it is the job that the first host started
    assert jobs_left(profile) == []


def kill_supervisor(profile: DeviceProfile, job: wire.Job) -> None:
    """Kill a job's supervisor and worker as soon as it runs."""
    pid_file = Path(profile.workdir) / "jobs" / job.job_id / "pid"
    until = time.monotonic() + 20
    while time.monotonic() < until:
        with suppress(OSError, ValueError):
            pid = int(pid_file.read_text().split()[0])
            if os.getpgid(pid) == pid or os.getsid(pid) == os.getpgid(pid):
                os.killpg(os.getpgid(pid), signal.SIGKILL)
                return
        time.sleep(0.02)


def test_an_agent_that_was_killed_starts_once_more(
    local_profile: DeviceProfile, job: wire.Job, blobs: dict[str, Path]
) -> None:
    with connect(local_profile) as session:
        session.hello()
        killer = threading.Thread(target=kill_supervisor, args=(local_profile, job))
        killer.start()
        result = session.measure(dataclasses.replace(job, min_s=1.0), blobs)
        killer.join()
    assert result.status == "ok"


def test_an_agent_that_is_killed_each_time_is_given_up_with_its_log(
    local_profile: DeviceProfile, job: wire.Job, blobs: dict[str, Path]
) -> None:
    stop = threading.Event()

    def kill_all() -> None:
        while not stop.is_set():
            kill_supervisor(local_profile, job)

    killer = threading.Thread(target=kill_all)
    killer.start()
    try:
        with connect(local_profile) as session, pytest.raises(StepFailed, match="lost twice"):
            session.measure(dataclasses.replace(job, min_s=30.0), blobs)
    finally:
        # kill_supervisor waits for a pid file: let it find the ended job's and end
        stop.set()
        killer.join()


@pytest.mark.sshd
def test_a_lost_device_is_given_up_in_time(
    ssh_profile: MakeProfile, request: pytest.FixtureRequest, job: wire.Job, blobs: dict[str, Path]
) -> None:
    proxy: Proxy = request.getfixturevalue("proxy")
    with connect(ssh_profile(port=proxy.port, reconnect_s=1)) as session:
        session.hello()
        proxy.cut()
        began = time.monotonic()
        with pytest.raises(StepFailed, match="tried again for 1 s"):
            session.measure(job, blobs)
        assert time.monotonic() - began < 15
        proxy.mend()
        assert session.measure(job, blobs).status == "ok"


@pytest.mark.sshd
def test_a_device_that_is_off(ssh_profile: MakeProfile, proxy: Proxy) -> None:
    profile = ssh_profile(port=proxy.port)
    proxy.stop()
    with pytest.raises(StepFailed, match=r"cannot be reached.*Is it on"):
        connect(profile)


def with_python(profile: DeviceProfile, python: Path) -> DeviceProfile:
    return profile.model_copy(update={"python": str(python)})


def script(path: Path, text: str) -> Path:
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return path


def test_a_python_without_engine_and_numpy(local_profile: DeviceProfile, tmp_path: Path, job: wire.Job) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "bare")], check=True)
    with connect(with_python(local_profile, tmp_path / "bare/bin/python")) as session:
        assert session.hello().numpy is None
        with pytest.raises(UserError, match="no usable onnxruntime") as caught:
            session.measure(job, {})
        assert "pip install" in caught.value.fix
    board = local_profile.model_copy(update={"transport": "ssh", "python": str(tmp_path / "bare/bin/python")})
    from edgecompress.board.agent import Agent
    from edgecompress.board.local import LocalTransport

    agent = Agent(board, LocalTransport(board))
    assert agent.setup_hint().startswith("Install it there: edgecompress device setup here")
    (Path(agent.root) / "venv-unfinished").touch()
    agent.profile = board.model_copy(update={"python": None})
    assert agent.setup_hint().startswith(
        "`device setup` is at work there: wait for it. If it was interrupted: Install it"
    )


def test_a_python_that_is_missing_or_too_old(local_profile: DeviceProfile, tmp_path: Path) -> None:
    old = script(tmp_path / "old", 'case "$1" in -c) echo banner; echo 3.6;; *) echo SyntaxError >&2; exit 1;; esac\n')
    for python, message in [(old, r"Python 3\.6; the agent needs 3\.8"), (tmp_path / "absent", "no Python at")]:
        with connect(with_python(local_profile, python)) as session, pytest.raises(UserError, match=message):
            session.hello()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("echo nonsense", "ended with status 0 and said: nonsense"),
        ("echo '{\"protocol\": 99}'", "protocol"),
        ('printf \'{"error": "\\\\u001b[31mred"}\'; exit 1', r"\?\[31mred"),
        ("exec yes", "more than"),
        ("head -c 200000 /dev/zero | tr '\\\\0' '['", "ended with status 0"),
        ("kill -9 $$", "ended with status"),
    ],
)
def test_a_hostile_agent(local_profile: DeviceProfile, tmp_path: Path, answer: str, message: str) -> None:
    hostile = script(tmp_path / "python", f'case "$1" in -c) echo 3.11;; *) {answer};; esac\n')
    with connect(with_python(local_profile, hostile)) as session, pytest.raises(DeviceError, match=message):
        session.hello()


def test_a_damaged_agent_is_sent_again(local_profile: DeviceProfile) -> None:
    with connect(local_profile) as session:
        sha256 = session.hello().agent_sha256
    (file,) = (Path(local_profile.workdir) / "agent").iterdir()
    whole = file.read_bytes()
    for damaged in (whole[:1000], whole + b"\n", b""):
        file.write_bytes(damaged)
        with connect(local_profile) as session:
            assert session.hello().agent_sha256 == sha256
        assert file.read_bytes() == whole


def test_damaged_files(local_profile: DeviceProfile, tmp_path: Path, job: wire.Job, blobs: dict[str, Path]) -> None:
    with connect(local_profile) as session:
        assert session.measure(job, blobs).status == "ok"
        sent = Path(local_profile.workdir) / "blobs" / job.artifact.sha256
        sent.write_bytes(sent.read_bytes()[:-1] + b"?")
        assert session.measure(job, blobs).status == "ok"
        other = tmp_path / "changed.onnx"
        other.write_bytes(b"not what was promised")
        sent.unlink()
        with pytest.raises(DeviceError, match=r"linear\.onnx arrived damaged twice"):
            session.measure(job, blobs | {job.artifact.sha256: other})


def test_a_failed_job_is_a_result(local_profile: DeviceProfile, tmp_path: Path, job: wire.Job) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    job = dataclasses.replace(job, artifact=blob(broken), images=None, score=False)
    with connect(local_profile) as session:
        result = session.measure(job, {job.artifact.sha256: broken})
    assert result.status == "failed" and result.reason
    assert jobs_left(local_profile) == []


def test_a_provider_that_is_not_there(local_profile: DeviceProfile, job: wire.Job, blobs: dict[str, Path]) -> None:
    with connect(local_profile) as session, pytest.raises(UserError, match=r"no NoSuchExecutionProvider; it has .*CPU"):
        session.measure(dataclasses.replace(job, providers=("NoSuchExecutionProvider",)), blobs)


def left_behind(profile: DeviceProfile, job: wire.Job, result: bytes) -> Path:
    """The folder of a job on the board that has a result, as if an earlier run had been killed before it collected it."""
    folder = Path(profile.workdir) / "jobs" / job.job_id
    folder.mkdir(parents=True)
    (folder / "job.json").write_bytes(wire.encode(job))
    (folder / "result.json").write_bytes(result)
    return folder


def test_an_old_job_of_this_id_with_other_contents_is_not_collected(
    local_profile: DeviceProfile, job: wire.Job, blobs: dict[str, Path]
) -> None:
    with connect(local_profile) as session:
        session.hello()
        old = wire.Result(job.job_id, "0" * 64, "failed", reason="old")
        left_behind(local_profile, dataclasses.replace(job, threads=2), wire.encode(old))
        assert session.measure(job, blobs).status == "ok"


@pytest.mark.parametrize("result", [b"", b"{}", b"\xff" * 100, b'{"protocol": 2}', b"[" * 100_000])
def test_a_result_that_is_none_is_refused_and_measured_anew_when_asked_again(
    local_profile: DeviceProfile, job: wire.Job, blobs: dict[str, Path], result: bytes
) -> None:
    with connect(local_profile) as session:
        session.hello()
        folder = left_behind(local_profile, job, result)
        with pytest.raises(DeviceError, match="its result is not one"):
            session.measure(job, blobs)
        assert not folder.exists()


def test_what_a_result_says_cannot_reach_the_terminal_raw(
    local_profile: DeviceProfile, job: wire.Job, blobs: dict[str, Path]
) -> None:
    with connect(local_profile) as session:
        session.hello()
        said = wire.Result(job.job_id, "0" * 64, "failed", reason="\x1b]0;x\x07", warnings=("\x1b[31m",))
        left_behind(local_profile, job, wire.encode(said))
        result = session.measure(job, blobs)
    assert (result.reason, result.warnings) == ("?]0;x?", ("?[31m",))


def test_two_hosts_at_once_take_turns(local_profile: DeviceProfile, job: wire.Job, blobs: dict[str, Path]) -> None:
    results: dict[str, wire.Result] = {}
    seen = Seen()

    def measure(name: str, progress: Seen) -> None:
        with connect(local_profile) as session:
            results[name] = session.measure(dataclasses.replace(job, job_id=name, min_s=2.0), blobs, progress)

    threads = [threading.Thread(target=measure, args=(name, seen)) for name in ("first", "second")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(180)
    spans = sorted((r.blocks[0].start_ns, r.blocks[-1].start_ns) for r in results.values())
    assert len(spans) == 2 and spans[0][1] < spans[1][0]  # both clocks are this machine's
    assert "another job, or `device setup`, has the board" in seen.texts


@pytest.mark.sshd
def test_two_workstations_take_turns(
    ssh_profile: MakeProfile, tmp_path: Path, job: wire.Job, blobs: dict[str, Path]
) -> None:
    """Two processes with homes of their own, each with its own connection to the board: never two measurements at once."""
    profile, running = ssh_profile(), []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        given = {
            "profile": profile.model_dump(mode="json"),
            "job": wire.to_json(dataclasses.replace(job, job_id=name, min_s=2.0)),
            "blobs": {k: str(v) for k, v in blobs.items()},
        }
        host = subprocess.Popen(
            [sys.executable, "-c", _HOST], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env={**os.environ, "HOME": str(tmp_path / name)},
        )  # fmt: skip
        assert host.stdin
        host.stdin.write(json.dumps(given).encode())
        host.stdin.close()
        running.append(host)
    results = []
    for host in running:
        assert host.stdout
        results.append(wire.decode(wire.Result, host.stdout.read().split(b"\n", 1)[1]))
        assert host.wait() == 0
    spans = sorted((r.blocks[0].start_ns, r.blocks[-1].start_ns + sum(r.blocks[-1].latencies_ns)) for r in results)
    assert spans[0][1] <= spans[1][0]
    assert jobs_left(profile) == []


def test_what_nobody_used_is_removed_once_a_session(
    local_profile: DeviceProfile, job: wire.Job, blobs: dict[str, Path]
) -> None:
    seen, board = Seen(), Path(local_profile.workdir)
    old = [
        board / "blobs" / ("1" * 64),
        board / "jobs" / "forgotten" / "result.json",
        board / "agent" / f"{'1' * 64}.pyz",
    ]

    def forget() -> None:
        for file in old:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"x" * 100_000)
            for path in (file, file.parent):
                os.utime(path, (time.time() - 40 * 86400,) * 2)

    with connect(local_profile) as session:
        forget()
        assert session.measure(job, blobs, seen).status == "ok"
        assert not any(file.exists() for file in old)
        assert seen.texts.count("here: removed 3 files and jobs there (0.3 MB), unused for 30 days") == 1
        forget()
        assert session.measure(dataclasses.replace(job, job_id="job-2"), blobs, seen).status == "ok"
        assert all(file.exists() for file in old)
    for days, kept in ((None, True), (45.0, True), (1.0, False)):
        with connect(local_profile.model_copy(update={"keep_days": days})) as session:
            assert session.measure(dataclasses.replace(job, job_id="job-3"), blobs).status == "ok"
            assert all(file.exists() == kept for file in old)
