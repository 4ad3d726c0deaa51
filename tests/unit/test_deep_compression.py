"""Deep Compression: what is kept in each layer, how many values are left, and the count of its size against the definition."""

from __future__ import annotations

import heapq
import json

import numpy as np
import pytest
import torch
from torch import nn

from edgecompress import codebooks, masks
from edgecompress.compress.contract import Context, full_params, parse_params
from edgecompress.compress.deep_compression import apply, size
from edgecompress.errors import UserError
from edgecompress.recipe import run_steps
from edgecompress.study import Step
from tests.small_nets import few_digits, same_state, small_net

pytestmark = pytest.mark.heavy

LAYERS = ("conv1", "conv2", "fc1", "fc2")
PLAIN = {"conv_bits": 16, "fc_bits": 16}
"""So many bits that every weight keeps its own value: what is left is the pruning."""


def compressed(tmp_path, model=None, data=None, **params):
    torch.set_num_threads(1)
    model = model or small_net()
    context = Context(data=data, seed=0, teacher=model, scratch=tmp_path)
    return apply(model, parse_params("deep_compression", params), context), context


def largest(weight: torch.Tensor, keep: int) -> torch.Tensor:
    flat = weight.detach().abs().reshape(-1)
    mask = torch.zeros(flat.numel(), dtype=torch.bool)
    mask[torch.argsort(flat, descending=True, stable=True)[:keep]] = True
    return mask.reshape(weight.shape)


def test_each_layer_keeps_its_fraction(tmp_path):
    kept = {"conv1": 0.6, "*": 0.2, "fc2": 0.5}
    model, context = compressed(tmp_path, kept=kept, **PLAIN)
    for layer in LAYERS:
        before = small_net().get_submodule(layer).weight.detach()
        expected = largest(before, round(kept.get(layer, 0.2) * before.numel()))
        after = model.get_submodule(layer).weight
        assert torch.equal(after, before * expected)
        assert torch.equal(masks.get(model)[f"{layer}.weight"], expected)
        assert context.notes["kept_fraction"][f"{layer}.weight"] == pytest.approx(float(expected.float().mean()))


def test_thresholds_are_standard_deviations_of_the_layer(tmp_path):
    factors = {"conv*": 0.5, "fc*": 1.2}
    model, _ = compressed(tmp_path, threshold_std=factors, **PLAIN)
    for layer in LAYERS:
        before = small_net().get_submodule(layer).weight.detach()
        expected = before.abs() >= factors[f"{layer[:-1]}*"] * before.double().std(correction=0)
        assert torch.equal(masks.get(model)[f"{layer}.weight"], expected) and 0 < expected.float().mean() < 1


@pytest.mark.parametrize("params", [{"sparsity": 0.7}, {}])
def test_one_sparsity_over_all_layers(tmp_path, params):
    model, _ = compressed(tmp_path, **params)
    everything = torch.cat([small_net().get_submodule(layer).weight.reshape(-1) for layer in LAYERS])
    expected = largest(everything, round((1 - params.get("sparsity", 0.9)) * everything.numel()))
    found = torch.cat([masks.get(model)[f"{layer}.weight"].reshape(-1) for layer in LAYERS])
    assert torch.equal(found, expected)


def test_it_prunes_in_steps_trains_between_shares_and_trains_the_values(tmp_path):
    train = {"epochs": 5, "batch_size": 100}
    values = {"epochs": 1, "batch_size": 100, "lr": 1e-3}
    model, context = compressed(
        tmp_path, data=few_digits(), kept=0.2, steps=2, finetune=train, finetune_codebook=values, conv_bits=3, fc_bits=2
    )
    assert [t.epochs for t in context.trainings] == [2, 3, 1]
    for layer, most in zip(LAYERS, (7, 7, 3, 3), strict=True):
        weight = model.get_submodule(layer).weight.detach()
        assert int((weight != 0).sum()) == round(0.2 * weight.numel())
        assert len(torch.unique(weight[weight != 0])) == most == context.notes["values"][f"{layer}.weight"]
        assert codebooks.holds(weight, codebooks.get(model)[f"{layer}.weight"])
        assert torch.equal(masks.get(model)[f"{layer}.weight"], weight != 0)
    again = compressed(
        tmp_path / "again", data=few_digits(), kept=0.2, steps=2, finetune=train, finetune_codebook=values, conv_bits=3, fc_bits=2
    )[0]  # fmt: skip
    assert same_state(model, again)


def test_the_thresholds_of_several_steps_rise_to_the_full_one(tmp_path):
    counts = []

    class Watch:
        def task(self, label, total):
            from edgecompress.progress import SILENT

            if "training" in label:
                counts.append(int(masks.get(model)["fc1.weight"].sum()))
            return SILENT.task(label, total)

        def say(self, text):
            pass

    model = small_net()
    torch.set_num_threads(1)
    context = Context(data=few_digits(), seed=0, teacher=model, scratch=tmp_path, progress=Watch())
    params = {"threshold_std": 1.0, "steps": 2, "finetune": {"epochs": 2, "lr": 1e-9, "batch_size": 100}, **PLAIN}
    apply(model, parse_params("deep_compression", params), context)
    before = small_net().fc1.weight.detach().abs()
    deviation = float(before.double().square().mean().sqrt())
    assert counts == pytest.approx([int((before >= s * deviation).sum()) for s in (0.5, 1.0)], abs=6)


def test_an_earlier_mask_stays_and_counts_as_dropped(tmp_path):
    model = small_net()
    earlier = torch.arange(24 * 256).reshape(24, 256) % 10 == 0
    masks.put(model, {"fc1.weight": earlier})
    compressed(tmp_path, model, kept=0.5, **PLAIN)
    assert torch.equal(masks.get(model)["fc1.weight"], earlier), "a tenth is left, half was allowed"


def test_excluded_layers_are_left(tmp_path):
    model, context = compressed(tmp_path, kept=0.1, exclude=["conv?"])
    assert torch.equal(model.conv1.weight, small_net().conv1.weight) and set(masks.get(model)) == {
        "fc1.weight", "fc2.weight",
    }  # fmt: skip
    assert len(context.notes["paper_size"]["layers"]) == 2
    left = sum(p.numel() for p in model.parameters()) - model.fc1.weight.numel() - model.fc2.weight.numel()
    assert context.notes["paper_size"]["other_bytes"] == 4 * left


def optimal_bits(symbols: list) -> int:
    """Total of a Huffman code: the sum of all merged weights, by a heap (another algorithm than the one under test)."""
    heap = list(np.unique(np.array(symbols), return_counts=True)[1].tolist()) if symbols else []
    if len(heap) == 1:
        return heap[0]
    heapq.heapify(heap)
    total = 0
    while len(heap) > 1:
        merged = heapq.heappop(heap) + heapq.heappop(heap)
        total += merged
        heapq.heappush(heap, merged)
    return total


@pytest.mark.parametrize(("density", "bits"), [(0.3, 3), (0.02, 4), (0.08, 5), (1.0, 2), (0.001, 6)])
def test_the_count_is_the_papers(density, bits):
    rng = np.random.default_rng(7)
    weight = rng.choice([-0.5, -0.25, -0.125, 0.25, 0.5], (40, 50), p=[0.1, 0.3, 0.1, 0.4, 0.1]).astype(np.float32)
    weight[rng.random((40, 50)) >= density] = 0
    # By the definition: walk over the weights, store gap and code, a filler of code 0 whenever the gap is too wide.
    codes, gaps, last = [], [], -1
    for place, value in enumerate(weight.reshape(-1)):
        if value:
            while place - last > 2**bits:
                codes, gaps, last = [*codes, 0.0], [*gaps, 2**bits - 1], last + 2**bits
            codes, gaps, last = [*codes, float(value)], [*gaps, place - last - 1], place
    found = size.layer("fc.weight", torch.from_numpy(weight), bits)
    width = max(len(set(codes)) - 1, 0).bit_length()
    assert (found.entries, found.nonzeros, found.weight_bits) == (len(codes), int((weight != 0).sum()), width)
    assert found.fixed_bits == len(codes) * (width + bits) + 32 * 2**width
    assert found.huffman_bits == optimal_bits(codes) + optimal_bits(gaps) + 32 * 2**width


def test_a_dense_layer_of_four_values_is_the_papers_example():
    """Section 3: 16 weights of 4 values, 4×4, are 16·32 / (16·2 + 4·32) = 3.2 times smaller; here without the gaps' bits."""
    weight = torch.tensor([0.1, 0.2, 0.3, 0.4]).repeat(4).reshape(4, 4)
    found = size.layer("w", weight, 1)
    assert found.weight_bits == 2 and found.entries == 16
    assert 16 * 32 / (found.fixed_bits - found.entries * found.index_bits) == 3.2


def test_the_best_index_is_the_smallest_and_an_empty_layer_takes_nothing():
    weight = torch.zeros(100, 100)
    weight[::7, ::5] = 0.5
    best = size.layer("w", weight, None)
    assert best.huffman_bits == min(size.layer("w", weight, bits).huffman_bits for bits in range(1, 13))
    empty = size.layer("w", torch.zeros(5, 5), 5)
    assert empty.fixed_bits == empty.huffman_bits == empty.table_bits == 0


def test_the_note_adds_up(tmp_path):
    model, context = compressed(tmp_path, kept=0.2, fc_bits=3, index_bits=4)
    note = json.loads(json.dumps(context.notes["paper_size"]))
    weights = {f"{layer}.weight": model.get_submodule(layer).weight for layer in LAYERS}
    others = sum(p.numel() for p in model.parameters()) - sum(w.numel() for w in weights.values())
    assert note["dense_bytes"] == 4 * sum(p.numel() for p in model.parameters()) and note["other_bytes"] == 4 * others
    assert note["huffman_bytes"] == sum(layer["huffman_bits"] for layer in note["layers"]) / 8 + 4 * others
    assert note["ratio"] == pytest.approx(note["dense_bytes"] / note["huffman_bytes"])
    assert note["ratio_fixed"] < note["ratio"] < note["ratio_weights"] and note["ratio_with_tables"] < note["ratio"]
    assert [layer["index_bits"] for layer in note["layers"]] == [4] * 4


def test_an_emptied_layer_is_told(tmp_path):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 300))
    with torch.no_grad():
        model[0].weight.mul_(1e-3)
    _, context = compressed(tmp_path, model, sparsity=0.95)
    assert context.notes["emptied_layers"] == ["0.weight"]


def test_it_survives_yaml(tmp_path):
    step = Step.model_validate({"method": "deep_compression", "kept": {"conv*": 0.5, "fc?": 0.1}, "index_bits": None})
    again = Step.model_validate({"method": "deep_compression", **json.loads(json.dumps(step.params))})
    assert again == step
    one, _ = run_steps(small_net(), (step,), data=None, seed=0, scratch=tmp_path)
    two, _ = run_steps(small_net(), (again,), data=None, seed=0, scratch=tmp_path)
    assert same_state(one, two)
    assert full_params("deep_compression", {})["conv_bits"] == 8


def test_bad_layers_are_one_clear_message_and_change_nothing(tmp_path):
    model = small_net()
    with pytest.raises(UserError, match="kept: no pattern matches the layer fc2"):
        compressed(tmp_path, model, kept={"conv*": 0.5, "fc1": 0.1})
    with pytest.raises(UserError, match="threshold_std: 'ip1' matches no convolution or linear layer"):
        compressed(tmp_path, model, threshold_std={"ip1": 1.0, "*": 2.0})
    with pytest.raises(UserError, match="needs data"):
        compressed(tmp_path / "b", kept=0.1, finetune={"epochs": 1})
    assert same_state(model, small_net()) and not masks.get(model)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"kept": 0.1, "sparsity": 0.9}, "one of kept, threshold_std and sparsity"),
        ({"kept": 0.0}, "greater than 0"),
        ({"kept": {"fc1": 1.5}}, "less than or equal to 1"),
        ({"threshold_std": -1}, "greater than 0"),
        ({"sparsity": 1.0}, "less than 1"),
        ({"steps": 0}, "greater than or equal to 1"),
        ({"steps": 3, "finetune": {"epochs": 2}}, "at least 3 epochs"),
        ({"steps": 2, "finetune": {"epochs": 4, "warmup_epochs": 2}}, "warmup_epochs"),
        ({"fc_bits": 17}, "less than or equal to 16"),
        ({"index_bits": 0}, "greater than or equal to 1"),
        ({"bits": 5}, "unknown key 'bits'"),
    ],
)
def test_bad_parameters_are_one_clear_message(params, words):
    with pytest.raises(ValueError, match=words):
        parse_params("deep_compression", params)
