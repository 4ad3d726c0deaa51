"""The container: every tensor back bit by bit, the same bytes each time, and no file that a reader falls over."""

from __future__ import annotations

import itertools
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from ecz_case import mutations, with_good_checksums, write_model

from edgecompress.cli import main
from edgecompress.coding import ecz, pack, safetensors_file, section_reading, sections, tables, unpack
from edgecompress.coding.sizes import PackReport
from edgecompress.coding.table_bytes import CODERS
from edgecompress.errors import UserError


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("ecz") / "model")


@pytest.fixture(scope="module")
def packed(model: Path) -> tuple[Path, PackReport]:
    out = model.with_name("model.ecz")
    return out, pack(model, out)


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_a_model_directory_comes_back_byte_for_byte(
    model: Path, packed: tuple[Path, PackReport], tmp_path: Path
) -> None:
    unpack(packed[0], tmp_path / "again")
    assert contents(tmp_path / "again") == contents(model)


def test_every_form_occurs_and_the_sizes_add_up(packed: tuple[Path, PackReport]) -> None:
    path, report = packed
    forms = {(t.file, t.name): t.form for t in report.tensors}
    weights = {name: form for (file, name), form in forms.items() if file == "weights.safetensors"}
    assert weights | {"bytes": ""} == {
        "sparse": "gaps", "rare": "gaps", "dense": "dense", "zeros": "gaps", "one_value": "gaps", "float": "planes",
        "tiny": "raw", "count": "raw", "nothing": "raw", "odd": weights["odd"], "half": "gaps", "bytes": "", "double": "planes",
    }  # fmt: skip
    assert forms["masks.safetensors", "sparse"] == "support", "a mask that the zeros tell takes no bytes"
    assert forms["masks.safetensors", "dense"] in ("gaps", "dense")
    size = path.stat().st_size
    sections_bytes = sum(t.section_bytes for t in report.tensors)
    assert size == report.file_bytes
    assert size == report.head_bytes + report.directory_bytes + report.table_bytes + sections_bytes
    for t in report.tensors:
        if t.bound_bits is not None:
            assert t.bound_bits <= t.value_bits + t.gap_bits + 1e-6
            assert t.paper_bytes <= t.quantised_bytes or t.kept < 50


def test_the_bound_is_the_entropy_of_values_and_gaps(model: Path, packed: tuple[Path, PackReport]) -> None:
    tensors = {info.name: bits for info, bits in safetensors_file.read(model / "weights.safetensors")}
    row = next(t for t in packed[1].tensors if t.name == "sparse")
    bits = tensors["sparse"]
    places = np.flatnonzero(bits)
    bound = 0.0
    for symbols in (bits[places], np.diff(places, prepend=-1)):
        _, counts = np.unique(symbols, return_counts=True)
        p = counts / counts.sum()
        bound += -float((p * np.log2(p)).sum()) * places.size
    assert row.bound_bits == pytest.approx(bound)
    assert row.value_bits + row.gap_bits < 1.03 * bound


def test_the_same_directory_makes_the_same_bytes(model: Path, packed: tuple[Path, PackReport], tmp_path: Path) -> None:
    again = write_model(tmp_path / "elsewhere")
    assert contents(again) == contents(model)
    pack(again, tmp_path / "b.ecz")
    assert (tmp_path / "b.ecz").read_bytes() == packed[0].read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b.ecz", "elsewhere"], "no partial file is left"


@pytest.mark.parametrize("seed", range(2))
def test_tensors_of_any_density_and_any_number_of_values(seed: int) -> None:
    pytest.importorskip("constriction")
    rng = np.random.default_rng(seed)
    for density, values, size in itertools.product((0.0, 0.003, 0.05, 0.4, 1.0), (1, 2, 33, 256, 300), (1, 90, 20_000)):
        tensor = np.where(rng.random(size) < density, rng.choice(rng.normal(size=values), size), 0).astype(np.float32)
        bits = tensor.view(np.uint32)
        coded = sections.plan(bits, "f")
        for coder in CODERS:
            pool, picks = tables.choose([stream for stream, _ in coded.streams], tables.coders(coder))
            data = b"".join(sections.write(coded, bits, pool, picks))
            found = section_reading.read(memoryview(data), size, 4, pool)
            assert np.array_equal(found, bits)
            assert len(data) <= 1 + tensor.nbytes


def test_the_range_coder_makes_a_smaller_file_that_comes_back(
    model: Path, packed: tuple[Path, PackReport], tmp_path: Path
) -> None:
    pytest.importorskip("constriction")
    report = pack(model, tmp_path / "r.ecz", coder="range")
    assert report.file_bytes < packed[1].file_bytes
    unpack(tmp_path / "r.ecz", tmp_path / "out")
    assert contents(tmp_path / "out") == contents(model)
    with pytest.raises(UserError, match="'arithmetic' is no coder"):
        pack(model, tmp_path / "a.ecz", coder="arithmetic")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "constriction", None)
        with pytest.raises(UserError, match=r"r\.ecz: a range-coded stream needs the package constriction"):
            unpack(tmp_path / "r.ecz", tmp_path / "again")


def test_one_tensor_is_read_without_the_others(packed: tuple[Path, PackReport]) -> None:
    bent = bytearray(packed[0].read_bytes())
    with ecz.EczFile(packed[0]) as file:
        entry = file.files["weights.safetensors"]["float"]
        wanted = file.tensor("weights.safetensors", "sparse")
    bent[entry.start + 5] ^= 1
    path = packed[0].with_name("bent.ecz")
    path.write_bytes(bent)
    with ecz.EczFile(path) as file:
        assert np.array_equal(file.tensor("weights.safetensors", "sparse"), wanted)
        with pytest.raises(UserError, match="'float': its checksum is wrong"):
            file.tensor("weights.safetensors", "float")


@pytest.mark.slow
@pytest.mark.parametrize("coder", CODERS)
def test_a_small_fuzz(coder: str, tmp_path: Path) -> None:
    """`benchmarks/fuzz_ecz.py` does this 100,000 times under a limit of memory and time."""
    small = write_model(tmp_path / "small", size=600)
    pytest.importorskip("constriction")
    pack(small, tmp_path / "small.ecz", coder=coder)
    good, wanted = (tmp_path / "small.ecz").read_bytes(), contents(small)
    rng = np.random.default_rng(int(os.environ.get("EDGECOMPRESS_FUZZ_SEED", "1")))
    refused = 0
    for number, (kind, data) in enumerate(itertools.islice(mutations(good, rng), 1000)):
        path = tmp_path / "bent.ecz"
        path.write_bytes(data)
        out = tmp_path / f"out{number}"
        try:
            unpack(path, out, limit_bytes=1 << 20)
        except UserError as error:
            refused += 1
            assert str(path) in str(error) and not out.exists(), kind
        else:
            assert contents(out) == wanted, kind
    assert refused > 900
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_what_unpacks_to_too_much_is_refused_before_it_is_made(packed: tuple[Path, PackReport], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="more than the limit of 1,000"):
        unpack(packed[0], tmp_path / "out", limit_bytes=1000)
    assert not list(tmp_path.iterdir())


def test_another_version_is_named(packed: tuple[Path, PackReport], tmp_path: Path) -> None:
    data = bytearray(packed[0].read_bytes())
    data[4] = 9
    (tmp_path / "v9.ecz").write_bytes(with_good_checksums(bytes(data)))
    with pytest.raises(UserError, match="has version 9"):
        ecz.EczFile(tmp_path / "v9.ecz")


def test_a_wrong_request_is_one_message_and_writes_nothing(
    model: Path, packed: tuple[Path, PackReport], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.ecz").write_bytes(b"")
    damaged = write_model(tmp_path / "damaged")
    data = bytearray((damaged / "weights.safetensors").read_bytes())
    data[-1] ^= 1
    (damaged / "weights.safetensors").write_bytes(data)
    (tmp_path / "nodir").mkdir()
    before = sorted(tmp_path.iterdir())
    out = str(tmp_path / "out")
    for argv, part in (
        (["pack", str(tmp_path / "absent"), out], "no model directory"),
        (["pack", str(tmp_path / "nodir"), out], "no model directory"),
        (["pack", str(damaged), out], "is damaged"),
        (["pack", str(model), str(packed[0])], "is there already"),
        (["pack", str(model), str(tmp_path / "no" / "such" / "place.ecz")], "cannot be written"),
        (["unpack", str(tmp_path / "absent.ecz"), out], "No such file"),
        (["unpack", str(tmp_path / "empty.ecz"), out], "the file is empty"),
        (["unpack", str(model / "weights.safetensors"), out], "no .ecz file"),
        (["unpack", str(packed[0]), str(model)], "not empty"),
        (["unpack", str(packed[0]), out, "--limit-gib", "0"], "above 0"),
        (["unpack", str(packed[0]), out, "--limit-gib", "1e-6"], "more than the limit"),
    ):
        assert main(argv) == 2
        printed, err = capsys.readouterr()
        assert part in err and "Traceback" not in err and printed == "", argv
        assert sorted(tmp_path.iterdir()) == before, argv


def test_the_verbs_pack_show_and_unpack(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pack", str(model), str(tmp_path / "m.ecz")]) == 0
    shown = capsys.readouterr().out
    size = (tmp_path / "m.ecz").stat().st_size
    assert "the file, every byte of it" in shown and f"{size:,} bytes" in shown
    assert "as the paper counts, before coding" in shown and "code tables" in shown
    sparse = next(line for line in shown.splitlines() if line.startswith("sparse"))
    assert sparse.split()[1:3] == ["6,000", f"{100 * np.count_nonzero(read(model, 'sparse')) / 6000:.1f}"]
    assert main(["unpack", str(tmp_path / "m.ecz"), str(tmp_path / "out")]) == 0
    assert contents(tmp_path / "out") == contents(model)
    assert main(["pack", str(model), str(tmp_path / "n.ecz"), "--json"]) == 0
    out = capsys.readouterr().out
    sizes = json.loads(out[out.index("{") :])
    assert sizes["file_bytes"] == size and len(sizes["tensors"]) == 15


def read(model: Path, name: str) -> np.ndarray:
    return next(bits for info, bits in safetensors_file.read(model / "weights.safetensors") if info.name == name)


@pytest.mark.heavy
def test_load_and_evaluate_read_a_packed_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    import edgecompress as ec
    from edgecompress import masks
    from edgecompress.models import build
    from edgecompress.models.checkpoint import save_model
    from edgecompress.study import ModelSpec

    net = build(ModelSpec(name="resnet20", width=0.25), num_classes=10, in_shape=(1, 8, 8), seed=3)
    name = "layer2.0.conv2.weight"
    weight = dict(net.named_parameters())[name]
    masks.put(net, {name: masks.keep_highest(weight.abs(), weight.numel() // 10)})
    save_model(tmp_path / "model", net)
    pack(tmp_path / "model", tmp_path / "model.ecz")
    loaded = ec.load(tmp_path / "model.ecz")
    images = torch.randn(2, 1, 8, 8)
    assert torch.equal(loaded(images), net.eval()(images))
    assert torch.equal(masks.get(loaded)[name], masks.get(net)[name])
    scores = []
    for what in ("model", "model.ecz"):
        assert main(["evaluate", str(tmp_path / what), "--data", "digits", "--json"]) == 0
        scores.append(capsys.readouterr().out)
    assert scores[0] == scores[1]
    (tmp_path / "model.ecz").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"model\.ecz: is damaged, or no \.ecz file"):
        ec.load(tmp_path / "model.ecz")
