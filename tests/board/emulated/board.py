"""The running guest as a board with an INA219: its chip, its driver, its profile."""

from __future__ import annotations

import os
import subprocess
from typing import Any

from edgecompress.device_profile import DeviceProfile
from tests.board.emulated import image
from tests.board.emulated.waveform import PARAMETERS, Waveform

OPTIONS: dict[str, Any] = {"bus": 1, "shunt_ohm": 0.1}
DRIVER_OPTIONS: dict[str, Any] = {"shunt_ohm": 0.1}
_CHIP = "/sys/bus/i2c/devices/i2c-1"


class Board:
    """The guest with its INA219."""

    def __init__(self, guest: Any) -> None:
        self.guest = guest

    def begin(self) -> dict[str, Any]:
        """Resume the guest, and load the chip and its driver; what it runs on."""
        guest = self.guest
        resumed_s = guest.resume()
        names = []
        for module in image.modules(image.image_dir()):
            guest.ssh(f"cat > /tmp/{module.name}", stdin=module.read_bytes())
            names.append(module.name)
        guest.ssh(
            f"modprobe i2c-dev; insmod /tmp/{names[0]}; modprobe hwmon; modprobe regmap-i2c; insmod /tmp/{names[1]}"
        )
        guest.ssh(f"chgrp i2c {PARAMETERS}/waveform; chmod 664 {PARAMETERS}/waveform; udevadm settle")
        qemu = subprocess.run(["qemu-system-aarch64", "--version"], check=True, capture_output=True, text=True).stdout
        return {
            "resumed_s": resumed_s, "qemu": qemu.splitlines()[0], "host_cpus": os.cpu_count(), "host_load_1m": os.getloadavg()[0],
            "guest": guest.ssh("uname -srvm; cat /etc/debian_version; python3 --version").splitlines(),
        }  # fmt: skip

    def set(self, name: str, value: str) -> None:
        self.guest.ssh(f"printf %s '{value}' > {PARAMETERS}/{name}")

    def play(self, waveform: Waveform) -> int:
        """Begin it; its beginning on the board's clock."""
        self.set("waveform", waveform.text)
        return int(self.guest.ssh(f"cat {PARAMETERS}/waveform").split()[0])

    def bind(self) -> None:
        """Give the chip to the kernel's driver, and tell it the shunt."""
        self.guest.ssh(f"echo ina219 0x40 > {_CHIP}/new_device")
        self.guest.ssh("for f in /sys/class/hwmon/hwmon*/shunt_resistor; do echo 100000 > $f; done")

    def unbind(self) -> None:
        self.guest.try_ssh(f"echo 0x40 > {_CHIP}/delete_device")

    def heal(self) -> None:
        """The chip answers again, and no driver has it."""
        self.set("fault", "none")
        self.set("slow_ppm", "0")
        self.unbind()

    def profile(self, **fields: Any) -> DeviceProfile:
        return self.guest.profile(**{"sensor": "ina219", "sensor_options": OPTIONS, "scope": "board"} | fields)
