"""What a row of results.json holds: name, unit and meaning of every field, in the order of the columns.

The rows are checked against this table when they are made, docs/results-format.md repeats it, and a test compares the two.
"""

from __future__ import annotations

from dataclasses import dataclass

SCHEMA_VERSION = 1
"""Raised when a field is removed or changes its meaning; a new field alone does not raise it."""


@dataclass(frozen=True)
class Field:
    """unit: of a number; 'text', 'true/false', 'list', 'object' or 'comparison' for the others."""

    name: str
    unit: str
    meaning: str


def _table(text: str) -> tuple[Field, ...]:
    cells = ([" ".join(c.split()) for c in line.split("|", 2)] for line in text.strip().splitlines())
    return tuple(Field(name, unit, meaning) for name, unit, meaning in cells)


ROW = _table("""
recipe | text | name of the recipe in the study
steps | list | the recipe's steps in order, as the study asked: objects of `method` and `params` (defaults filled in)
format | text | export format: onnx-fp32, onnx-int8, tflite-fp32, tflite-int8
device | text | name of the device profile
member | text | the board that measured, by its profile's name: of a pool one of its members, else `device`
status | text | `ok`; `failed` (see `reason`); `not-measured` (there is no measurement yet)
reason | text | why the status is not `ok`: the stage that failed and what it said
params | count | parameters of the model, zeros included
nonzero_params | count | parameters that are not exactly zero
macs | count | multiply-accumulates of convolution and fully connected layers for one input, bias excluded (FLOPs = 2 × MACs)
effective_macs | count | `macs` without those whose weight is exactly zero; no engine here skips them
peak_activation_bytes | bytes | largest sum of one layer's input and output as float32: a lower bound of the working memory
model_top1 | fraction | top-1 accuracy of the PyTorch model on the host, before export
model_scored_on | text | part of the data that `model_top1` is of
weights | text | file the model's weights came from, when they were not trained in this study
train_seconds | s | wall time of all trainings of this recipe (of the baseline's row: of the baseline), on the host; \
    0: nothing was trained
train_reason | text | why `train_seconds` is null
train_energy_j | J | energy of those trainings
train_energy_reason | text | why `train_energy_j` is null
compress_seconds | s | wall time of the recipe's steps, their trainings included
step_results | list | per step: `method`, `params`, `seconds`, `train_seconds`, `epochs`, `notes` of the method
file | text | the exported file, relative to the run directory
sha256 | text | of the exported file
file_bytes | bytes | size of the exported file
packed_bytes | bytes | its size after `xz -6`: what a download or a flash image would cost
file_weights | count | weights of convolution and fully connected layers in the file
file_zeros | count | how many of them are exactly zero
model_zeros | count | how many of them are exactly zero in the PyTorch model, by its masks: never more than `file_zeros`, and less \
    where int8 rounded weights to 0 or batch norm's factor is 0; null: the file's layers are not the model's one to one
zero_fraction | fraction | `file_zeros` / `file_weights`
activation_type | text | int8 ONNX files: integer type of the activations, chosen by the device's profile
input_shape | list | shape of the file's input
input_dtype | text | number type of the file's input
operators | object | operator type → how many there are in the file
parity | object | the file against the PyTorch model on real images, at export: `images`, `max_abs_diff`, \
    `mean_abs_diff`, `top1_agreement`, and the `tolerance` or `agreement_floor` it was held to
toolchain | object | package → version, of what wrote the file
top1 | fraction | top-1 accuracy of the exported file, from the predictions that the device made
top1_low | fraction | lower end of its 95 % interval (Wilson)
top1_high | fraction | upper end of its 95 % interval (Wilson)
top5 | fraction | top-5 accuracy of the exported file; null for 5 classes or fewer
scored_on | text | part of the data: `test` or `val`
scored_images | count | images that it was scored on
accuracy_reason | text | why `top1` is null
latency_ms_p50 | ms | median time of one inference, batch 1: input set, run, output fetched
latency_ms_low | ms | lower end of the 95 % interval of the median (bootstrap over blocks)
latency_ms_high | ms | upper end of the 95 % interval of the median
latency_ms_p90 | ms | 90th percentile
latency_ms_p90_low | ms | lower end of its 95 % interval
latency_ms_p90_high | ms | upper end of its 95 % interval
latency_ms_p99 | ms | 99th percentile
latency_ms_p99_low | ms | lower end of its 95 % interval
latency_ms_p99_high | ms | upper end of its 95 % interval
latency_ms_min | ms | fastest inference
latency_ms_max | ms | slowest inference; nothing is dropped
latency_samples | count | timed inferences
latency_block_ms_p50 | list | median of each block, in ms, in the order of time
warmup_samples | count | inferences of the warm-up, not part of any figure
load_ms | ms | time to create the engine's session from the file
first_inference_ms | ms | the very first inference
peak_rss_bytes | bytes | largest resident memory of the measuring process: Python, engine and model
operator_times | object | time by operator (docs/profiling.md): how it was found, `sum_ms` beside `latency_ms_p50`, \
    `by_type` and `operators`, largest first, each with `ms`, `share`, `macs`, `parameter_bytes`, `activation_bytes`
operator_times_reason | text | why `operator_times` is null
energy_mj | mJ | energy of one inference, all that was drawn while it ran (gross)
energy_mj_low | mJ | lower end of its 95 % interval: scatter of the windows, edges, and the meter's limits
energy_mj_high | mJ | upper end of its 95 % interval
energy_reason | text | why `energy_mj` is null: no sensor, or what makes the trace invalid
energy_dynamic_mj | mJ | the same over the idle device; null also when idle was not measured
energy_dynamic_mj_low | mJ | lower end of its 95 % interval
energy_dynamic_mj_high | mJ | upper end of its 95 % interval
power_mean_w | W | mean power of the windows under load
power_peak_w | W | largest reading in them
idle_w | W | power of the device when idle, mean of before and after
idle_before_w | W | idle before the windows
idle_after_w | W | idle after them
energy_delay_mjs | mJ·s | energy-delay product: energy of one inference times its mean time in the power pass
inferences_per_wh | count | inferences for one watt-hour
battery_hours | h | how long the battery of the device's profile lasts with inferences back to back
battery_reason | text | why `battery_hours` is null
energy_windows | count | windows under load
energy_samples | count | readings of the sensor, idle included
energy_window_mj | list | energy of one inference in each window, in the order of time
energy_budget_mj | object | half-widths that the interval of `energy_mj` is made of: `windows`, `edges` (added as squares); \
    `gain`, `offset`, `step`, `clock` (added as they are)
power_scope | text | what the power includes: module, board, usb-input, pmic-rails, cpu-package; as-wired: nobody said. \
    Figures of different scopes are never compared
sensor | text | what read the power; `(replayed)`: a recorded trace
sensor_cost | ratio | median latency of the power pass, sensor on, over that of the timing, which has none beside it
sensor_info | object | its `description`, `interval_s`, `resolution_w` (one step), `gain_error` (fraction), `offset_error_w`, \
    `replayed`, `chosen_because`, `notes`
engine | text | what executed the file, with its version
engine_package | text | distribution that served the engine
providers | list | execution providers in use (ONNX Runtime)
threads | count | threads of the engine
cpus | list | CPUs that the measurement was pinned to; null: not pinned
measured_unix_s | s | start of the measurement, seconds since 1970 (the device's clock)
conditions | list | state of the device before, after the warm-up, and after: clocks, governors, temperatures, \
    throttling, load, memory
agent_sha256 | text | the agent that measured
pareto_latency | true/false | no other row of this device is at least as accurate and as fast, and better in one of the two
pareto_size | true/false | no other row of this device is at least as accurate and as small (`file_bytes`), and better \
    in one of the two
pareto_packed | true/false | the same with `packed_bytes`
pareto_energy | true/false | no other row of this device and scope is at least as accurate and needs as little `energy_mj`, \
    and is better in one of the two
vs_baseline | comparison | against the baseline in the same format on the same device: what the recipe changed
vs_float | comparison | against the float file of the same recipe, file type and device: what int8 changed
vs_reference | comparison | against the baseline's float file of the same file type and device: what recipe and int8 \
    changed together
notes | list | what a reader should know to read the row rightly
warnings | list | what makes its figures less certain
""")

COMPARISON = _table("""
with | text | the other row, as `recipe / format`
reason | text | why there is no comparison (the other row is not there or failed), or why a part of it is null
speedup | ratio | its median latency over this row's; above 1: this row is faster
speedup_low | ratio | lower end of the 95 % interval (bootstrap over the blocks of both)
speedup_high | ratio | upper end of the 95 % interval
speed_verdict | text | `faster`, `slower` or `no measurable difference` (the interval holds 1)
accuracy_difference | fraction | this row's top-1 minus the other's, on the same images
accuracy_difference_low | fraction | lower end of the 95 % interval (paired)
accuracy_difference_high | fraction | upper end of the 95 % interval (paired)
accuracy_lost | count | images that only the other row has right
accuracy_won | count | images that only this row has right
accuracy_p | probability | exact two-sided McNemar test
accuracy_p_adjusted | probability | the same after Holm's correction over all comparisons of this kind on this device
accuracy_verdict | text | `lower`, `higher` or `no measurable difference` (adjusted p of 0.05 or more)
size_ratio | ratio | the other file's bytes over this file's; above 1: this one is smaller
packed_ratio | ratio | the same for `packed_bytes`
energy_ratio | ratio | its energy per inference over this row's; above 1: this row needs less
energy_ratio_low | ratio | lower end of the 95 % interval; what one meter does wrong in both cancels
energy_ratio_high | ratio | upper end of the 95 % interval
energy_verdict | text | `less`, `more` or `no measurable difference` (the interval holds 1, or less than a step of the meter)
energy_reason | text | why two measured energies are not compared (their scopes differ)
""")

DOCUMENT = _table("""
schema_version | count | version of this format
edgecompress_version | text | version that wrote the file
created_unix_s | s | when it was written, seconds since 1970
command | text | the command that made it
study | object | the study with all defaults filled in
data | object | the dataset: sizes, normalisation, augmentation, classes, indices of the calibration images
devices | object | name → the device's profile, without how it is reached (host, user, keys); of a pool what \
    its boards have in common, and `pool`: their profiles
host | object | the machine that trained, compressed and exported: system, Python, versions of its tools
confidence | fraction | of every interval
rows | list | one object for each recipe × format × device of the study, failed ones included
best | list | per device: `device`, and `fastest`, `smallest`, `least_energy` = indices into `rows` of the best without a \
    measurable loss of accuracy against `vs_reference` (null: there is none), `reason` when there can be none
findings | list | per device: `device`, what it is and ran (`facts`), and `warnings` that hold for all its rows
""")
