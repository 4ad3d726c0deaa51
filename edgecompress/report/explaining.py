"""How the figures came to be, in sentences with this study's own numbers, and what was not measured."""

from __future__ import annotations

from typing import Any

from edgecompress.report import wording as w


def method_of_measurement(document: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    """Pairs of a heading and a paragraph."""
    measure = document["study"]["measure"]
    scored = sorted({r["scored_images"] for r in document["rows"] if r["scored_images"]})
    percent = f"{100 * document['confidence']:.0f} %"
    accuracy = (
        f"Every exported file classified the {w.value_text(scored)} images of the {measure['score_on']} part on the device "
        f"itself, one at a time, with the engine that was timed. Intervals ({percent}) are Wilson's. Two variants are compared "
        "image by image with the exact McNemar test; where the corrected p is 0.05 or more the verdict is “no measurable "
        "difference”, which says what these images can show and not that the two are equal."
        if scored
        else "No exported file was scored on a device in this study."
    )
    latency = (
        f"Batch 1, {measure['threads']} thread{'s' if measure['threads'] > 1 else ''}. After {measure['warmup_s']:g} s of "
        f"warm-up (more until it is steady), at least {measure['min_s']:g} s of back-to-back inferences in "
        f"{measure['blocks']} blocks. One inference is: set the input, run, fetch the output, on the device's monotonic clock; "
        f"preparing the image is not part of it. Nothing is dropped. Intervals ({percent}) are a bootstrap over blocks, widened "
        "for their small number; they cover what "
        "varied within one run of the process, not another start of it, another day or another board of the same kind."
    )
    size = (
        "File is the exported file as a device loads it; packed is the same after xz -6. MACs count convolution and fully "
        "connected layers, bias excluded (FLOPs = 2 × MACs). No engine here skips zeros: unstructured sparsity shows in the "
        "packed size and not in the latency."
    )
    parity = (
        "Each file was run on real validation images at export and compared with the PyTorch model; a float file beyond its "
        "tolerance, or an int8 file with a float convolution or linear layer left in it, is refused."
    )
    missing = (
        "Energy is given only where a sensor read it; otherwise it is stated as not measured and never as 0. Preprocessing, "
        "other batch sizes, other numbers of threads, and other loads on the device were not measured."
    )
    energy = _energy(document, percent)
    return (
        ("Accuracy", accuracy),
        ("Latency", latency),
        *((("Energy", energy),) if energy else ()),
        ("Size and arithmetic", size),
        ("Parity", parity),
        ("Not measured", missing),
    )


def _energy(document: dict[str, Any], percent: str) -> str:
    """Empty when no variant has an energy."""
    rows = [r for r in document["rows"] if r["energy_mj"] is not None]
    if not rows:
        return ""
    scopes = sorted({r["power_scope"] for r in rows})
    replayed = (
        " The power is a recorded trace that was replayed." if any(r["sensor_info"]["replayed"] for r in rows) else ""
    )
    return (
        f"In a pass of its own after the timing: idle, {w.value_text(sorted({r['energy_windows'] for r in rows}))} windows of "
        "back-to-back inferences, idle. The energy of a window is the trapezoid over the actual stamps of the readings, "
        f"interpolated at the edges; gross is all that was drawn ({w.value_text(scopes)}), over idle leaves out the idle power. "
        f"Intervals ({percent}) are Student's over the windows and the edges' error, plus the meter's limits of gain, offset and "
        "one step. Two variants are compared by their ratio, in which what one meter does wrong cancels; figures of different "
        f"scopes are never compared.{replayed}"
    )
