"""16-bit registers of one chip on an I2C bus, by ioctl on /dev/i2c-N. Standard library only.

Sources: Linux include/uapi/linux/i2c-dev.h and i2c.h, Documentation/i2c/dev-interface.rst. SMBus words are used where the
adapter offers them (every adapter emulates them, and the kernel's i2c-stub knows nothing else), plain I2C messages elsewhere.
A chip that a kernel driver holds is never taken from it (I2C_SLAVE, not I2C_SLAVE_FORCE; I2C_RDWR alone would not notice).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import threading
from pathlib import Path
from typing import List, Optional, Protocol

from edgecompress_agent import permission
from edgecompress_agent.errors import AgentError

I2C_SLAVE, I2C_FUNCS, I2C_RDWR, I2C_SMBUS = 0x0703, 0x0705, 0x0707, 0x0720
FUNC_I2C, FUNC_READ_WORD, FUNC_WRITE_WORD = 0x0000_0001, 0x0020_0000, 0x0040_0000
SMBUS_READ, SMBUS_WRITE, SMBUS_WORD_DATA = 1, 0, 3
MESSAGE_READ = 0x0001

NOT_THERE = (errno.ENXIO, errno.EREMOTEIO, errno.ENODEV, errno.EIO, errno.ETIMEDOUT)
"""What adapters answer, each in its own way, when no chip acknowledges the address."""


class WordBus(Protocol):
    """The registers of one chip. The chip sends its high byte first; `read_word` gives 0x1234 for the bytes 12 34."""

    def read_word(self, register: int) -> int:
        """OSError when the chip does not answer."""
        ...

    def write_word(self, register: int, value: int) -> None: ...

    def close(self) -> None: ...


class Message(ctypes.Structure):
    _fields_ = [
        ("addr", ctypes.c_uint16),
        ("flags", ctypes.c_uint16),
        ("len", ctypes.c_uint16),
        ("buf", ctypes.POINTER(ctypes.c_uint8)),
    ]


class Messages(ctypes.Structure):
    _fields_ = [("msgs", ctypes.POINTER(Message)), ("nmsgs", ctypes.c_uint32)]


class SmbusData(ctypes.Union):
    _fields_ = [("byte", ctypes.c_uint8), ("word", ctypes.c_uint16), ("block", ctypes.c_uint8 * 34)]


class SmbusCall(ctypes.Structure):
    _fields_ = [
        ("read_write", ctypes.c_uint8),
        ("command", ctypes.c_uint8),
        ("size", ctypes.c_uint32),
        ("data", ctypes.POINTER(SmbusData)),
    ]


class Device:
    """One chip on /dev/i2c-N. Safe to close while another thread reads (which then gets an OSError)."""

    def __init__(self, file: int, address: int, functions: int) -> None:
        """file: a descriptor on which I2C_SLAVE has been set. functions: what I2C_FUNCS answered."""
        self._file: Optional[int] = file
        self._address = address
        self._smbus = bool(functions & FUNC_READ_WORD and functions & FUNC_WRITE_WORD)
        self._lock = threading.Lock()

    def read_word(self, register: int) -> int:
        if self._smbus:
            data = SmbusData()
            self._call(I2C_SMBUS, SmbusCall(SMBUS_READ, register, SMBUS_WORD_DATA, ctypes.pointer(data)))
            return _swapped(data.word)
        pointer, answer = (ctypes.c_uint8 * 1)(register), (ctypes.c_uint8 * 2)()
        messages = (Message * 2)(Message(self._address, 0, 1, pointer), Message(self._address, MESSAGE_READ, 2, answer))
        self._call(I2C_RDWR, Messages(messages, 2))
        return answer[0] << 8 | answer[1]

    def write_word(self, register: int, value: int) -> None:
        if self._smbus:
            data = SmbusData(word=_swapped(value))
            self._call(I2C_SMBUS, SmbusCall(SMBUS_WRITE, register, SMBUS_WORD_DATA, ctypes.pointer(data)))
            return
        content = (ctypes.c_uint8 * 3)(register, value >> 8, value & 0xFF)
        self._call(I2C_RDWR, Messages((Message * 1)(Message(self._address, 0, 3, content)), 1))

    def close(self) -> None:
        with self._lock:
            file, self._file = self._file, None
            if file is not None:
                os.close(file)

    def _call(self, request: int, argument: ctypes.Structure) -> None:
        with self._lock:
            if self._file is None:
                raise OSError(errno.EBADF, "the bus is closed")
            fcntl.ioctl(self._file, request, argument)


def open_device(bus: int, address: int, filesystem: Path = Path("/")) -> Device:
    """The chip at this address. It is not asked whether it is there. AgentError: no such bus, no permission, held by a driver.

    filesystem: where dev and sys are.
    """
    path = filesystem / "dev" / f"i2c-{bus}"
    try:
        file = os.open(str(path), os.O_RDWR)
    except FileNotFoundError:
        others = ", ".join(f"i2c-{n}" for n in buses(filesystem)) or "no bus at all"
        raise AgentError(
            f"there is no {path} (here: {others}). On a Raspberry Pi: sudo raspi-config nonint do_i2c 0; elsewhere: "
            "sudo modprobe i2c-dev"
        ) from None
    except PermissionError:
        raise AgentError(permission.refused(str(path), "i2c")) from None
    except OSError as error:
        raise AgentError(f"{path} cannot be opened: {error.strerror}") from None
    try:
        functions = ctypes.c_ulong()
        fcntl.ioctl(file, I2C_FUNCS, functions)
        fcntl.ioctl(file, I2C_SLAVE, address)
        if not functions.value & FUNC_I2C and not functions.value & FUNC_READ_WORD:
            raise AgentError(f"{path} can transfer neither I2C messages nor SMBus words")
    except OSError as error:
        os.close(file)
        if error.errno == errno.EBUSY:
            raise AgentError(_held(bus, address, filesystem)) from None
        raise AgentError(f"{path} is not an I2C bus: {error.strerror}") from None
    except AgentError:
        os.close(file)
        raise
    return Device(file, address, functions.value)


def buses(filesystem: Path = Path("/")) -> List[int]:
    """The numbers of the buses that have a device file."""
    return sorted(int(p.name[4:]) for p in (filesystem / "dev").glob("i2c-*") if p.name[4:].isdigit())


def _held(bus: int, address: int, filesystem: Path) -> str:
    name = f"{bus}-{address:04x}"
    link = filesystem / "sys/bus/i2c/devices" / name / "driver"
    driver = link.resolve().name if link.is_symlink() else "a kernel driver"
    return (
        f"{driver} of the kernel holds the chip at 0x{address:02x} on /dev/i2c-{bus}. Use `sensor: hwmon`, which reads through "
        f"it, or let go of it: echo {name} | sudo tee /sys/bus/i2c/devices/{name}/driver/unbind"
    )


def _swapped(word: int) -> int:
    return (word & 0xFF) << 8 | word >> 8
