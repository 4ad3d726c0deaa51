"""Runs on the emulated board: the agent's own sensor and sampler, and windows at random moments, without inferences.

    python -I sampling.py AGENT.pyz SENSOR OPTIONS_JSON WINDOWS WINDOW_S < WAVEFORMS

For each line of its input, a waveform as the kernel module takes it, it prints a line: {"begun_ns": …, "power": wire.Power}.
Nothing runs beside it, so that a window's truth is the waveform alone.
"""

import json
import random
import sys
import time
from pathlib import Path

sys.path.insert(0, sys.argv[1])
from edgecompress_agent import sensors, wire
from edgecompress_agent.sampler import Sampler

PLAYED = Path("/sys/module/ina219_fixture/parameters/waveform")

for text in sys.stdin.read().splitlines():
    PLAYED.write_text(text)
    begun_ns = int(PLAYED.read_text().split()[0])
    windows = []
    with Sampler(sensors.open_sensor(sys.argv[2], json.loads(sys.argv[3]))) as sampler:
        if not sampler.wait_for(0):
            sys.exit(f"no reading: {sampler.ended}")
        for _ in range(int(sys.argv[4])):
            time.sleep(0.1 + random.uniform(0, 0.1))
            start = time.monotonic_ns()
            time.sleep(float(sys.argv[5]))
            windows.append(wire.Window("power", start, time.monotonic_ns(), 1, 1))
        sampler.wait_for(windows[-1].end_ns)
        trace = sampler.stop()
    print(json.dumps({"begun_ns": begun_ns, "power": wire.to_json(wire.Power(trace, tuple(windows)))}), flush=True)
