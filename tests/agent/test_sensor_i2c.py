"""The INA219 through /dev/i2c-N: what the kernel is given, byte for byte, and what is said of its refusals.

The kernel's side of each ioctl is played from the ABI's own layout (include/uapi/linux/i2c.h, i2c-dev.h), not from the module's
structures, on a file that stands for the bus: adapters as i2c-stub (SMBus words only), as most are, and without SMBus.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from edgecompress_agent import i2c, permission
from edgecompress_agent.errors import AgentError
from edgecompress_agent.sensors import SensorFault, ina219

from .simulated_ina219 import CONFIGURATION, RealClock, SimulatedIna219, constant

I2C, WORDS = 0x1, 0x0060_0000
STUB = 0x0078_0000 | WORDS  # quick, byte, byte data, word data, I2C block: what i2c-stub offers


class Kernel:
    """An adapter with chips by address. log: (request, what it carried) of each transfer."""

    def __init__(self, chips: dict[int, SimulatedIna219], functions: int, absent: int = errno.ENXIO) -> None:
        self.chips, self.functions, self.absent = chips, functions, absent
        self.held: set[int] = set()
        self.log: list[tuple[str, bytes]] = []
        self._address: dict[int, int] = {}

    def ioctl(self, file: int, request: int, argument: object) -> int:
        if request == 0x0705:  # I2C_FUNCS
            ctypes.memmove(ctypes.addressof(argument), struct.pack("@L", self.functions), struct.calcsize("@L"))
        elif request == 0x0703:  # I2C_SLAVE
            if argument in self.held:
                raise OSError(errno.EBUSY, "Device or resource busy")
            self._address[file] = argument
        elif request == 0x0720:
            self._smbus(file, bytes(argument))
        elif request == 0x0707:
            self._rdwr(bytes(argument))
        else:
            raise OSError(errno.ENOTTY, "Inappropriate ioctl for device")
        return 0

    def _smbus(self, file: int, call: bytes) -> None:
        read, command, size, data = struct.unpack("@BBIP", call)
        if not self.functions & WORDS or size != 3:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")
        chip = self._chip(self._address[file])
        if read:
            word = chip.read_word(
                command
            )  # the chip sends its high byte first, SMBus takes the first byte for the low one
            ctypes.memmove(data, struct.pack("@H", int.from_bytes(word.to_bytes(2, "big"), "little")), 2)
            self.log.append(("smbus read", bytes([command])))
        else:
            sent = struct.unpack("@H", ctypes.string_at(data, 2))[0].to_bytes(2, "little")
            self.log.append(("smbus write", bytes([command]) + sent))
            chip.write_word(command, int.from_bytes(sent, "big"))

    def _rdwr(self, call: bytes) -> None:
        if not self.functions & I2C:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")
        messages, count = struct.unpack_from("@PI", call)
        each = struct.calcsize("@HHHP")
        parts = [struct.unpack("@HHHP", ctypes.string_at(messages + n * each, each)) for n in range(count)]
        sent = ctypes.string_at(parts[0][3], parts[0][2])
        chip = self._chip(parts[0][0])
        assert parts[0][1] == 0
        if count == 1:
            self.log.append(("i2c write", sent))
            chip.write_word(sent[0], int.from_bytes(sent[1:], "big"))
        else:
            address, flags, length, buffer = parts[1]
            assert (address, flags, length, len(sent)) == (parts[0][0], 1, 2, 1)
            ctypes.memmove(buffer, chip.read_word(sent[0]).to_bytes(2, "big"), 2)
            self.log.append(("i2c read", sent))

    def _chip(self, address: int) -> SimulatedIna219:
        if address not in self.chips:
            raise OSError(self.absent, os.strerror(self.absent))
        return self.chips[address]


Plug = Callable[..., Kernel]


@pytest.fixture
def plug(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plug:
    """Makes an adapter, on tmp_path/dev/i2c-1."""

    def make(*addresses: int, functions: int = STUB | I2C, absent: int = errno.ENXIO) -> Kernel:
        kernel = Kernel({a: SimulatedIna219(constant(5.0), RealClock()) for a in addresses}, functions, absent)
        (tmp_path / "dev").mkdir()
        (tmp_path / "dev" / "i2c-1").touch()
        monkeypatch.setattr(fcntl, "ioctl", kernel.ioctl)
        return kernel

    return make


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("functions", [STUB, STUB | I2C, I2C], ids=["i2c-stub", "usual", "messages only"])
def test_reading_through_every_kind_of_adapter(functions: int, plug: Plug, tmp_path: Path) -> None:
    kernel = plug(0x40, functions=functions)
    before = _open_files()
    sensor = ina219.open({}, tmp_path)
    sample = sensor.read(1.0)
    assert sample.power_uw == pytest.approx(5e6, rel=0.005) and not sample.stale
    sensor.close()
    sensor.close()
    assert _open_files() <= before
    with pytest.raises(SensorFault, match="closed"):
        sensor.read(1.0)
    # the configuration 0x1c6f, high byte first on the wires
    how = "i2c" if functions == I2C else "smbus"
    assert (f"{how} write", b"\x00\x1c\x6f") in kernel.log
    assert {what for what, _ in kernel.log} == {f"{how} read", f"{how} write"}


def test_another_address(plug: Plug, tmp_path: Path) -> None:
    plug(0x45)
    assert ina219.open({"address": "0x45"}, tmp_path).info.description == "INA219A at 0x45 on /dev/i2c-1"


@pytest.mark.parametrize("absent", [errno.ENXIO, errno.EREMOTEIO, errno.ENODEV, errno.EIO, errno.ETIMEDOUT])
def test_the_wrong_address_names_the_right_one(absent: int, plug: Plug, tmp_path: Path) -> None:
    plug(0x41, 0x44, absent=absent)
    before = _open_files()
    with pytest.raises(
        AgentError, match=r"nothing answers at 0x40 on /dev/i2c-1 \(.+\); one does at 0x41, 0x44: set `address`"
    ):
        ina219.open({}, tmp_path)
    assert _open_files() <= before


def test_nothing_on_the_bus(plug: Plug, tmp_path: Path) -> None:
    plug()
    with pytest.raises(AgentError, match="no INA219 does at any of its 16 addresses: look at the wiring"):
        ina219.open({}, tmp_path)


def test_a_chip_that_a_driver_holds(plug: Plug, tmp_path: Path) -> None:
    kernel = plug(0x40)
    kernel.held.add(0x40)
    device = tmp_path / "sys/bus/i2c/devices/1-0040"
    (tmp_path / "sys/bus/i2c/drivers/ina2xx").mkdir(parents=True)
    device.mkdir(parents=True)
    (device / "driver").symlink_to("../../drivers/ina2xx")
    before = _open_files()
    with pytest.raises(AgentError, match=r"ina2xx of the kernel holds the chip at 0x40.+sensor: hwmon.+echo 1-0040"):
        ina219.open({}, tmp_path)
    assert _open_files() <= before
    assert ina219.probe(tmp_path) is None
    assert kernel.log == []


def test_no_such_bus(plug: Plug, tmp_path: Path) -> None:
    plug(0x40)
    with pytest.raises(AgentError, match=r"there is no .*/dev/i2c-7 \(here: i2c-1\).+raspi-config"):
        ina219.open({"bus": 7}, tmp_path)


def test_a_file_that_is_no_bus(tmp_path: Path) -> None:
    """The real ioctl, on a real file."""
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "i2c-1").touch()
    before = _open_files()
    with pytest.raises(AgentError, match="is not an I2C bus: Inappropriate ioctl"):
        ina219.open({}, tmp_path)
    assert _open_files() <= before


def test_an_adapter_that_can_do_neither(plug: Plug, tmp_path: Path) -> None:
    plug(0x40, functions=0x0001_0000)
    with pytest.raises(AgentError, match="neither I2C messages nor SMBus words"):
        ina219.open({}, tmp_path)


def test_a_chip_of_another_kind_is_said_with_its_place(plug: Plug, tmp_path: Path) -> None:
    kernel = plug(0x40)
    kernel.chips[0x40].read_word = lambda register: {0xFE: 0x5449, 0xFF: 0x2260}.get(register, 0)  # type: ignore[method-assign]
    with pytest.raises(AgentError, match=r"0x40 on /dev/i2c-1: the chip that answers is an INA226"):
        ina219.open({}, tmp_path)
    assert not any("write" in what for what, _ in kernel.log)


def test_unknown_options_before_anything_is_touched(plug: Plug, tmp_path: Path) -> None:
    kernel = plug(0x40)
    with pytest.raises(AgentError, match="no option 'shunt' "):
        ina219.open({"shunt": 0.1}, tmp_path)
    assert kernel.log == []


def test_probe_reads_only(plug: Plug, tmp_path: Path) -> None:
    kernel = plug(0x41)
    assert ina219.probe(tmp_path) == "what answers at 0x41 on /dev/i2c-1 looks like an INA219"
    assert {what for what, _ in kernel.log} == {"smbus read"}
    assert kernel.chips[0x41].read_word(CONFIGURATION) == 0x399F


def test_probe_without_a_bus(tmp_path: Path) -> None:
    assert ina219.probe(tmp_path) is None and ina219.hint(tmp_path) is None


def test_a_stub_without_the_flag(plug: Plug, tmp_path: Path) -> None:
    """i2c-stub's registers stand still: as long as nobody sets CNVR there, everything is stale, and then it is a fault."""
    kernel = plug(0x40, functions=STUB)
    words = {1: 0x03E8, 2: 0x2720}  # 10 mV, 5.008 V; no CNVR
    kernel.chips[0x40].read_word = lambda register: words.get(register, 0)  # type: ignore[method-assign]
    kernel.chips[0x40].write_word = lambda register, value: words.update({register: value})  # type: ignore[method-assign]
    sensor = ina219.open({"shunt_samples": 1}, tmp_path)
    sample = sensor.read(0.2)
    assert sample.stale and sample.power_uw == 500_800
    words[2] |= 2
    assert sensor.read(0.2) == (pytest.approx(sensor.read(0.2).t_ns, abs=2e9), 500_800, False, False, None)


# Permission


@contextmanager
def _nobody() -> Iterator[None]:
    """As a user who is in no group of the file; for an ordinary user that is himself."""
    if os.geteuid() != 0:
        yield
        return
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(65534)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


@pytest.fixture
def forbidden() -> Iterator[Path]:
    """A root with a dev/i2c-1 that may not be opened, in directories that may be entered."""
    root = Path(tempfile.mkdtemp())
    root.chmod(0o755)
    (root / "dev").mkdir(mode=0o755)
    (root / "dev" / "i2c-1").touch()
    (root / "dev" / "i2c-1").chmod(0o660 if os.geteuid() == 0 else 0o000)
    yield root
    shutil.rmtree(root)


def test_no_permission_names_the_files_own_group(forbidden: Path) -> None:
    """Debian's is i2c; any group here that is not root's stands for it."""
    file = forbidden / "dev" / "i2c-1"
    if os.geteuid() == 0:
        import grp

        group = next(g for g in grp.getgrall() if g.gr_gid not in (0, 65534))
        os.chown(file, -1, group.gr_gid)
        with _nobody(), pytest.raises(AgentError) as refused:
            ina219.open({}, forbidden)
        assert f"belongs to the group {group.gr_name}" in str(refused.value)
        assert f"sudo usermod -aG {group.gr_name}" in str(refused.value)
        with _nobody():
            assert ina219.probe(forbidden) is None and "no permission on" in str(ina219.hint(forbidden))
    else:
        with pytest.raises(AgentError, match=r"no permission on .*/dev/i2c-1.+usermod -aG i2c"):
            ina219.open({}, forbidden)


def test_a_file_of_root_alone(tmp_path: Path) -> None:
    file = tmp_path / "i2c-1"
    file.touch(mode=0o600)
    file.chmod(0o600)
    assert "no group may read it. Give it to the group i2c by a udev rule" in permission.refused(str(file), "i2c")


def test_a_file_that_cannot_even_be_seen(tmp_path: Path) -> None:
    assert "belongs to the group i2c" in permission.refused(str(tmp_path / "not there"), "i2c")


def test_buses_in_order(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    for name in ("i2c-10", "i2c-2", "i2c-x", "null"):
        (tmp_path / "dev" / name).touch()
    assert i2c.buses(tmp_path) == [2, 10]
