"""Shared weights that stay with their model: beside each parameter whose weights share values, which value each has.

The buffer `<parameter>_codes` (int32, the parameter's shape, not persistent) says it: weights of one code 1, 2, … have the
same value, and code 0 is an exact zero. The values themselves are the parameter's own, so that there is nothing which
could differ from it: `state_dict` keys stay those of the plain model, and the buffer follows `.to(device)` and `copy.deepcopy`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from edgecompress import masks
from edgecompress.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

SUFFIX = "_codes"

_FIX = "Use codes made for this model."


def get(model: nn.Module) -> dict[str, Tensor]:
    """The codes of a model: parameter name → int32 tensor of the parameter's shape, 0 where a mask drops, on its device."""
    dropped = masks.get(model)
    found = {name: codes for name, codes in _buffers(model).items() if codes.shape == model.get_parameter(name).shape}
    return {n: codes.masked_fill(~dropped[n], 0) if n in dropped else codes for n, codes in found.items()}


def _buffers(model: nn.Module) -> dict[str, Tensor]:
    """As `get`, those included whose parameter has another shape since."""
    parameters = dict(model.named_parameters())
    return {
        name.removesuffix(SUFFIX): buffer
        for name, buffer in model.named_buffers()
        if name.endswith(SUFFIX) and name.removesuffix(SUFFIX) in parameters
    }


def put(model: nn.Module, codes: dict[str, Tensor]) -> None:
    """Set (or replace) codes, and give the weights of each code the value of its first one; code 0 becomes zero.

    codes: parameter name → integers from 0, of the parameter's shape. UserError when they are not of this model.
    """
    import torch

    parameters = dict(model.named_parameters())
    for name, given in codes.items():
        if name not in parameters:
            raise UserError(f"the codes for {name!r} fit no parameter of this model", fix=_FIX)
        parameter = parameters[name]
        if parameter.shape != given.shape:
            raise UserError(
                f"the codes for {name!r} have shape {tuple(given.shape)}, the parameter {tuple(parameter.shape)}",
                fix=_FIX,
            )
        if given.is_floating_point() or (given.numel() and int(given.min()) < 0):
            raise UserError(f"the codes for {name!r} are no integers from 0", fix=_FIX)
        path, _, leaf = name.rpartition(".")
        buffer = given.to(parameter.device, torch.int32, copy=True)
        model.get_submodule(path).register_buffer(leaf + SUFFIX, buffer, persistent=False)
    apply(model)


def put_by_value(model: nn.Module, names: Iterable[str]) -> None:
    """Give the named parameters codes by the values that they have: equal weights one code, zeros code 0. UserError as `put`."""
    import torch

    parameters = dict(model.named_parameters())
    codes = {}
    for name in names:
        if name not in parameters:
            raise UserError(f"{name!r}, whose weights share values, is no parameter of this model", fix=_FIX)
        weights = parameters[name].detach()
        found, inverse = torch.unique(weights, return_inverse=True)
        alive = found != 0
        codes[name] = (alive.cumsum(0) * alive)[inverse]
    put(model, codes)


def strip(model: nn.Module, names: list[str] | None = None) -> nn.Module:
    """Remove the codes in place (of the named parameters; None: all), leave the values, and return the model."""
    for name in _buffers(model):
        if names is None or name in names:
            path, _, leaf = name.rpartition(".")
            delattr(model.get_submodule(path), leaf + SUFFIX)
    return model


def values(weights: Tensor, codes: Tensor) -> Tensor:
    """The codebook: the value of each code from 0 to the highest, 1-D; 0 for code 0 and for codes that no weight has."""
    return Shared(weights.detach(), codes).values()


def holds(weights: Tensor, codes: Tensor) -> bool:
    """Whether the weights of each code are one value, bit for bit, and those of code 0 are +0. Zeros elsewhere are let pass.

    (A later pruning may have made zeros of weights that shared a value.)
    """
    import torch

    weights = weights.detach()
    left = torch.where(weights == 0, torch.zeros_like(codes), codes.to(weights.device))
    shared = Shared(weights, left)
    return bool((shared.expanded() == weights).all())


def apply(model: nn.Module) -> None:
    """Make the weights of each code equal again (to the first one), and code 0 zero. Idempotent."""
    for shared in hold(model):
        shared.spread()


def hold(model: nn.Module) -> list[Shared]:
    """What a training loop holds on to: the parameters with codes."""
    return [Shared(model.get_parameter(name), codes) for name, codes in get(model).items()]


class Shared:
    """A parameter whose weights share values. The first weight of each code stands for all of them.

    Training works on these: a codebook of K values is K numbers to the optimiser, whichever it is, with their own momentum
    and weight decay, and what it makes of them is then written to every weight.
    """

    def __init__(self, parameter: Tensor, codes: Tensor) -> None:
        import torch

        self.parameter = parameter
        flat = codes.reshape(-1)
        alive = torch.nonzero(flat).reshape(-1)
        self.codes = codes
        self.members = alive[torch.argsort(flat[alive], stable=True)]  # positions by code, in memory order within one
        self.lengths = torch.bincount(flat[alive], minlength=1)[1:]
        starts = self.lengths.cumsum(0) - self.lengths
        self.used = torch.nonzero(self.lengths).reshape(-1)
        self.first = self.members[starts[self.used]]

    def values(self) -> Tensor:
        """The values by code, 0 for code 0 and for codes without a weight."""
        import torch

        table = torch.zeros(len(self.lengths) + 1, dtype=self.parameter.dtype, device=self.parameter.device)
        table[self.used + 1] = self.parameter.detach().reshape(-1)[self.first]
        return table

    def gather(self) -> None:
        """Give the first weight of each code the sum of the gradients of all of them, and the others none.

        So the gradient is that of the codebook (Han et al. 2016, section 3.3: the sum, not the mean), and its norm too.
        """
        import torch

        grad = self.parameter.grad
        if grad is None:
            return
        gathered = torch.zeros(grad.numel(), dtype=grad.dtype, device=grad.device)
        if len(self.members):
            single = grad.reshape(-1)[self.members].double()
            sums = torch.segment_reduce(single, "sum", lengths=self.lengths)
            gathered[self.first] = sums[self.used].to(grad.dtype)
        grad.copy_(gathered.reshape(grad.shape))

    def expanded(self) -> Tensor:
        """The parameter as its codes and values say it."""
        return self.values().index_select(0, self.codes.reshape(-1)).reshape(self.codes.shape)

    def spread(self) -> None:
        """Write the value of the first weight of each code to all of them, and zeros to those of code 0."""
        import torch

        with torch.no_grad():
            self.parameter.copy_(self.expanded())
