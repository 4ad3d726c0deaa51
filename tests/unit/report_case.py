"""A realistic study for the tests of the report, built from records as a run leaves them; no file of results is typed in.

ResNet-20 on CIFAR-10, weights from a file, on an x86 workstation: the shape of the figures is that of docs and references
(int8 slow with int8 activations, fast with LiteRT), the latencies are drawn with a seed.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from edgecompress_agent import wire

from edgecompress.records import (
    Accuracy,
    Artifact,
    Cost,
    Failure,
    Measurement,
    ModelRecord,
    Parity,
    StepRecord,
    TrainRecord,
)
from edgecompress.report.rows import ReportInput

IMAGES = 2000
AGENT = "a" * 64
FORMATS = ("onnx-fp32", "onnx-int8", "tflite-fp32", "tflite-int8")
MS = {"onnx-fp32": 0.815, "onnx-int8": 1.04, "tflite-fp32": 0.99, "tflite-int8": 0.347}
BYTES = {"onnx-fp32": 1_092_222, "onnx-int8": 334_119, "tflite-fp32": 1_116_944, "tflite-int8": 330_832}
RECIPES: dict[str, list[dict[str, Any]]] = {
    "baseline": [],
    "magnitude-80": [
        {"method": "magnitude", "params": {"sparsity": 0.8, "allocation": "uniform", "steps": 1, "exclude": [],
                                           "finetune": {"epochs": 2, "lr": 0.01}}}
    ],
    "student": [
        {"method": "distill", "params": {"student": {"name": "resnet20", "width": 0.5}, "temperature": 4.0, "alpha": 0.9,
                                         "epochs": 6}}
    ],
}  # fmt: skip
COSTS = {
    "baseline": Cost(269_722, 269_034, 40_551_040, 40_551_040, 131_072),
    "magnitude-80": Cost(269_722, 55_120, 40_551_040, 8_310_000, 131_072),
    "student": Cost(68_458, 68_114, 10_403_840, 10_403_840, 65_536),
}
TOP1 = {"baseline": 0.9173, "magnitude-80": 0.9102, "student": 0.885}
SPEED = {"baseline": 1.0, "magnitude-80": 1.0, "student": 2.3}
SHRINK = {"baseline": 1.0, "magnitude-80": 1.0, "student": 3.7}
PACK = {"baseline": 0.92, "magnitude-80": 0.31, "student": 0.9}


def correct(recipe: str, form: str) -> str:
    """One character per image: harder images are missed by more variants, as in a real test set."""
    rng = np.random.default_rng(0)
    hardness = rng.random(IMAGES)
    jitter = np.random.default_rng(abs(hash_of(recipe, "int8" in form))).normal(0, 0.01, IMAGES)
    return "".join("1" if h < TOP1[recipe] + j else "0" for h, j in zip(hardness, jitter, strict=True))


def hash_of(*parts: object) -> int:
    return sum((i + 1) * ord(c) for i, c in enumerate("/".join(map(str, parts))))


def accuracy(recipe: str, form: str) -> Accuracy:
    string = correct(recipe, form)
    top1 = string.count("1") / len(string)
    return Accuracy("test", len(string), top1, min(1.0, top1 + 0.07), string)


def training(seconds: float, epochs: int) -> TrainRecord:
    return TrainRecord(epochs, seconds, epochs * 8100, 0.31, ({"epoch": 1.0, "loss": 0.31},), "cpu", "32", 0)


def model(recipe: str) -> ModelRecord:
    steps = tuple(
        StepRecord(s["method"], s["params"], 95.0, (training(88.0, 6),), {"reached sparsity": 0.8})
        for s in RECIPES[recipe]
    )
    return ModelRecord(
        directory=f"files/model/{recipe}", steps=steps, cost=COSTS[recipe], accuracy=accuracy(recipe, "torch"),
        weights="resnet20-cifar10.safetensors",
    )  # fmt: skip


def artifact(recipe: str, form: str) -> Artifact:
    size = round(BYTES[form] / SHRINK[recipe])
    weights = COSTS[recipe].params - 2000
    int8 = form.endswith("int8")
    operators = {"Conv": 19, "Relu": 19, "Add": 9, "GlobalAveragePool": 1, "Gemm": 1}
    if form == "onnx-int8":
        operators |= {"QuantizeLinear": 51, "DequantizeLinear": 92}
    return Artifact(
        format=form, file=f"files/artifact/{recipe}-{form}/model.{form.partition('-')[0]}", sha256="b" * 64, file_bytes=size,
        packed_bytes=round(size * PACK[recipe]), seconds=2.0,
        parity=Parity(64, 0.31 if int8 else 4.8e-6, 0.06 if int8 else 1e-6, 0.984 if int8 else 1.0,
                      None if int8 else 1e-3, 0.5 if int8 else None),
        operators=operators, weights=weights, zeros=round(0.8 * weights) if recipe == "magnitude-80" else 12,
        input_shape=(1, 3, 32, 32), input_dtype="int8" if form == "tflite-int8" else "float32",
        activation_type="int8" if form == "onnx-int8" else None, toolchain={"torch": "2.13.0", "onnx": "1.23.2"},
    )  # fmt: skip


def conditions(phase: str, ns: int, **changes: Any) -> wire.Conditions:
    made = wire.Conditions(
        phase=phase, monotonic_ns=ns, board=None, cpu_model="Intel(R) Xeon(R) Gold 6342", cpus_online=2, machine="x86_64",
        kernel="6.1.0-28-amd64", os="Debian GNU/Linux 12 (bookworm)", python="3.11.7", governors=None, cpu_mhz=(2793.4, 2793.4),
        temperatures_c=None, throttled=None, throttle_counts=None, load_1m=1.62, mem_available_bytes=11_300_000_000,
        swap_used_bytes=0, power_mode=None,
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


def blocks(ms: float, seed: int, *, number: int = 5, samples: int = 120) -> tuple[wire.Block, ...]:
    rng = np.random.default_rng(seed)
    made = []
    for i in range(number):
        shift = 1 + 0.008 * rng.standard_normal()
        values = ms * shift * (1 + rng.gamma(1.2, 0.012, samples))
        made.append(wire.Block(10**9 * (i + 1), tuple(int(v * 1e6) for v in values)))
    return tuple(made)


def job(form: str, **changes: Any) -> wire.Job:
    engine = "litert" if form.startswith("tflite") else "onnxruntime"
    images = wire.Blob("test.npy", "c" * 64, 6_144_128)
    made = wire.Job(
        "0123456789abcdef", wire.Blob("model", "b" * 64, 1), engine, images=images, mean=(0.5,) * 3, std=(0.2,) * 3
    )
    return dataclasses.replace(made, **changes)


def result(recipe: str, form: str, **changes: Any) -> wire.Result:
    litert = form.startswith("tflite")
    engine = wire.EngineInfo(
        name="litert" if litert else "onnxruntime", package="ai_edge_litert" if litert else "onnxruntime",
        version="2.3.0" if litert else "1.32.0", numpy="2.4.6", providers=() if litert else ("CPUExecutionProvider",), threads=1,
        inputs=(wire.TensorInfo("input", (1, 3, 32, 32), "float32"),), outputs=(wire.TensorInfo("logits", (1, 10), "float32"),),
    )  # fmt: skip
    made = wire.Result(
        job_id="0123456789abcdef", agent_sha256=AGENT, status="ok", engine=engine,
        conditions=(conditions("before", 0), conditions("warm", 10**9), conditions("after", 7 * 10**9)),
        warmup_ns=(1_900_000, 900_000), blocks=blocks(MS[form] / SPEED[recipe], hash_of(recipe, form)), load_ns=21_000_000,
        first_inference_ns=2_100_000, peak_rss_bytes=86_000_000, sensor="none", power_reason="no sensor on this device",
        started_unix_s=1_795_500_000.0,
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


def measurement(recipe: str, form: str, **changes: Any) -> Measurement:
    return Measurement(
        "local", wire.to_json(job(form)), wire.to_json(result(recipe, form, **changes)), accuracy(recipe, form), 9.0
    )


def report_input(**changes: Any) -> ReportInput:
    """The study with one failed measurement; keyword arguments replace fields."""
    measurements: dict[Any, Measurement | Failure | None] = {
        (r, f, "local"): measurement(r, f) for r in RECIPES for f in FORMATS
    }
    measurements["student", "onnx-int8", "local"] = Failure(
        "measurement", "the worker was killed by SIGILL (illegal instruction) while it loaded onnxruntime"
    )
    study = {
        "name": "resnet20-cifar10", "seed": 0, "model": {"name": "resnet20", "args": {}, "width": None},
        "data": {"name": "npz"}, "baseline": None, "recipes": RECIPES, "formats": list(FORMATS), "devices": ["local"],
        "measure": {"warmup_s": 1.0, "min_s": 5.0, "blocks": 5, "threads": 1, "score_on": "test", "score_images": None,
                    "timeout_s": 1800.0},
    }  # fmt: skip
    made = ReportInput(
        study=study,
        data={"name": "npz", "train": 8100, "val": 900, "test": IMAGES, "classes": None},
        models={r: model(r) for r in RECIPES},
        artifacts={(r, f, "int8" if f == "onnx-int8" else None): artifact(r, f) for r in RECIPES for f in FORMATS},
        measurements=measurements,
        devices={"local": {"name": "local", "board": "this machine", "transport": "local", "host": None, "user": None,
                           "int8_activations": "int8", "sensor": "none"}},
        created_unix_s=1_795_500_100.0,
        edgecompress_version="0.1.0",
        command="edgecompress run resnet20.yaml",
        host={"host": "Linux 6.1 x86_64", "python": "3.11.7", "versions": {"torch": "2.13.0"}},
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


METER = wire.SensorInfo(
    "ina219", "INA219A at 0x40 on /dev/i2c-1", "board", 0.1, 0.004, 0.01, 0.01, notes=("0.1 ohm, up to 3.2 A",)
)
IDLE_W = 2.5


def power(
    ms: float, watts: float, seed: int = 0, *, info: wire.SensorInfo = METER, windows: int = 5, idle_w: float = IDLE_W
) -> wire.Power:
    """A power pass as the agent sends it: idle, windows of 11 s with inferences of `ms` at `watts`, idle; readings every 0.1 s.
    Each window's level lies about 0.2 % from the next one's."""
    rng = np.random.default_rng(seed)
    readings: list[float] = []
    made: list[wire.Window] = []
    second = 10**9

    def part(kind: str, seconds: float, level: float) -> None:
        start = len(readings) * second // 10 + second // 20
        readings.extend(level + 0.003 * rng.standard_normal(round(10 * seconds)))
        inferences = round(1000 * (seconds - 1) / ms) if kind == "power" else 0
        made.append(
            wire.Window(
                kind,
                start + second // 2,
                start + round((seconds - 0.5) * second),
                inferences,
                int(ms * 1e6) if inferences else None,
            )
        )

    part("idle-before", 6, idle_w)
    for _ in range(windows):
        part("power", 12, watts * (1 + 0.002 * rng.standard_normal()))
    part("idle-after", 6, idle_w)
    t_ns = tuple(second // 20 + i * second // 10 for i in range(len(readings)))
    return wire.Power(wire.Trace(info, t_ns, tuple(round(w * 1e6) for w in readings)), tuple(made))


WATTS = {"onnx-fp32": 5.2, "onnx-int8": 4.9, "tflite-fp32": 5.2, "tflite-int8": 4.4}


def energy_input(**changes: Any) -> ReportInput:
    """The same study on a device with a meter; `changes` replace fields of `METER`, or `battery_wh` of the profile."""
    battery_wh = changes.pop("battery_wh", 37.0)
    info = dataclasses.replace(METER, **changes)
    plain = report_input()
    measurements = dict(plain.measurements)
    for recipe, form, device in plain.measurements:
        if not isinstance(plain.measurements[recipe, form, device], Failure):
            trace = power(MS[form] / SPEED[recipe], WATTS[form], hash_of(recipe, form), info=info)
            made = measurement(recipe, form, sensor="ina219", power=trace, power_reason=None)
            asked = dataclasses.replace(job(form), sensor="ina219", power=wire.PowerPlan())
            measurements[recipe, form, device] = dataclasses.replace(made, job=wire.to_json(asked))
    profile = {**plain.devices["local"], "sensor": "ina219", "battery_wh": battery_wh}
    return dataclasses.replace(plain, measurements=measurements, devices={"local": profile})
