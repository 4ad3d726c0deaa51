"""Trace a network into its graph of channels, by watching one run of it at the level of torch's operators.

At this level a functional call is like a module, a layer that is used twice is seen twice, and any Python in `forward` that
depends on shapes is simply run. Control flow that depends on the *values* of activations is refused: another input could take
another path. Every tensor that follows from the input carries the number of the unit (see `edgecompress.graph`) at each of
its elements, in a broadcast form; an operator that only moves elements (a view, a transpose, a concatenation, a channel
shuffle) is run on these numbers as on the tensor, so that its channels are right by construction.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from edgecompress.errors import UserError
from edgecompress.flows import Flows, channels, compact
from edgecompress.graph import Graph, Scaling, Use

aten = torch.ops.aten

ACTIVATIONS = {
    "relu", "relu_", "hardtanh", "hardtanh_", "relu6", "leaky_relu", "leaky_relu_", "elu", "elu_", "celu", "celu_",
    "gelu", "gelu_", "silu", "silu_", "hardswish", "hardswish_", "mish", "mish_", "_prelu_kernel", "threshold", "threshold_",
}  # fmt: skip
"""Activation functions that are above 0 where their input is."""

_MOVES = {
    "view", "_unsafe_view", "_reshape_alias", "reshape", "permute", "transpose", "t", "numpy_T", "expand", "squeeze", "unsqueeze",
    "slice", "select", "split", "split_with_sizes", "unsafe_split", "chunk", "unsafe_chunk", "unbind", "cat", "stack",
    "index_select", "index", "flip", "roll", "repeat", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle",
    "native_channel_shuffle", "constant_pad_nd", "movedim", "swapaxes", "unflatten", "narrow", "diagonal", "rot90",
}  # fmt: skip
"""Operators that move elements and change none."""

_FROM_VALUES = {
    "_local_scalar_dense",
    "item",
    "is_nonzero",
    "equal",
    "nonzero",
    "masked_select",
    "unique_dim",
    "_unique2",
}
"""Operators whose result decides on shapes or on Python's control flow."""

_MIXES = {
    "bmm", "baddbmm", "mm", "addmm", "matmul", "mv", "addmv", "dot", "linear", "convolution", "_convolution", "mkldnn_convolution",
    "cumsum", "cumprod", "sort", "topk", "gather", "scatter", "as_strided", "im2col", "col2im", "_fft_r2c", "_fft_c2c",
}  # fmt: skip
"""Operators after which a channel is no longer one: two activations multiplied as matrices, sorted, cut into patches."""

_CREATES = {
    "new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided", "zeros_like", "ones_like", "full_like", "empty_like",
    "rand_like", "randn_like",
}  # fmt: skip
"""Operators that take a tensor's shape and nothing of its values."""

_BATCH_NORMS = {
    "native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "cudnn_batch_norm",
    "miopen_batch_norm", "batch_norm", "_batch_norm_no_update", "_batch_norm_with_update",
}  # fmt: skip


def trace(model: nn.Module, example_input: Tensor | tuple[Tensor, ...]) -> Graph:
    """The graph of a network, from one run in eval mode of the first image of example_input (N, C, …).

    The values of the input do not matter; the model is left as it was. UserError: the model does not take such an input,
    its path depends on the values of activations, or its output does not follow from its input by torch's operators.
    """
    inputs = example_input if isinstance(example_input, tuple) else (example_input,)
    first = next(model.parameters(), None)
    if first is not None:
        inputs = tuple(
            x[:1].detach().to(first.device, first.dtype if x.is_floating_point() else x.dtype, copy=True)
            for x in inputs
        )
    tracer = _Tracer(model, inputs)
    try:
        with run_mode(model), tracer:
            output = model(*inputs)
    except UserError:
        raise
    except Exception as error:
        raise _untraceable(f"its run on an input of shape {tuple(inputs[0].shape)} failed: {_line(error)}") from error
    return tracer.finished(output)


class run_mode:
    """Within it the model is in eval mode without gradients, attention as single operators; afterwards as it was before."""

    def __init__(self, model: nn.Module) -> None:
        self.training = {module: module.training for module in model.modules()}
        self.model = model
        self.no_grad = torch.no_grad()

    def __enter__(self) -> None:
        self.fast_path = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        self.no_grad.__enter__()
        self.model.eval()

    def __exit__(self, *_: object) -> None:
        self.no_grad.__exit__(None, None, None)
        torch.backends.mha.set_fastpath_enabled(self.fast_path)
        for module, training in self.training.items():
            module.training = training


def _line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__


def _untraceable(why: str) -> UserError:
    return UserError(
        f"the model cannot be traced: {why}",
        fix="Give an example input of the right shape, or a network without such code; method magnitude needs no trace.",
    )


class _Tracer(TorchDispatchMode):
    def __init__(self, model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        super().__init__()
        self.parameters = {p.data_ptr(): (name, p) for name, p in model.named_parameters() if p.numel()}
        self.flows = Flows()
        self.rectified: list[Tensor | None] = []
        for x in inputs:
            self.flows.put(x, self.flows.source(x))

    def finished(self, output: Any) -> Graph:
        flows = [self.flows.of(t) for t in tree_leaves(output) if isinstance(t, Tensor)]
        results = [flow for flow in flows if flow is not None]
        if not results:
            raise _untraceable("its output does not follow from its input by operations of torch")
        for flow in results:
            self.flows.read(flow)
        return self.flows.graph(self.rectified)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        tensors = [a for a in tree_leaves((args, kwargs)) if isinstance(a, Tensor)]
        traced = [(t, flow) for t in tensors if (flow := self.flows.of(t)) is not None]
        if traced and name in _FROM_VALUES:
            raise _untraceable("its path through the network depends on the values of its input")
        flows = [(t, flow) for t, flow in traced if t.is_floating_point()]
        if name in ACTIVATIONS:
            self.rectified.append(channels(flows[0][1], 1, flows[0][0].shape) if flows else None)
        out = func(*args, **kwargs)
        if traced and name not in _CREATES:
            results = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
            found = self._follow(name, args, kwargs, flows, results) if flows else None
            if found is None:
                self.flows.end(name, [flow for _, flow in flows])
                found = [self.flows.source(t) for t in results]
            written = [
                args[place] if place < len(args) else kwargs.get(argument.name)
                for place, argument in enumerate(func._schema.arguments)
                if argument.alias_info is not None and argument.alias_info.is_write
            ]
            for tensor, flow in zip(results, found, strict=True):
                self.flows.put(tensor, flow, overwrites=any(tensor is t for t in written))
        return out

    # Rules, by kinds of operators

    def _follow(self, name: str, args: Any, kwargs: Any, flows: Any, results: list[Tensor]) -> list[Tensor] | None:
        """The flows of the results, None when they cannot be followed."""
        layer = self._layer(name, args, kwargs)
        if layer is not None:
            return [layer]
        if not results:
            return []
        source, flow = flows[0]
        if name in _BATCH_NORMS:
            return [self._batch_norm(args, flow), *[self.flows.source(t) for t in results[1:]]]
        if name in _MOVES and not (name == "view" and isinstance(args[1], torch.dtype)):
            return self._moved(name, args, kwargs)
        if name in _MIXES or any(part in name for part in ("attention", "lstm", "gru", "rnn")):
            return None
        out = results[0]
        rest = [self.flows.source(t) for t in results[1:]]
        if name in ("native_layer_norm", "native_group_norm", "_fused_rms_norm", "rms_norm"):
            return [self._own_norm(name, args, source, flow), *rest]
        if name in ("mul", "mul_", "div", "div_") and len(flows) == 1 and out.shape == source.shape:
            return [
                self._scaled_by(args[0] if args[1] is source else args[1], name.startswith("div"), source, flow),
                *rest,
            ]
        if name == "copy_":
            copied = [flow for tensor, flow in flows if tensor is args[1]]
            return copied or [self.flows.source(out)]
        if len(flows) > 1:
            if torch.broadcast_shapes(*(t.shape for t, _ in flows)) != out.shape:
                return None
            return [self.flows.added([f for _, f in flows], out.dim()), *rest]
        if out.shape == source.shape:
            return [flow, *rest]
        if out.dim() == source.dim() and out.shape[:2] == source.shape[:2] and all(n == 1 for n in flow.shape[2:]):
            return [flow, *rest]  # pooling, interpolation, padding of positions, a mean that keeps its dimensions
        return self._reduced(args, kwargs, flow, source, out, rest)

    def _layer(self, name: str, args: Any, kwargs: Any) -> Tensor | None:
        if name in ("convolution", "_convolution", "mkldnn_convolution"):
            image, weight = args[0], args[1]
            transposed, groups = (args[6], args[8]) if name != "mkldnn_convolution" else (False, args[6])
            return self._use(image, weight, groups=groups, transposed=transposed, axis=1)
        if name == "linear":
            return self._use(args[0], args[1], groups=1, transposed=False, axis=args[0].dim() - 1)
        if name in ("mm", "addmm"):
            left, right = args[-2:] if name == "mm" else args[1:3]
            if self.flows.of(right) is None:
                return self._use(left, right, groups=1, transposed=True, axis=1)
        return None

    def _use(self, image: Tensor, weight: Tensor, *, groups: int, transposed: bool, axis: int) -> Tensor | None:
        flow = self.flows.of(image)
        if flow is None or self.flows.of(weight) is not None:
            return None
        inputs = self.flows.along(flow, axis, image.shape)
        held: str | Tensor = weight
        name, parameter = self.parameters.get(weight.data_ptr(), ("", None))
        outputs = weight.shape[1] * groups if transposed else weight.shape[0]
        if parameter is not None and parameter.shape == weight.shape and parameter.stride() == weight.stride():
            held = name
        elif parameter is not None and weight.dim() == 2 and parameter.shape == weight.shape[::-1]:
            held, transposed = name, not transposed
        start = self.flows.new(outputs)
        self.flows.blocks.append(Use(held, groups, transposed, inputs, start, outputs))
        units = torch.arange(start, start + outputs)
        return units.reshape([-1 if d == axis else 1 for d in range(image.dim())])

    def _scaling(self, flow: Tensor, gain: Tensor, variance: Tensor | None, eps: float, *, normalises: bool) -> Tensor:
        """gain and variance: shapes that broadcast against the flow's."""
        factors = [gain] if variance is None else [gain, variance]
        gain, *rest = torch.broadcast_tensors(*(f.detach().to("cpu", torch.float64) for f in factors))
        shape = torch.broadcast_shapes(flow.shape, gain.shape)
        place = torch.arange(gain.numel()).reshape(gain.shape)
        # Where units differ between positions a factor meets each of them once.
        pairs, back = torch.unique(flow * gain.numel() + place, return_inverse=True)
        of, place = pairs // gain.numel(), pairs % gain.numel()
        start = self.flows.new(len(of))
        chosen = [f.reshape(-1)[place] for f in (gain, *rest)]
        self.flows.blocks.append(Scaling(start, of, chosen[0], chosen[1] if rest else None, eps, normalises))
        return (start + back).reshape(shape)

    def _batch_norm(self, args: Any, flow: Tensor) -> Tensor:
        image, gain, variance = args[0], args[1], args[4] if isinstance(args[4], Tensor) else None
        numbers = [a for a in args if isinstance(a, float)]
        shape = [1, -1] + [1] * (image.dim() - 2)
        gain = torch.ones(image.shape[1]) if gain is None else gain
        variance = None if variance is None else variance.reshape(shape)
        return self._scaling(flow, gain.reshape(shape), variance, numbers[-1] if numbers else 0.0, normalises=True)

    def _own_norm(self, name: str, args: Any, source: Tensor, flow: Tensor) -> Tensor:
        """A normalisation by the activations' own statistics: its gain alone is known."""
        gain = args[1] if name == "native_group_norm" else args[2]
        if gain is None:
            return flow
        if name == "native_group_norm":
            gain = gain.reshape([1, -1] + [1] * (source.dim() - 2))
        return self._scaling(flow, gain, None, 0.0, normalises=True)

    def _scaled_by(self, factor: Any, divides: bool, source: Tensor, flow: Tensor) -> Tensor:
        gain = factor.detach() if isinstance(factor, Tensor) else torch.tensor(float(factor))
        gain = gain.double().reshape([1] * (source.dim() - gain.dim()) + list(gain.shape))
        return self._scaling(flow, 1 / gain if divides else gain, None, 0.0, normalises=False)

    def _moved(self, name: str, args: Any, kwargs: Any) -> list[Tensor]:
        def numbers(value: Any) -> Any:
            if not isinstance(value, Tensor) or not value.is_floating_point():
                return value
            flow = self.flows.of(value)
            # A constant beside activations (a class token) is as from outside.
            flow = self.flows.source(value) if flow is None else flow
            return flow.double().expand(value.shape)

        options = {k: v for k, v in kwargs.items() if k in ("dim", "start", "end", "step")}
        if name in ("view", "_unsafe_view", "_reshape_alias"):
            name, args = "reshape", args[:2]
        if name == "constant_pad_nd":
            args = (args[0], args[1], 0)  # unit 0 is nothing
        moved = getattr(aten, name)(*tree_map(numbers, args), **options)
        return [compact(t.long()) for t in tree_leaves(moved)]

    def _reduced(
        self, args: Any, kwargs: Any, flow: Tensor, source: Tensor, out: Tensor, rest: list[Tensor]
    ) -> list[Tensor] | None:
        """A mean, sum or maximum over dimensions along which the units are equal."""
        dims = args[1] if len(args) > 1 else kwargs.get("dim")
        dims = [dims] if isinstance(dims, int) else dims
        if not isinstance(dims, (list, tuple)) or not all(isinstance(d, int) for d in dims):
            return None
        dims = sorted(d % source.dim() for d in dims)
        if any(flow.shape[d] != 1 for d in dims):
            return None
        if out.dim() == source.dim():
            return [flow, *rest]
        if out.dim() != source.dim() - len(dims):
            return None
        return [flow.squeeze(tuple(dims)), *rest]
