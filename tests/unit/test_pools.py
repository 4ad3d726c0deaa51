"""Pools of boards: what may stand in their files, what is refused, and what their measurements depend on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from edgecompress.cli import main
from edgecompress.compress.contract import Asked
from edgecompress.device_profile import DeviceProfile
from edgecompress.errors import UserError
from edgecompress.plan import make_plan
from edgecompress.pools import DevicePool, document_of, facts_of, members_of, read_device_or_pool
from edgecompress.study import StudySpec


def write(folder: Path, stem: str, **fields: Any) -> str:
    values: dict[str, Any] = {"name": stem, "transport": "ssh", "host": f"{stem}.lan", "board": "Raspberry Pi 5"}
    (folder / f"{stem}.yaml").write_text(yaml.safe_dump({k: v for k, v in (values | fields).items() if v is not None}))
    return f"{stem}.yaml"


def pool_of(folder: Path, *members: str, **fields: Any) -> DevicePool:
    (folder / "pool.yaml").write_text(yaml.safe_dump({"name": "pi-pool", "pool": list(members), **fields}))
    pool = read_device_or_pool("pool.yaml", base=folder)
    assert isinstance(pool, DevicePool)
    return pool


def test_a_pool_is_its_boards(tmp_path: Path) -> None:
    pool = pool_of(tmp_path, write(tmp_path, "a"), write(tmp_path, "b", workdir="/mnt/x", port=2222))
    assert pool.name == "pi-pool" and pool.board == "Raspberry Pi 5"
    assert [m.name for m in members_of(pool)] == ["a", "b"]
    single = read_device_or_pool("a.yaml", base=tmp_path)
    assert isinstance(single, DeviceProfile) and members_of(single) == (single,)
    document = document_of(pool)
    assert document["int8_activations"] == "int8" and [m["name"] for m in document["pool"]] == ["a", "b"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"int8_activations": "uint8"}, "int8_activations: uint8 there, int8 with a"),
        ({"providers": ["CUDAExecutionProvider", "CPUExecutionProvider"]}, "b is not like a: providers"),
        ({"cpus": [3]}, r"b is not like a: cpus: \[3\] there, None with a"),
        ({"sensor": "ina219"}, "b is not like a: sensor: ina219 there, none with a"),
        ({"engines": {"onnx": "onnxruntime"}}, "b is not like a: engines"),
        ({"battery_wh": 5.0}, "b is not like a: battery_wh"),
        ({"host": "A.lan"}, "a and b are the same board"),
        ({"name": "a"}, "two boards are named 'a'"),
        ({"transport": "local", "host": None}, "b is this machine"),
    ],
)
def test_boards_that_do_not_belong_together_are_one_clear_message(
    changed: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said) as error:
        pool_of(tmp_path, write(tmp_path, "a"), write(tmp_path, "b", **changed))
    assert "pool.yaml" in error.value.where and error.value.fix


def test_a_pool_without_sense(tmp_path: Path) -> None:
    a = write(tmp_path, "a")
    with pytest.raises(UserError, match="unknown device 'bord'"):
        pool_of(tmp_path, a, "bord")
    with pytest.raises(UserError, match=r"pool\.yaml: pool: gone\.yaml is not there"):
        pool_of(tmp_path, a, "gone.yaml")
    with pytest.raises(UserError, match="pool: needs at least 1 item"):
        pool_of(tmp_path)
    with pytest.raises(UserError, match="unknown key"):
        pool_of(tmp_path, a, host="x")
    pool_of(tmp_path, a)
    (tmp_path / "outer.yaml").write_text("{name: outer, pool: [a.yaml, pool.yaml]}\n")
    with pytest.raises(UserError, match=r"pool\.yaml is a pool itself"):
        read_device_or_pool("outer.yaml", base=tmp_path)


def test_where_one_board_is_needed_a_pool_says_which_there_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool_of(tmp_path, write(tmp_path, "a"), write(tmp_path, "b"))
    assert main(["device", "channels", str(tmp_path / "pool.yaml")]) == 2
    assert "is a pool of boards" in (said := capsys.readouterr().err) and "a.yaml, b.yaml" in said


def test_a_verb_about_a_device_is_done_for_every_board_of_a_pool(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    away = {"host": "127.0.0.1", "known_hosts": "none", "ssh_config": "config"}
    (tmp_path / "config").touch()
    pool_of(tmp_path, write(tmp_path, "a", port=1, **away), write(tmp_path, "b", port=2, **away))
    file = str(tmp_path / "pool.yaml")
    assert main(["device", "doctor", file]) == 1
    assert [line for line in capsys.readouterr().out.splitlines() if line in ("a", "b")] == ["a", "b"]
    assert main(["device", "doctor", file, "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert [(table["device"], table["ok"]) for table in told] == [("a", False), ("b", False)]
    for verb in (["trust", file], ["setup", file], ["setup", file, "--remove"]):
        assert main(["device", *verb]) == 1
        said = capsys.readouterr().err
        assert "a: 127.0.0.1:1 cannot be reached" in said and "b: 127.0.0.1:2 cannot be reached" in said
    pool_of(tmp_path, "a.yaml", write(tmp_path, "b", port=2, **away, python="python3"))
    assert main(["device", "setup", file]) == 2, "the worst"


def test_what_was_meant_for_a_pool_or_a_profile(tmp_path: Path) -> None:
    def refused(text: str) -> str:
        (tmp_path / "d.yaml").write_text(text)
        with pytest.raises(UserError) as error:
            read_device_or_pool("d.yaml", base=tmp_path)
        return str(error.value)

    assert "pools: unknown key. Did you mean 'pool'" in refused("{name: d, pools: [a.yaml]}")
    assert "is empty" in (said := refused("")) and "profiles/devices/" in said and "studies" not in said
    said = refused("{name: d, transport: ssh, host: a b}")
    assert "host: must be one host name, address or alias" in said and "not 'a b'" in said and "^" not in said
    for key, bad in (
        ("name", "-"),
        ("user", "a b"),
        ("python", "a;b"),
        ("password_env", "A B"),
        ("providers", "[a-b]"),
    ):
        said = refused(f"{{name: d, {key}: {bad}}}" if key != "name" else f"{{name: '{bad}'}}")
        assert "must be" in said and "pattern" not in said and "^" not in said, said


def test_a_board_may_join_and_nothing_is_measured_again(tmp_path: Path) -> None:
    a, b = write(tmp_path, "a"), write(tmp_path, "b", port=2222, workdir="/x", python="python3.9")
    one, two = pool_of(tmp_path, a), pool_of(tmp_path, a, b)
    assert facts_of(one) == facts_of(two)
    study = StudySpec.model_validate({"name": "s", "model": {"name": "lenet5"}, "data": {"name": "digits"}})
    keys = [
        [v.measurement for v in make_plan(study, {"pi-pool": pool}, agent_sha256="x").variants] for pool in (one, two)
    ]
    assert keys[0] == keys[1]
    # but another shunt is another meter
    metered = {"sensor": "ina219", "sensor_options": {"shunt_ohm": 0.1}}
    other = {"sensor": "ina219", "sensor_options": {"shunt_ohm": 0.05}}
    alone = pool_of(tmp_path, write(tmp_path, "a", **metered))
    mixed = pool_of(tmp_path, "a.yaml", write(tmp_path, "b", **other))
    assert facts_of(alone) != facts_of(mixed)


def test_a_step_that_measures_while_it_works_may_do_so_on_a_pool(tmp_path: Path) -> None:
    recipes = {"p": [{"method": "channels", "macs": 0.5, "multiple": "auto"}]}
    study = StudySpec.model_validate(
        {"name": "s", "model": {"name": "resnet20"}, "data": {"name": "digits"}, "recipes": recipes}
    )
    a, b = write(tmp_path, "a"), write(tmp_path, "b")
    nodes = [
        make_plan(study, {"pi-pool": pool}, agent_sha256="x").recipes["p"][-1]
        for pool in (pool_of(tmp_path, a), pool_of(tmp_path, a, b))
    ]
    assert nodes[0] == nodes[1] and nodes[0].measures == Asked("pi-pool", "onnx-fp32")
