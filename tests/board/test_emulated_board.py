"""An arm64 board under qemu with an INA219 whose truth is known: engines, accuracies, energy, faults. Started by `make board` only.

Its times say nothing about a board's. EDGECOMPRESS_BOARD_OUT names a folder for the raw figures (docs/results/boards).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from edgecompress_agent import wire

from edgecompress.board import bundle, hostmeter, survey
from edgecompress.board.agent import open_agent
from edgecompress.board.doctor import doctor, sensor_line
from edgecompress.board.provision import setup
from edgecompress.board.session import connect
from edgecompress.board.transport import open_transport
from edgecompress.energy import summarise
from edgecompress.energy.trace import Readings
from tests.board.emulated import image
from tests.board.emulated.board import DRIVER_OPTIONS, OPTIONS, Board
from tests.board.emulated.waveform import Waveform, shapes

pytestmark = [pytest.mark.emulated, pytest.mark.slow, pytest.mark.timeout(3000)]

PERIODS_MS = {"ina219": (10, 37, 100, 330, 1000), "hwmon": (10, 1000)}
WINDOWS, WINDOW_S = 2, 10.0
"""Windows of the default length."""
LIMIT = 0.005


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[bool], Board]]:
    """Resumes the board with one of its two clocks, when a test needs it. One runs at a time."""
    why = image.why_not_here()
    if why is None and os.environ.get("EDGECOMPRESS_BOARD") != "1":
        why = "runs for half an hour: started by `make board` only"
    if why is not None:
        pytest.skip(why)
    from tests.board.emulated.guest import Guest, free_port, prepare

    prepare()
    running: dict[bool, Board] = {}

    def make(counted: bool) -> Board:
        if counted not in running:
            for other in running.values():
                other.guest.stop()
            running.clear()
            guest = Guest(tmp_path_factory.mktemp("guest"), free_port(), counted=counted)
            running[counted] = Board(guest)
            _record(f"machine-{'counted' if counted else 'real'}", running[counted].begin())
        return running[counted]

    yield make
    for board in running.values():
        board.guest.stop()


@pytest.fixture
def board(start: Callable[[bool], Board]) -> Iterator[Board]:
    """With this machine's clock."""
    yield start(False)
    start(False).heal()


@pytest.fixture
def counted(start: Callable[[bool], Board]) -> Iterator[Board]:
    """With a clock that counts its instructions: what else runs here hardly enters what it measures."""
    yield start(True)
    start(True).heal()


def _record(name: str, data: Any) -> None:
    out = os.environ.get("EDGECOMPRESS_BOARD_OUT")
    if out:
        Path(out).mkdir(parents=True, exist_ok=True)
        (Path(out) / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n")


def _sample(
    board: Board, sensor: str, options: dict[str, Any], waveforms: Sequence[Waveform]
) -> Iterator[tuple[wire.Power, int]]:
    """Windows of each waveform with the agent's sensor and sampler, nothing beside them, as the board's own user; and when the
    waveform began on the board's clock."""
    root = board.guest.ssh("echo ~board").strip() + "/sampling"
    script = Path(__file__).parent / "emulated" / "sampling.py"
    for name, data in (("agent.pyz", bundle.build()[0]), ("sampling.py", script.read_bytes())):
        board.guest.ssh(f"mkdir -p {root}; cat > {root}/{name}", user="board", stdin=data)
    command = f"python3 -I {root}/sampling.py {root}/agent.pyz {sensor} '{json.dumps(options)}' {WINDOWS} {WINDOW_S}"
    for line in board.guest.lines(command, "".join(f"{w.text}\n" for w in waveforms), user="board"):
        value = json.loads(line)
        yield wire.from_json(wire.Power, value["power"]), value["begun_ns"]


def _errors(power: wire.Power, waveform: Waveform, begun_ns: int) -> list[float]:
    """Of each window: measured energy over true energy, less 1."""
    readings = Readings.of(power.trace)
    active = [w for w in power.windows if w.kind == "power"]
    return [readings.joules(*readings.seconds(w)) / waveform.joules(begun_ns, w.start_ns, w.end_ns) - 1 for w in active]


def _counts(trace: wire.Trace) -> dict[str, int]:
    return {
        "readings": len(trace.t_ns), "stale": trace.stale, "late": trace.late, "dropped": trace.dropped,
        "overflows": trace.overflows,
    }  # fmt: skip


def test_the_engines_were_installed_offline_and_doing_it_again_sends_nothing(board: Board) -> None:
    began = time.monotonic()
    lines = setup(board.profile(), offline=True)
    _record("setup", {"lines": lines, "again_s": time.monotonic() - began})
    assert any(line.startswith("onnxruntime 1.") for line in lines) and any(
        line.startswith("litert 2.") for line in lines
    )


def test_doctor_reads_the_chip_and_names_every_fault(board: Board) -> None:
    begun = shapes(10_000_000)["constant"]
    board.play(begun)
    said: dict[str, str] = {}

    def sensor(name: str, ok: bool, *words: str, **fields: Any) -> None:
        """What doctor says of the sensor, without the engines, whose import takes half a minute here."""
        profile = board.profile(**fields)
        transport = open_transport(profile)
        seen = survey.look(profile, transport, "python3", profile.workdir, engines=False)
        transport.close()
        check = sensor_line(profile, seen)
        said[name] = check.detail
        assert check.ok is ok and all(word in check.detail for word in words), f"{name}: {check}"

    whole = {check.name: check for check in doctor(board.profile())}
    assert all(
        whole[name].ok
        for name in (
            "reachable",
            "host key",
            "user",
            "python",
            "engine onnxruntime",
            "engine litert",
            "workdir",
            "sensor",
        )
    )
    said["doctor"] = "\n".join(f"{c.name}: {c.detail}" for c in whole.values())
    sensor("healthy", True, "3.500 W now", "INA219A at 0x40 on /dev/i2c-1", "scope board")
    sensor(
        "no permission", False, "no permission on /dev/i2c-1", "group i2c", "usermod -aG i2c stranger", user="stranger"
    )
    sensor(
        "wrong address",
        False,
        "nothing answers at 0x41",
        "one does at 0x40",
        sensor_options=OPTIONS | {"address": 0x41},
    )
    sensor("no such bus", False, "there is no /dev/i2c-7", "i2c-1", sensor_options=OPTIONS | {"bus": 7})
    for fault, words in {
        "absent": ("nothing answers at 0x40", "No such device or address", "look at the wiring"),
        "timeout": ("nothing answers at 0x40", "timed out"),
        "ina226": ("an INA226", "use `sensor: hwmon`"),
        "stuck": ("no new value",),
    }.items():
        board.set("fault", fault)
        sensor(fault, False, *words)
    board.set("fault", "none")
    sensor("too large a current", False, "beyond the range already", sensor_options=OPTIONS | {"max_current_a": 0.5})
    board.bind()
    sensor("held by the driver", False, "ina2xx of the kernel holds the chip at 0x40", "sensor: hwmon")
    sensor("by the driver", True, "W now", "ina219", sensor="hwmon", sensor_options=DRIVER_OPTIONS)
    board.unbind()
    sensor("let go", True, "3.500 W now")
    _record("faults", said)


@pytest.mark.parametrize("sensor", ["ina219", "hwmon"])
def test_energy_of_waveforms_with_a_known_integral(counted: Board, sensor: str) -> None:
    board, options = counted, OPTIONS
    if sensor == "hwmon":
        board.bind()
        options = DRIVER_OPTIONS
    cells = [
        (name, period_ms, waveform)
        for period_ms in PERIODS_MS[sensor]
        for name, waveform in shapes(period_ms * 1_000_000).items()
        if name != "constant" or period_ms == PERIODS_MS[sensor][0]
    ]
    rows = []
    taken = _sample(board, sensor, options, [waveform for *_, waveform in cells])
    for (name, period_ms, waveform), (power, begun_ns) in zip(cells, taken, strict=True):
        rows.append({
            "shape": name, "period_ms": period_ms, "errors": _errors(power, waveform, begun_ns),
            "host_load_1m": os.getloadavg()[0], "interval_s": power.trace.info.interval_s, **_counts(power.trace),
        })  # fmt: skip
        _record(f"energy-{sensor}", rows)
    worst = max((abs(e), row["shape"], row["period_ms"]) for row in rows for e in row["errors"])
    if sensor == "ina219":
        assert worst[0] <= LIMIT, worst
    else:  # it sees 0.5 of every 10 ms: what holds is what does not move
        assert all(abs(e) <= LIMIT for row in rows if row["shape"] == "constant" for e in row["errors"])


def test_a_chip_whose_clock_is_slow(counted: Board) -> None:
    rows, waveform = [], shapes(37_000_000)["square"]
    for slow_ppm in (50_000, 100_000):
        counted.set("slow_ppm", str(slow_ppm))
        ((power, begun_ns),) = _sample(counted, "ina219", OPTIONS, [waveform])
        rows.append({"slow_ppm": slow_ppm, "errors": _errors(power, waveform, begun_ns), **_counts(power.trace)})
    _record("energy-slow-clock", rows)
    assert all(abs(e) <= LIMIT for row in rows for e in row["errors"]), rows


FORMATS = ("onnx-fp32", "onnx-int8", "tflite-int8")


def _study(
    folder: Path, board: Board, sensors: list[dict[str, Any]], formats: Sequence[str] = FORMATS
) -> tuple[Path, list[str]]:
    """The study file, and the names of its devices: the guest with each sensor, and this machine."""
    names = []
    for fields in sensors:
        profile = board.profile(**fields)
        names.append(profile.name)
        values = {k: v for k, v in json.loads(profile.model_dump_json(exclude_unset=True)).items() if v is not None}
        (folder / f"{profile.name}.yaml").write_text(yaml.safe_dump(values))
    # the same int8 files on both: made for ARM
    (folder / "here.yaml").write_text(yaml.safe_dump({"name": "here", "int8_activations": "int8"}))
    study = {
        "name": "emulated-board", "seed": 0, "model": {"name": "resnet20", "width": 0.5},
        "data": {"name": "digits", "augment": "none"}, "baseline": {"epochs": 4, "lr": 0.1, "batch_size": 32},
        "recipes": {"baseline": []}, "formats": [*formats],
        "devices": [*(f"{name}.yaml" for name in names), "here.yaml"],
        "measure": {"warmup_s": 1, "min_s": 5, "blocks": 5, "rounds": 1, "score_on": "test", "timeout_s": 1800},
    }  # fmt: skip
    (folder / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    return folder / "study.yaml", [*names, "here"]


@pytest.mark.heavy
def test_a_study_scores_as_here_and_measures_the_energy_that_was_drawn(board: Board, tmp_path: Path) -> None:
    from edgecompress.cli import main

    file, names = _study(tmp_path, board, [{"name": "emulated"}])
    waveform = shapes(100_000_000)["square"]
    begun_ns = board.play(waveform)
    assert main(["run", str(file), "--out", str(tmp_path / "run")]) == 0
    rows = json.loads((tmp_path / "run" / "results.json").read_text())["rows"]
    by_device = {name: {r["format"]: r for r in rows if r["device"] == name} for name in names}
    windows, predicted, forms = [], {}, {}
    for record in sorted((tmp_path / "run" / "records" / "measurement").glob("*.json")):
        value = json.loads(record.read_text())
        result, artifact = value["result"], value["job"]["artifact"]
        form = next(f for f in by_device["here"] if artifact["name"].startswith(f))
        forms[form] = artifact["sha256"]
        predicted[form, value["device"]] = [ranked[0] for ranked in result["predictions"]]
        if value["device"] == "emulated" and result["power"] is not None:
            power = wire.from_json(wire.Power, result["power"])
            active = [w for w in power.windows if w.kind == "power"]
            drawn_j = sum(waveform.joules(begun_ns, w.start_ns, w.end_ns) for w in active)
            windows.append({
                "format": form, "errors": _errors(power, waveform, begun_ns), "inferences": [w.inferences for w in active],
                "drawn_mj": 1e3 * drawn_j / sum(w.inferences for w in active), **_counts(power.trace),
            })  # fmt: skip
    differ = {form: _differ(predicted[form, "emulated"], predicted[form, "here"]) for form in forms}
    # x86 without VNNI adds products of int8 in 16 bits, which saturate; ARM does not, and neither does this machine when told
    exact = _exact_predictions(tmp_path / "run", forms["onnx-int8"], file)
    differ["onnx-int8, exact sums here"] = _differ(predicted["onnx-int8", "emulated"], exact)
    kept = ("device", "format", "status", "reason", "top1", "top5", "engine", "energy_mj", "energy_mj_low",
            "energy_mj_high", "energy_reason", "power_scope", "sensor", "latency_ms_p50", "warnings")  # fmt: skip
    _record(
        "study",
        {"rows": [{k: r.get(k) for k in kept} for r in rows], "windows": windows, "predictions_that_differ": differ},
    )
    assert len(forms) == 3
    assert differ.pop("onnx-int8") <= 5 and not any(differ.values()), differ
    for form, row in by_device["emulated"].items():
        assert row["status"] == "ok", row["reason"]
        assert form == "onnx-int8" or row["top1"] == by_device["here"][form]["top1"], form
        assert row["power_scope"] == "board"
    assert len(windows) == 3
    # a busy host starves the guest of its CPUs: an energy is then refused with the reason, and must not be given wrong
    for form, row in by_device["emulated"].items():
        drawn_mj = next(w["drawn_mj"] for w in windows if w["format"] == form)
        if row["energy_mj"] is None:
            assert "no reading for" in row["energy_reason"] or "readings" in row["energy_reason"], row["energy_reason"]
        else:
            assert row["energy_mj_low"] <= drawn_mj <= row["energy_mj_high"], (form, drawn_mj, row["energy_mj"])


@pytest.mark.heavy
def test_a_study_reads_the_same_chip_through_the_kernels_driver(board: Board, tmp_path: Path) -> None:
    """One format, and a load that stands still: of others the driver sees a twentieth (docs/results/boards)."""
    from edgecompress.cli import main

    driver = {"name": "emulated", "sensor": "hwmon", "sensor_options": DRIVER_OPTIONS}
    file, _ = _study(tmp_path, board, [driver], ["tflite-int8"])
    waveform = shapes(10_000_000)["constant"]
    begun_ns = board.play(waveform)
    board.bind()
    assert main(["run", str(file), "--out", str(tmp_path / "run")]) == 0
    rows = {r["device"]: r for r in json.loads((tmp_path / "run" / "results.json").read_text())["rows"]}
    there = rows["emulated"]
    assert there["status"] == "ok" and there["sensor"] == "hwmon" and there["top1"] == rows["here"]["top1"]
    (power,) = (
        wire.from_json(wire.Power, value["result"]["power"])
        for file in (tmp_path / "run" / "records" / "measurement").glob("*.json")
        if (value := json.loads(file.read_text()))["device"] == "emulated"
    )
    errors = _errors(power, waveform, begun_ns)
    _record("study-hwmon", {
        "top1": {name: row["top1"] for name, row in rows.items()}, "energy_mj": there["energy_mj"],
        "energy_reason": there["energy_reason"], "errors": errors, **_counts(power.trace),
    })  # fmt: skip
    assert all(abs(e) <= LIMIT for e in errors)


def _differ(ours: Sequence[int], theirs: Sequence[int]) -> int:
    return sum(a != b for a, b in zip(ours, theirs, strict=True))


def _exact_predictions(run_dir: Path, sha256: str, study: Path) -> list[int]:
    """The classes of the test images by this machine's ONNX Runtime with sums that do not saturate."""
    import numpy as np
    import onnxruntime

    from edgecompress.data import load, normalise
    from edgecompress.studyfile import read_study

    (file,) = (f for f in run_dir.rglob("*.onnx") if hashlib.sha256(f.read_bytes()).hexdigest() == sha256)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    data = load(read_study(study).data, seed=0)
    images = normalise(data.test.images(np.arange(len(data.test))), data.mean, data.std)
    name = session.get_inputs()[0].name
    return [int(session.run(None, {name: image[None]})[0].argmax()) for image in images]


def _job(board: Board, tmp_path: Path, job_id: str, **plan: Any) -> tuple[wire.Job, dict[str, Path]]:
    """A tiny model's job with a power pass."""
    from edgecompress.measurement import blob
    from tests.agent import tiny_models

    file = tiny_models.write_onnx(tmp_path / "tiny.onnx")
    given = blob(file)
    job = wire.Job(
        job_id, given, "onnxruntime", warmup_s=0.2, min_s=0.5, blocks=2, score=False, sensor="ina219",
        sensor_options=OPTIONS, power=wire.PowerPlan(**plan), deadline_s=600,
    )  # fmt: skip
    return job, {given.sha256: file}


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("absent", "answers no more"),
        ("timeout", "answers no more"),
        ("stuck", "no new value for"),
        ("reset", "the chip lost its supply, or another program uses it"),
    ],
)
def test_a_fault_in_the_middle_keeps_the_trace_so_far_and_the_latencies(
    board: Board, tmp_path: Path, fault: str, words: str
) -> None:
    board.play(shapes(37_000_000)["square"])
    job, files = _job(board, tmp_path, f"fault-{fault}", window_s=5, min_samples=20, windows=4, idle_s=2)

    def spoil() -> None:
        """In the power pass: the sampler is there when the chip is set as the sensor sets it."""
        for _ in range(600):
            if "measuring power" in board.guest.ssh(
                f"cat ~board/.cache/edgecompress/jobs/{job.job_id}/progress.json || true"
            ):
                time.sleep(6)
                board.set("fault", fault)
                return
            time.sleep(0.2)

    spoiler = threading.Thread(target=spoil)
    spoiler.start()
    with connect(board.profile()) as session:
        result = session.measure(job, files)
    spoiler.join()
    assert result.status == "ok" and result.blocks and result.power is not None
    assert words in (result.power_reason or ""), result.power_reason
    assert len(result.power.trace.t_ns) > 50
    summary = summarise(result.power, conditions=result.conditions, plan=job.power)
    assert summary.gross_j is None and summary.invalid


@pytest.mark.heavy
def test_a_job_over_the_serial_console(board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the guest's own getty, login and shell, with a password. Its line has no speed: no time is compared."""
    board.guest.ssh("chpasswd", stdin=b"board:a word of 4\n")
    monkeypatch.setenv("CONSOLE_PASSWORD", "a word of 4")
    profile = board.guest.console_profile(password_env="CONSOLE_PASSWORD", workdir="over-the-console")
    lines = {check.name: check for check in doctor(profile)}
    assert lines["reachable"].ok and lines["python"].ok and lines["user"].detail.startswith("board")
    profile = profile.model_copy(update={"python": "~/.cache/edgecompress/venv/bin/python"})  # set up over SSH
    job, blobs = _job(board, tmp_path, "console")
    with connect(profile) as session:
        result = session.measure(dataclasses.replace(job, sensor="none", sensor_options={}, power=None), blobs)
    assert result.status == "ok" and result.blocks
    there = board.guest.ssh("sha256sum ~board/over-the-console/blobs/*").split()
    assert set(there[::2]) == set(blobs)
    assert not board.guest.ssh("find ~board/over-the-console/jobs -mindepth 1")


@pytest.mark.heavy
def test_a_meter_here_and_inferences_there(board: Board, tmp_path: Path) -> None:
    """serial_csv at this machine, clock pairs over SSH: the fitted offset agrees with later, independent pairs."""
    port = tmp_path / "meter"
    with _serial_meter(port, watts=2.5):
        profile = board.profile(sensor="serial_csv", sensor_options={"port": str(port)}, meter_at="host")
        job, files = _job(board, tmp_path, "host-meter", window_s=10, min_samples=100, windows=3, idle_s=2)
        with connect(profile) as session:
            began_ns = time.monotonic_ns()
            result = session.measure(job, files)
        agent = open_agent(profile)
        pairs = [hostmeter.pair_of(*agent.clock()) for _ in range(20)]
        agent.close()
    assert result.status == "ok" and result.power is not None, result.power_reason or result.reason
    trace = result.power.trace
    later = hostmeter.align(pairs)
    summary = summarise(result.power, conditions=result.conditions, plan=job.power)
    assert summary.gross_j is not None and summary.mean_w is not None, summary.invalid
    low, high = max(p.low_ns for p in pairs), min(p.high_ns for p in pairs)
    _record("host-meter", {
        "clock_error_ms": 1e3 * trace.clock_error_s, "pair_half_width_ms": [p.half_ns / 1e6 for p in pairs],
        "later_offset_ns": later.offset_ns, "later_error_ms": 1e3 * later.error_s,
        "later_intersection_ms": (high - low) / 1e6, "mean_w": summary.mean_w, "true_w": 2.5, **_counts(trace),
    })  # fmt: skip
    assert summary.mean_w == pytest.approx(2.5, rel=LIMIT)
    # A round trip of SSH is all that is known of the other clock; on a busy host it takes a second.
    assert trace.clock_error_s < max(0.1, 2e-9 * max(p.half_ns for p in pairs))
    first = trace.t_ns[0] - later.on_board(
        began_ns
    )  # the first reading came after the job was asked for, on either clock
    assert first > -1e9 * (trace.clock_error_s + later.error_s)
    assert statistics.median(b - a for a, b in zip(trace.t_ns, trace.t_ns[1:], strict=False)) == pytest.approx(
        2e7, rel=0.1
    )


class _serial_meter:
    """A meter on a pseudo terminal that prints `millis,volts,milliamps` every 20 ms."""

    def __init__(self, port: Path, *, watts: float) -> None:
        self._port, self._milliamps, self._stop = port, watts / 5 * 1e3, threading.Event()

    def __enter__(self) -> None:
        self._master, self._slave = os.openpty()
        self._port.symlink_to(os.ttyname(self._slave))
        self._thread = threading.Thread(target=self._print, daemon=True)
        self._thread.start()

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join(5)
        os.close(self._slave)
        os.close(self._master)

    def _print(self) -> None:
        began = due = time.monotonic()
        os.set_blocking(self._master, False)
        clock: Callable[[], float] = time.monotonic
        while not self._stop.is_set():
            due += 0.02
            time.sleep(max(0.0, due - clock()))
            try:
                os.write(self._master, f"{(due - began) * 1e3:.0f},5.000,{self._milliamps:.3f}\n".encode())
            except BlockingIOError:  # nobody reads
                continue
