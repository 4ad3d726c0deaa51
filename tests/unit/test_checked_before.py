"""What a network cannot be given, whatever its weights, is said before anything is trained."""

from __future__ import annotations

import copy

import pytest
from torch import nn

from edgecompress.cli import main
from edgecompress.compress.channels.grouping import find_groups
from edgecompress.compress.contract import Context, check_network
from edgecompress.errors import UserError
from edgecompress.models import build
from edgecompress.recipe import check_before
from edgecompress.study import ModelSpec, Step

pytestmark = pytest.mark.heavy


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ("method: amc, macs: 0.01", "macs: 0.01 is out of reach: the lowest is 0."),
        ("method: amc, granularity: weights, bytes: 0.01", "bytes: 0.01 is out of reach: the lowest is 0."),
        ("method: amc, macs: 0.5, importance: taylor, exclude: ['*']", "no channels can be cut"),
        ("method: amc, policy: policy.yaml", "policy.yaml: keep: 'layer9.0.conv1' matches nothing"),
        ("method: amc, macs: 0.5, save: nowhere/policy.yaml", "the policy cannot be written there"),
        ("method: channels, macs: 0.01", "macs: 0.01 is out of reach: the lowest is 0."),
        ("method: channels, ratios: {conv9: 0.5}", "conv9"),
    ],
)
def test_a_network_that_cannot_be_given_what_is_asked_is_found_out_before_the_training(
    tmp_path, monkeypatch, capfd, step, words
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "policy.yaml").write_text("amc_policy: 1\nkeep: {layer9.0.conv1: 0.5}\n")
    (tmp_path / "study.yaml").write_text(
        "name: s\nmodel: {name: resnet20}\ndata: {name: digits}\nbaseline: {epochs: 1}\ndevices: [local]\n"
        f"recipes: {{first: [], cut: [{{{step}}}]}}\nformats: [onnx-fp32]\n"
    )
    assert main(["run", "study.yaml", "--out", "run"]) == 2
    said = capfd.readouterr().err
    assert words in said and "recipes.cut, step 1" in said and "Traceback" not in said
    assert not list((tmp_path / "run").rglob("records"))


def test_a_step_that_could_not_be_looked_at_is_said_and_not_refused(monkeypatch):
    def breaks(model, params, context):
        raise RuntimeError("no such luck")

    monkeypatch.setattr("edgecompress.compress.channels.check", breaks)
    said = []
    step = Step.model_validate({"method": "channels", "macs": 0.5})
    network = build(ModelSpec(name="resnet20"), num_classes=10, in_shape=(1, 8, 8)).eval()
    check_before([step], lambda: (network, (1, 8, 8)), said.append, where="recipes.cut, ")
    assert said == [
        "warning: recipes.cut, step 1 (channels) could not be looked at beforehand: RuntimeError: no such luck"
    ]


@pytest.mark.parametrize("option", [[], ["--skip-absent"]])
def test_of_a_device_that_a_step_needs_it_is_said_what_helps_when_it_is_away(tmp_path, monkeypatch, capfd, option):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ssh_config").touch()
    for name, port in (("pi", 1), ("other", 2)):
        (tmp_path / f"{name}.yaml").write_text(
            f"name: {name}\ntransport: ssh\nhost: 127.0.0.1\nport: {port}\nconnect_timeout_s: 2\nssh_config: ssh_config\n"
        )
    recipes = {"first": "{method: amc, macs: 0.5}", "cut": "magnitude, {method: amc, latency: 0.5, device: pi}"}
    (tmp_path / "study.yaml").write_text(
        "name: s\nmodel: {name: resnet20}\ndata: {name: digits}\nbaseline: {epochs: 1}\nformats: [onnx-fp32]\n"
        "devices: [pi.yaml, other.yaml, local]\nrecipes:\n"
        + "".join(f"  {name}: [{steps}]\n" for name, steps in recipes.items())
    )

    def said(*more):
        assert main(["run", "study.yaml", "--out", "run", *option, *more]) == 2
        return capfd.readouterr().err

    error = said()
    assert "device pi: 127.0.0.1:1 cannot be reached" in error and "Traceback" not in error
    assert (
        "Switch pi on: recipes.cut, step 2 (amc) cannot be done without it, and --skip-absent does not help. Or give that step "
        "another device, or take its recipe out of the study for now" in error
    )
    assert ("warning: device other is away" in error) == bool(option)
    assert ("--skip-absent goes on without those that are away" in error) == (not option), (
        "which is true of the other one"
    )

    def went_on(self):
        raise UserError("it went on")

    monkeypatch.setattr("edgecompress.pipeline._Run._check_steps", went_on)
    needless = said("--set", "recipes.cut.1={method: amc, macs: 0.5}")
    assert "does not help" not in needless and ("it went on" in needless) == bool(option)


@pytest.mark.parametrize(
    ("earlier", "later", "words"),
    [
        (["magnitude", "codebook", "distill"], {"method": "amc", "macs": 0.01}, "step 4 .*out of reach"),
        (["lookahead", "deep_compression"], {"method": "channels", "macs": 0.001}, "step 3 .*out of reach"),
        (["magnitude"], {"method": "amc", "granularity": "weights", "exclude": ["*"]}, "step 2 "),
        # What is left then is not known: weights dropped by layer, channels cut, another network.
        (["magnitude"], {"method": "amc", "granularity": "weights", "params": 0.01}, None),
        (["channels"], {"method": "amc", "macs": 0.01}, None),
        ([{"method": "distill", "student": "lenet5"}], {"method": "channels", "macs": 0.001}, None),
    ],
)
def test_later_steps_are_looked_at_as_long_as_the_network_keeps_its_layers(earlier, later, words):
    steps = [Step.model_validate(step) for step in [*earlier, later]]
    network = build(ModelSpec(name="resnet20"), num_classes=10, in_shape=(1, 32, 32)).eval()
    said = []

    def look():
        check_before(steps, lambda: (copy.deepcopy(network), (1, 32, 32)), said.append)

    if words is None:
        look()
    else:
        with pytest.raises(UserError, match=words):
            look()
    assert said == []


def test_files_of_later_steps_are_looked_at_before_the_training(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "policy.yaml").write_text("")
    (tmp_path / "study.yaml").write_text(
        "name: s\nmodel: {name: resnet20}\ndata: {name: digits}\nbaseline: {epochs: 1}\ndevices: [local]\n"
        "recipes: {cut: [{method: magnitude}, {method: amc, policy: policy.yaml}]}\nformats: [onnx-fp32]\n"
    )
    assert main(["run", "study.yaml", "--out", "run"]) == 2
    said = capfd.readouterr().err
    assert "recipes.cut, step 2 (amc), " in said and "policy.yaml: is empty" in said and "docs/methods/amc.md" in said
    assert not list((tmp_path / "run").rglob("records"))


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("amc", {"latency": "3 ms", "multiple": "auto", "importance": "taylor"}),
        ("amc", {"energy": 0.5, "device": "board"}),
        ("amc", {"reward": "error-log-macs"}),
        ("amc", {"granularity": "weights", "params": 0.5}),
        ("channels", {"latency": 0.5, "multiple": "auto", "importance": "taylor", "device": "board"}),
        ("channels", {"params": 0.5, "steps": 2, "finetune": {"epochs": 2}}),
        ("channels", {"macs": 0.4, "min_keep": 0.5, "multiple": 1, "steps": 2, "finetune": {"epochs": 2}}),
        ("magnitude", {"sparsity": 0.5}),
    ],
)
def test_what_a_network_can_be_given_is_told_without_data_and_without_a_device(tmp_path, method, params):
    network = build(ModelSpec(name="resnet20"), num_classes=10, in_shape=(1, 8, 8)).eval()
    context = Context(data=None, seed=0, teacher=network, scratch=tmp_path, in_shape=(1, 8, 8))
    check_network(method, params, network, context)


class _Pooled(nn.Module):
    """Ten means of an image: no parameter."""

    def forward(self, x):
        return nn.functional.adaptive_avg_pool2d(x, (2, 5)).flatten(1)


@pytest.mark.parametrize("method", ["amc", "channels"])
def test_a_network_without_a_layer_has_none_to_cut(tmp_path, method):
    context = Context(data=None, seed=0, teacher=_Pooled(), scratch=tmp_path, in_shape=(1, 8, 8))
    with pytest.raises(UserError, match="the model has no convolution or linear layer to cut"):
        check_network(method, {"macs": 0.5}, _Pooled(), context)
    with pytest.raises(UserError, match="the model has no convolution or linear layer to cut"):
        find_groups(_Pooled(), (1, 8, 8))
