"""What a user may write in a device profile: how a board is reached, what it has, what reads its power; validated when read."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from edgecompress_agent import sensors
from edgecompress_agent.errors import AgentError
from pydantic import AfterValidator, Field, model_validator

from edgecompress.activations import ActivationType, for_this_machine
from edgecompress.study import NAME, Spec, StudyPath

_VARIABLE, _PROVIDER = r"^[A-Za-z_][A-Za-z0-9_]*$", r"^[A-Za-z][A-Za-z0-9_]*$"
_PLACE, _HOST, _USER = r"^[A-Za-z0-9_.~/@+][A-Za-z0-9_.~/@+ -]*$", r"^[\w:.][\w:.%-]*$", r"^[\w.][\w.@+-]*$"
WRITTEN = {
    NAME: "must be letters, digits, '.', '_' and '-', and begin with a letter or digit",
    _VARIABLE: "must be the name of an environment variable: letters, digits and '_'",
    _PROVIDER: "must be the name of an execution provider: letters, digits and '_'",
    _PLACE: "must be letters, digits, spaces and the signs . _ ~ / @ + -, and begin with neither space nor '-'",
    _HOST: "must be one host name, address or alias: letters, digits and the signs . _ : % -, without spaces",
    _USER: "must be one user's name: letters, digits and the signs . _ @ + -, without spaces",
}
"""Pattern of a text → what it says, in words."""


def _own_home(text: str) -> str:
    if text.startswith("~") and text != "~" and not text.startswith("~/"):
        raise ValueError("only one's own '~' is expanded: write the path in full")
    return text


Word = Annotated[str, Field(pattern=_PLACE), AfterValidator(_own_home)]
Host = Annotated[str, Field(pattern=_HOST)]
"""Of a name, an address (`fe80::1%eth0`) or an alias: what a ProxyCommand may put into a shell's line for %h. User: for %r."""
User = Annotated[str, Field(pattern=_USER)]
Provider = Annotated[str, Field(pattern=_PROVIDER)]


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("control characters are not allowed")
    return text


CONNECTION = {
    "ssh": ("host", "port", "user", "identity_file", "known_hosts", "ssh_config"),
    "serial": ("serial_port", "baud", "user", "password_env"),
}
"""Transport → fields of a profile that say how it reaches the device."""

_ENGINES: dict[Literal["onnx", "tflite"], Literal["onnxruntime", "litert"]] = {
    "onnx": "onnxruntime",
    "tflite": "litert",
}


class DeviceProfile(Spec):
    """A board, or this machine: how to reach it, which Python and engines it has, what reads its power."""

    name: str = Field(pattern=NAME)
    board: Annotated[str, AfterValidator(_printable)] | None = Field(
        default=None, description="what it is, in words, for the report"
    )
    transport: Literal["local", "ssh", "serial"] = Field(
        default="local",
        description="local: a subprocess here; ssh: OpenSSH; serial: the board's console on a serial port",
    )
    host: Host | None = Field(default=None, description="ssh: host name, address, or an alias of ~/.ssh/config")
    port: int | None = Field(default=None, ge=1, le=65535, description="ssh: default from ~/.ssh/config, else 22")
    user: User | None = Field(
        default=None,
        description="ssh: default from ~/.ssh/config, else the local user; serial: who logs in, where the console asks",
    )
    identity_file: StudyPath | None = Field(
        default=None, description="ssh: private key; default: the agent and the usual files"
    )
    known_hosts: StudyPath | None = Field(
        default=None, description="ssh: file of pinned host keys; default ~/.ssh/known_hosts"
    )
    ssh_config: StudyPath | None = Field(default=None, description="ssh: configuration file; default ~/.ssh/config")
    serial_port: StudyPath | None = Field(
        default=None, description="serial: the port of this machine, such as /dev/ttyUSB0 or /dev/serial/by-id/…"
    )
    baud: int | None = Field(
        default=None, ge=1200, le=12_000_000, description="serial: speed of the line, default 115200"
    )
    password_env: str | None = Field(
        default=None,
        pattern=_VARIABLE,
        description="serial: environment variable with the password; default: it is asked for on the terminal",
    )
    python: Word | None = Field(
        default=None,
        description="interpreter on the device; default: local: the one that runs this; else workdir/venv/bin/python, else python3",
    )
    workdir: Word = Field(
        default="~/.cache/edgecompress", description="directory on the device for the agent, files and jobs"
    )
    keep_days: float | None = Field(
        default=30.0,
        ge=1,
        description="what nobody used for so many days is removed from workdir, results that nobody collected too; null: never",
    )
    engines: dict[Literal["onnx", "tflite"], Literal["onnxruntime", "litert"]] = Field(
        default=_ENGINES, description="file type → engine"
    )
    providers: tuple[Provider, ...] = Field(
        default=("CPUExecutionProvider",), min_length=1, description="ONNX Runtime execution providers"
    )
    int8_activations: Literal["auto", "uint8", "uint8-reduced", "int8", "symmetric-int8"] = Field(
        default="auto",
        description="type of onnx-int8 activations: x86 with VNNI uint8, x86 without uint8-reduced, ARM int8, GPU symmetric-int8; "
        "auto: by this machine's CPU for local, else int8",
    )
    cpus: tuple[Annotated[int, Field(ge=0, le=4095)], ...] | None = Field(
        default=None, min_length=1, description="CPUs to pin the measurement to; default: no pinning"
    )
    sensor: str = Field(
        default="none", description="what reads power: a sensor of the agent (docs/sensors.md), or auto"
    )
    sensor_options: dict[str, Any] = Field(default={}, description="the sensor's options (docs/sensors.md)")
    meter_at: Literal["device", "host"] = Field(
        default="device", description="host: the sensor is a meter that hangs at this machine"
    )
    scope: Literal["module", "board", "usb-input", "pmic-rails", "cpu-package"] | None = Field(
        default=None, description="what the reading includes, for a sensor that only knows that it is wired somewhere"
    )
    battery_wh: float | None = Field(
        default=None, gt=0, description="energy of the battery, for the hours that it lasts"
    )
    connect_timeout_s: float = Field(default=15.0, gt=0)
    reconnect_s: float = Field(
        default=120.0, ge=0, description="how long a lost link is tried again before the measurement is given up"
    )

    @model_validator(mode="after")
    def _consistent(self) -> DeviceProfile:
        needed = {"local": None, "ssh": "host", "serial": "serial_port"}[self.transport]
        if needed is not None and getattr(self, needed) is None:
            raise ValueError(f"transport {self.transport} needs {needed!r}")
        own = CONNECTION.get(self.transport, ())
        for transport, keys in CONNECTION.items():
            foreign = [k for k in keys if getattr(self, k) is not None and k not in own]
            if foreign:
                raise ValueError(f"{', '.join(foreign)} need{'s' if len(foreign) == 1 else ''} transport: {transport}")
        if self.meter_at == "host" and self.sensor == "none":
            raise ValueError("meter_at: host needs a sensor")
        for file_type, engine in self.engines.items():
            if engine != _ENGINES[file_type]:
                raise ValueError(f"engines: {engine} runs no .{file_type} files; {_ENGINES[file_type]} does")
        try:
            sensors.check_options(self.sensor, self.sensor_options, sensors.find(self.sensor).OPTIONS)
            json.dumps(self.sensor_options, allow_nan=False)
        except AgentError as error:
            raise ValueError(str(error)) from None
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"sensor_options: a value must be text, a finite number or true or false: {error}"
            ) from None
        if self.int8_activations == "auto":
            chosen = for_this_machine() if self.transport == "local" else "int8"
            object.__setattr__(self, "int8_activations", chosen)
        return self

    @property
    def activation_type(self) -> ActivationType:
        """`int8_activations`, "auto" decided."""
        assert self.int8_activations != "auto"
        return self.int8_activations

    @property
    def baud_rate(self) -> int:
        """Of a serial console, bits per second."""
        return self.baud or 115200
