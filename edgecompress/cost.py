"""What a network costs on paper: parameters, multiply-accumulates, activations, bytes.

MACs are those of convolution and fully connected layers, bias excluded; FLOPs = 2 × MACs. They are counted while one image
runs through the network, at the level of torch's operators, so a functional call counts like a module, a layer that is used
twice counts twice, and grouped or depth-wise convolutions count what they do. Products of two activations (attention) are
no layer and are not counted, nor are recurrent cells.
"""

from __future__ import annotations

import lzma
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecompress.errors import UserError
from edgecompress.evaluate import device_of
from edgecompress.records import Cost

if TYPE_CHECKING:
    from torch import nn

_CHUNK = 1 << 20


def count(model: nn.Module, in_shape: tuple[int, ...]) -> Cost:
    """The cost of one image of `in_shape` (channels, height, width): one forward in eval mode, the model is left as it was.

    effective_macs: each weight that is not exactly zero, times the positions that it is applied at.
    peak_activation_bytes: over convolution and fully connected layers, batch norm and activation taken as fused into them.
    params counts every parameter once, however many layers share it. UserError when the model cannot take such an input.
    """
    import torch

    counter = _counter(model)
    training = model.training
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one opaque operator for a whole attention block
    try:
        with torch.no_grad(), counter:
            model.eval()(torch.zeros(1, *in_shape, device=device_of(model)))
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"the model cannot take an input of shape {tuple(in_shape)}: {str(error).splitlines()[0]}",
            fix="Give the (channels, height, width) that it was made for.",
        ) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        model.train(training)
    params, nonzero = parameter_counts(model)
    return Cost(
        params=params,
        nonzero_params=nonzero,
        macs=counter.macs,
        effective_macs=counter.effective_macs,
        peak_activation_bytes=counter.peak_bytes,
    )


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """How many parameters the model has, and how many of them are not exactly zero; a shared one counts once."""
    import torch

    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters), sum(int(torch.count_nonzero(p.detach())) for p in parameters)


def weight_bytes(model: nn.Module) -> int:
    """Bytes of the model's state (parameters and buffers) as it stands in memory, zeros included, masks not."""
    return sum(t.numel() * t.element_size() for t in model.state_dict().values())


def packed_bytes(path: Path) -> int:
    """The size of a file after xz preset 6 (`xz -6`, the packing of Debian's archives); read in pieces, nothing is written."""
    compressor = lzma.LZMACompressor(format=lzma.FORMAT_XZ, preset=6)
    size = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            size += len(compressor.compress(chunk))
    return size + len(compressor.flush())


def _counter(model: nn.Module) -> Any:
    """A dispatch mode that adds up the layers which run inside it. (Made in a function: its base class is torch's.)"""
    import torch
    from torch import Tensor
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    aten = torch.ops.aten

    class Counter(TorchDispatchMode):
        macs = effective_macs = peak_bytes = 0

        def __init__(self) -> None:
            super().__init__()
            # Storages of what depends on weights alone. They are held on to, so an address is never taken by another.
            self.of_weights = {
                t.untyped_storage()._cdata: t.untyped_storage() for t in [*model.parameters(), *model.buffers()]
            }

        def is_weight(self, tensor: Tensor) -> bool:
            return tensor.untyped_storage()._cdata in self.of_weights

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            inputs = [a for a in tree_leaves((args, kwargs)) if isinstance(a, Tensor)]
            derived = bool(inputs) and all(self.is_weight(t) for t in inputs)
            out = func(*args, **(kwargs or {}))
            if derived:
                # A view, a transpose, a quantised or masked copy of weights is still a weight.
                for tensor in tree_leaves(out):
                    if isinstance(tensor, Tensor):
                        self.of_weights[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
                return out
            kind = func.overloadpacket
            if kind is aten.convolution:
                image, weight, transposed = args[0], args[1], args[6]
                moved = image if transposed else out
                self.add(weight, moved.numel() // moved.shape[1], image, out)
            elif kind in (aten.mm, aten.bmm, aten.addmm, aten.baddbmm, aten.mv, aten.addmv, aten.linear):
                left, right = args[1:3] if kind in (aten.addmm, aten.baddbmm, aten.addmv) else args[:2]
                if kind is aten.linear:
                    self.add(right, left.numel() // left.shape[-1], left, out)
                elif self.is_weight(right):
                    self.add(right, left.shape[-2], left, out)
                elif self.is_weight(left):
                    self.add(left, right.shape[-1] if right.ndim > 1 else 1, right, out)
            return out

        def add(self, weight: Tensor, positions: int, source: Tensor, result: Tensor) -> None:
            """A layer whose every weight is applied at `positions` places, from the tensor `source` to `result`."""
            self.macs += weight.numel() * positions
            self.effective_macs += int(torch.count_nonzero(weight)) * positions
            self.peak_bytes = max(self.peak_bytes, 4 * (source.numel() + result.numel()))

    return Counter()
