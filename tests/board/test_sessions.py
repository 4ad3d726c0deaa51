"""What is found out about boards before anything is trained, and in which words; with real servers, and ports where none is."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from edgecompress.device_profile import DeviceProfile
from edgecompress.errors import UserError
from edgecompress.pools import Device, make_pool
from edgecompress.progress import SILENT, Silent
from edgecompress.sessions import Sessions

MakeProfile = Callable[..., DeviceProfile]


class Heard(Silent):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def say(self, text: str) -> None:
        self.texts.append(text)


def refused(*devices: Device, skip_absent: bool = False) -> UserError:
    sessions = Sessions({d.name: d for d in devices}, SILENT)
    try:
        with pytest.raises(UserError) as error:
            sessions.check([d.name for d in devices], skip_absent=skip_absent)
    finally:
        sessions.close()
    return error.value


@pytest.mark.sshd
def test_a_workdir_that_takes_no_files_is_refused_at_the_start(ssh_profile: MakeProfile, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    error = refused(ssh_profile(workdir=f"{tmp_path}/file/below"), skip_absent=True)
    assert error.where == "board" and f"{tmp_path}/file is not a directory" in error.what
    assert error.fix == f"On the device: mv {tmp_path}/file {tmp_path}/file.old, or set another workdir"
    error = refused(ssh_profile(workdir="/proc/none"))  # root may, and yet cannot
    assert "cannot be made" in error.what or "nothing can be put into its workdir: cannot make" in error.what
    assert "workdir" in error.fix


def test_a_board_that_is_this_machine_is_looked_at_as_well(local_profile: DeviceProfile) -> None:
    assert "workdir" in refused(local_profile.model_copy(update={"workdir": "/proc/none"})).fix
    sessions = Sessions({"here": local_profile}, SILENT)
    sessions.check(["here"], skip_absent=False)
    assert os.listdir(local_profile.workdir) == ["agent"]  # noqa: PTH208
    sessions.close()


@pytest.mark.sshd
def test_a_board_that_is_away_is_named_once(ssh_profile: MakeProfile) -> None:
    away = ssh_profile(name="pi-b", port=1)
    assert str(refused(away)).startswith("device pi-b: 127.0.0.1:1 cannot be reached")
    there, heard = ssh_profile(name="pi-a"), Heard()
    sessions = Sessions({"pis": make_pool("pis", [there, away])}, heard)
    sessions.check(["pis"], skip_absent=False)
    sessions.close()
    (said,) = heard.texts
    assert said.startswith("warning: pis goes on without one of its boards: pi-b: 127.0.0.1:1 cannot be reached")
    assert sessions.told_away("pis", "pi-b") and not sessions.told_away("pis", "pi-a")
