"""What a reader must know beside the figures: warnings that make them less certain, notes that keep them from being misread."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from edgecompress_agent import wire

from edgecompress.records import Artifact

MIN_SAMPLES = 100
MIN_BLOCKS = 5
BUSY_LOAD = 0.5
"""Load average before the measurement from which others are said to have been at work."""
BLOCK_SPREAD = 0.05
CLOCK_CHANGE = 0.1
HOT_C = 80.0
WARMED_C = 5.0
"""Rise of a temperature from the warm-up to the end from which the device was not yet at its own."""
FEW_IMAGES_WIDTH = 0.04
"""Width of an accuracy's interval from which more images are asked for."""

OTHER_C = 10.0
"""Difference of the hottest temperatures of two variants from which it is said."""

_PI_THROTTLE_NOW = {0: "under-voltage", 1: "ARM clock capped", 2: "throttled", 3: "soft temperature limit"}

Blocks = Sequence[Sequence[float]]


def latency_warnings(blocks_ms: Blocks) -> list[str]:
    """Too few samples or blocks, and blocks that differ: the measurement was not steady."""
    warnings = []
    samples = sum(len(b) for b in blocks_ms)
    if samples < MIN_SAMPLES:
        warnings.append(f"only {samples} timed inferences: a longer min_s gives at least {MIN_SAMPLES}")
    elif samples < 1000:
        warnings.append(f"the 99th percentile rests on the slowest {max(1, samples // 100)} of {samples} inferences")
    if len(blocks_ms) < MIN_BLOCKS:
        warnings.append(
            f"only {len(blocks_ms)} blocks: intervals from fewer than {MIN_BLOCKS} are narrower than the truth"
        )
    medians = [statistics.median(b) for b in blocks_ms]
    spread = (max(medians) - min(medians)) / statistics.median(medians)
    if spread > BLOCK_SPREAD:
        warnings.append(
            f"not steady: the medians of the blocks lie {100 * spread:.0f} % apart ({min(medians):.3g} to {max(medians):.3g} ms)"
        )
    return warnings


def condition_warnings(conditions: Sequence[wire.Conditions]) -> list[str]:
    """Load of others, clocks, heat, throttling, memory: from what the device said before, during and after."""
    if not conditions:
        return ["the device told nothing about its state"]
    first, last = conditions[0], conditions[-1]
    warnings = []
    if first.load_1m is not None and first.load_1m >= BUSY_LOAD:
        warnings.append(
            f"the device was busy: load average {first.load_1m:.2g} over the minute before the measurement"
            f"{f' on {first.cpus_online} CPUs' if first.cpus_online else ''}; latencies may be too high"
        )
    if len({c.boot_id for c in conditions if c.boot_id is not None}) > 1:
        warnings.append("the device was restarted between two rounds: they may differ by more than their blocks show")
    governors = sorted({g for c in conditions for g in c.governors or ()})
    if len(governors) > 1 or (governors and governors != ["performance"]):
        warnings.append(f"CPU governor {', '.join(governors)}: the clock changes with the load; `performance` holds it")
    if first.power_mode != last.power_mode:
        warnings.append(f"the power mode changed from {first.power_mode} to {last.power_mode}")
    warm = conditions[1] if len(conditions) > 2 else first
    if warm.cpu_mhz and last.cpu_mhz and max(warm.cpu_mhz) > 0:
        change = max(last.cpu_mhz) / max(warm.cpu_mhz) - 1
        if abs(change) > CLOCK_CHANGE:
            warnings.append(f"the fastest CPU's clock changed by {100 * change:+.0f} % during the measurement")
    warnings += _throttling(conditions)
    hottest = max((t for c in conditions for t in (c.temperatures_c or {}).values()), default=None)
    if hottest is not None and hottest >= HOT_C:
        warnings.append(f"the device reached {hottest:.0f} °C")
    cold, hot = warm.temperatures_c or {}, last.temperatures_c or {}
    risen = {zone: hot[zone] - cold[zone] for zone in cold.keys() & hot.keys()}
    zone = max(sorted(risen), key=lambda z: risen[z], default=None)
    if zone is not None and risen[zone] >= WARMED_C:
        warnings.append(
            f"the device warmed up during the measurement: {zone} from {cold[zone]:.0f} to {hot[zone]:.0f} °C"
        )
    if None not in (first.swap_used_bytes, last.swap_used_bytes):
        grown = (last.swap_used_bytes or 0) - (first.swap_used_bytes or 0)
        if grown > 1 << 20:
            warnings.append(f"the device swapped out {grown / 1e6:.0f} MB during the measurement")
    return warnings


def _throttling(conditions: Sequence[wire.Conditions]) -> list[str]:
    warnings = []
    happened = sorted({name for c in conditions for name in _pi_throttle_names(c.throttled)})
    if happened:
        warnings.append(f"throttled during the measurement: {', '.join(happened)}")
    before, after = conditions[0].throttle_counts or {}, conditions[-1].throttle_counts or {}
    grown = sum(max(0, after[name] - before[name]) for name in after.keys() & before.keys())
    if grown:
        warnings.append(f"the kernel counted {grown} thermal throttle events during the measurement")
    return warnings


def _pi_throttle_names(throttled: str | None) -> list[str]:
    try:
        bits = int(throttled or "0", 16)
    except ValueError:
        return [f"unreadable state {throttled!r}"]
    return [name for bit, name in _PI_THROTTLE_NOW.items() if bits >> bit & 1]


def accuracy_warnings(low: float, high: float, images: int) -> list[str]:
    if high - low <= FEW_IMAGES_WIDTH:
        return []
    return [f"scored on {images} images only: top-1 is known to {100 * (high - low) / 2:.1f} points either way"]


def difference_warnings(
    own: wire.Result, other: wire.Result, own_before: wire.Conditions | None, other_before: wire.Conditions | None
) -> list[str]:
    """What keeps two measurements of one device from being compared on equal terms."""
    warnings = []
    if own.engine and other.engine and own.engine.name == other.engine.name:
        versions = [f"{r.engine.package} {r.engine.version}" for r in (own, other) if r.engine]
        if versions[0] != versions[1]:
            warnings.append(f"compared across engine versions: {versions[0]} here, {versions[1]} there")
    if own_before and other_before:
        for what in ("cpu_model", "kernel", "power_mode", "governors"):
            here, there = getattr(own_before, what), getattr(other_before, what)
            if here != there:
                warnings.append(
                    f"compared across conditions: {what.replace('_', ' ')} was {_said(here)} here, {_said(there)} there"
                )
    return [*warnings, *_warm_differences(_warm(own), _warm(other))]


def board_warnings(own: str | None, other: str | None) -> list[str]:
    """What two boards of a pool add to a comparison: no interval holds how much they differ."""
    if own is None or other is None or own == other:
        return []
    return [f"compared across boards: {own} here, {other} there, and how much they differ is in no interval"]


def _warm(result: wire.Result) -> wire.Conditions | None:
    """The device when the first timing began: idle clocks before it tell nothing."""
    return next((c for c in result.conditions if c.phase == "warm"), None)


def _warm_differences(own: wire.Conditions | None, other: wire.Conditions | None) -> list[str]:
    if own is None or other is None:
        return []
    warnings = []
    if own.cpu_mhz and other.cpu_mhz:
        here, there = max(own.cpu_mhz), max(other.cpu_mhz)
        if abs(here - there) > CLOCK_CHANGE * max(min(here, there), 1.0):
            warnings.append(
                f"compared across conditions: the fastest CPU ran at {here:.0f} MHz here, {there:.0f} there"
            )
    if own.temperatures_c and other.temperatures_c:
        here, there = max(own.temperatures_c.values()), max(other.temperatures_c.values())
        if abs(here - there) >= OTHER_C:
            warnings.append(f"compared across conditions: the device had {here:.0f} °C here, {there:.0f} °C there")
    return warnings


def _said(value: object) -> str:
    return ", ".join(sorted({str(v) for v in value})) if isinstance(value, tuple) else str(value)


def zero_note(artifact: Artifact, macs: int | None, effective_macs: int | None) -> list[str]:
    """Zeros in a file cost as much time as other weights; without this note a sparsity reads like a speed."""
    if artifact.weights == 0 or artifact.zeros / artifact.weights < 0.01:
        return []
    text = (
        f"{100 * artifact.zeros / artifact.weights:.0f} % of the weights are exactly zero; the engine multiplies by them all "
        "the same: unstructured zeros make the packed file smaller and give no speed"
    )
    if macs and effective_macs is not None:
        text += f" (effective MACs, {100 * effective_macs / macs:.0f} % of all, are not a latency)"
    return [text]


def _missing_instructions(first: wire.Conditions | None, machine: str, x86: bool) -> list[str]:
    """What the CPU lacks for int8: by what it says of itself, else by its name."""
    arm = machine.startswith(("arm", "aarch64"))
    has = first.int8_instructions if first else None
    if has is not None and x86 and not {"avx512_vnni", "avx_vnni"} & set(has):
        wide = "" if "avx2" in has else ", nor AVX2"
        return [f"this CPU has no VNNI instructions{wide}: an int8 product takes several instructions in place of one"]
    if has is not None:
        return ["this core has no int8 dot-product instructions (asimddp)"] if arm and "asimddp" not in has else []
    cpu_model = (first.cpu_model or "") if first else ""
    if machine.startswith("armv7") or any(core in cpu_model for core in ("Cortex-A72", "Cortex-A57", "Cortex-A53")):
        return ["this core has no int8 dot-product instructions"]
    return []


def why_int8_is_not_faster(
    artifact: Artifact, result: wire.Result, float_ms: float, first: wire.Conditions | None
) -> str:
    """The likely reasons, each tied to a fact of this file, engine or CPU; never a guess without one.

    float_ms: median of the float file of the same recipe. first: the device's state before the measurement.
    """
    reasons = []
    machine = (first.machine if first else "").lower()
    x86 = machine in ("x86_64", "amd64", "i686")
    engine = result.engine.name if result.engine else ""
    if x86 and engine == "onnxruntime" and artifact.activation_type in ("int8", "symmetric-int8"):
        reasons.append(
            f"the file's activations are {artifact.activation_type}, for which ONNX Runtime has no fast kernels on x86 "
            "(set int8_activations: uint8 in the device's profile and run again)"
        )
    if (
        machine.startswith(("arm", "aarch64"))
        and engine == "onnxruntime"
        and (artifact.activation_type or "").startswith("uint8")
    ):
        reasons.append(
            f"the file's activations are {artifact.activation_type}, while ONNX Runtime's ARM kernels are made for int8 "
            "(int8_activations: int8)"
        )
    reasons += _missing_instructions(first, machine, x86)
    if result.engine and "tflite_runtime" in result.engine.package.replace("-", "_") and x86:
        reasons.append("tflite_runtime has slow int8 kernels on x86 (ai-edge-litert is faster)")
    conversions = sum(
        count
        for name, count in artifact.operators.items()
        if name.lower() in ("quantizelinear", "dequantizelinear", "quantize", "dequantize")
    )
    if conversions:
        reasons.append(
            f"the file holds {conversions} operators that convert between int8 and float; those that the engine cannot "
            "merge with a neighbour cost time"
        )
    if float_ms < 1:
        reasons.append(
            f"the float file needs only {float_ms:.2g} ms, of which fixed costs per operator are a large part"
        )
    tail = "; ".join(reasons) if reasons else "no cause is visible in the file, the engine or the CPU"
    return f"int8 is not faster than float here: {tail}"
