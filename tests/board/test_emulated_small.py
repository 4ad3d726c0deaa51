"""The smaller form of the emulated board, for every run of the tests where its image lies in the cache: resumed from its saved
state, one tiny model measured as on a board, power read through I2C and through the kernel's driver. `make board` is the whole.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from edgecompress_agent import wire

from edgecompress.board import survey
from edgecompress.board.doctor import sensor_line
from edgecompress.board.session import connect
from edgecompress.board.transport import open_transport
from edgecompress.energy.trace import Readings
from tests.agent import tiny_models
from tests.board.emulated.board import DRIVER_OPTIONS, OPTIONS, Board
from tests.board.emulated.guest import Guest, free_port, why_not_resumed
from tests.board.emulated.waveform import shapes

pytestmark = [pytest.mark.heavy, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    why = why_not_resumed()
    if why is None and os.environ.get("EDGECOMPRESS_BOARD") == "0":
        why = "EDGECOMPRESS_BOARD is 0"
    if why is not None:
        pytest.skip(f"the emulated arm64 board was not tried: {why}")
    with Guest(tmp_path_factory.mktemp("guest"), free_port(), counted=False) as guest:
        running = Board(guest)
        running.begin()
        yield running


def test_an_arm64_board_measures_and_reads_its_chip_in_both_ways(board: Board, tmp_path: Path) -> None:
    from edgecompress.measurement import blob

    file = tiny_models.write_onnx(tmp_path / "tiny.onnx")
    pixels = tiny_models.images()
    np.save(tmp_path / "images.npy", pixels)
    artifact, images = blob(file), blob(tmp_path / "images.npy")
    waveform = shapes(10_000_000)["constant"]
    board.play(waveform)
    job = wire.Job(
        "i2c", artifact, "onnxruntime", images=images, mean=tiny_models.MEAN, std=tiny_models.STD, warmup_s=0.2, min_s=0.5,
        blocks=2, sensor="ina219", sensor_options=OPTIONS, deadline_s=300,
        power=wire.PowerPlan(window_s=3, min_samples=20, windows=2, idle_s=1),
    )  # fmt: skip
    by_driver = dataclasses.replace(job, job_id="driver", sensor="hwmon", sensor_options=DRIVER_OPTIONS)
    with connect(board.profile()) as session:
        hello = session.hello()
        assert (hello.machine, hello.python[:5]) == ("aarch64", "3.11.")
        assert hello.engines["onnxruntime"].version and hello.engines["litert"].version
        for one in (job, by_driver):
            if one is by_driver:
                board.bind()
            result = session.measure(one, {artifact.sha256: file, images.sha256: tmp_path / "images.npy"})
            assert result.status == "ok" and result.power is not None, result.reason or result.power_reason
            assert list(result.predictions or ()) == tiny_models.expected(pixels)
            readings = Readings.of(result.power.trace)
            for window in (w for w in result.power.windows if w.kind == "power"):
                drawn_j = waveform.joules(0, window.start_ns, window.end_ns)
                assert readings.joules(*readings.seconds(window)) == pytest.approx(drawn_j, rel=0.005)


def test_doctor_on_arm64_names_the_group_that_may_read_the_chip(board: Board) -> None:
    board.unbind()
    profile = board.profile(user="stranger")
    transport = open_transport(profile)
    seen = survey.look(profile, transport, "python3", profile.workdir, engines=False)
    transport.close()
    assert seen.machine == "aarch64" and seen.user == "stranger" and "i2c" not in seen.groups
    check = sensor_line(profile, seen)
    assert not check.ok and check.fix == "On the device: sudo usermod -aG i2c stranger, then log in again."
    assert board.guest.ssh("ls -A /home/stranger/.cache 2>/dev/null || true", user="stranger") == ""
