"""What every sensor's file must keep, whoever wrote it."""

from __future__ import annotations

import inspect
import time

import pytest
from edgecompress_agent import sensors
from edgecompress_agent.errors import AgentError


@pytest.mark.parametrize("name", sensors.names())
def test_a_sensors_file(name: str) -> None:
    module = sensors.find(name)
    assert module.__doc__ and module.open.__doc__
    assert all(key.isidentifier() and len(text) > 10 for key, text in module.OPTIONS.items())
    first, *others = inspect.signature(module.open).parameters.values()
    assert first.name == "options" and all(p.default is not p.empty for p in others)
    with pytest.raises(AgentError, match="no_such_option"):
        sensors.open_sensor(name, {"no_such_option": 1})


@pytest.mark.parametrize("name", sensors.names())
def test_a_probe_answers_at_once(name: str) -> None:
    began = time.monotonic()
    found = sensors.find(name).probe()
    assert time.monotonic() - began < 5, "the contract says 1 s; this machine may be busy"
    assert found is None or (isinstance(found, str) and found)


def test_an_unknown_sensor_has_near_misses() -> None:
    with pytest.raises(AgentError, match=r"unknown sensor 'tegrastat' \(did you mean tegrastats\?\): this agent has "):
        sensors.open_sensor("tegrastat", {})


def test_none_reads_nothing() -> None:
    with pytest.raises(AgentError, match="no sensor on this device"):
        sensors.open_sensor("none", {})
