"""Which of a Jetson's rails add up to its power, and what that power covers: a policy per board.

Rails overlap (VDDQ_VDD2_1V8AO of AGX Orin is fed from VIN_SYS_5V0), so a plain sum is wrong; and some boards measure their
input, some only the module. What the total covers is its scope; totals of different scopes cannot be compared.

Sources: rails of the INA3221 monitors in NVIDIA's Jetson Linux Developer Guide ("Power Monitor" of each series) and device
trees. Steps and limits: TI SBOS576 (INA3221: 40 µV a step of the shunt voltage, offset at most 80 µV, gain 0.25 % for shunt
and bus each) over the shunt that the board's steps tell, 1 % as in the AGX Xavier product design guide. AGX Thor's VIN has an
INA238; its step is an estimate.
"""

from __future__ import annotations

import re
from typing import Dict, List, NamedTuple, Optional, Tuple

GAIN_ERROR = 0.015
"""Limit: 1 % of the shunt, 0.25 % each of shunt and bus voltage."""


class Policy(NamedTuple):
    """The total of a board. rails: those that are added; scope: what their sum covers; steps_w: one step of each rail."""

    board: str
    rails: Tuple[str, ...]
    scope: str
    steps_w: Tuple[float, ...]

    @property
    def resolution_w(self) -> float:
        """The coarsest rail's step: a smaller change may leave the total as it is."""
        return max(self.steps_w)

    @property
    def offset_error_w(self) -> float:
        """80 µV is two steps, and every rail of the sum may be off by as much."""
        return 2 * sum(self.steps_w)


NANO = Policy("Jetson Nano 4GB", ("POM_5V_IN",), "board", (0.04,))
MODULE = Policy("a Jetson with VDD_IN", ("VDD_IN",), "module", (0.04,))
AGX_XAVIER = Policy(
    "Jetson AGX Xavier", ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"), "module", (0.16, 0.16, 0.16, 0.16, 0.16, 0.04)
)
AGX_ORIN = Policy("Jetson AGX Orin", ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"), "module", (0.4, 0.4, 0.1))
AGX_THOR = Policy("Jetson AGX Thor", ("VIN",), "board", (0.05,))
POLICIES = (NANO, MODULE, AGX_XAVIER, AGX_ORIN, AGX_THOR)

_SIGNS = {
    "VDD_CPU_SOC_MSS": AGX_THOR, "VDD_GPU_SOC": AGX_ORIN, "VDD_CPU_CV": AGX_ORIN, "VDDRQ": AGX_XAVIER, "SYS5V": AGX_XAVIER,
    "POM_5V_GPU": NANO, "POM_5V_CPU": NANO,
}  # fmt: skip
"""Rails that only one family has: they tell whose total it is that lacks a rail."""
_NAMED = (
    "Nano 4GB, Nano 2GB, TX1, TX2, TX2 NX, Xavier NX, AGX Xavier, Orin Nano, Orin NX, AGX Orin, AGX Thor"
)  # fmt: skip


def total_mw(rails_mw: Dict[str, int], board: Optional[str] = None) -> Tuple[Optional[int], str]:
    """(milliwatts, scope) of the whole board by its policy, or (None, reason) when that cannot be told.

    rails_mw: as `parse_line` gives them. board: a board's name or device-tree model; None: recognised from its rails.
    """
    policy, reason = policy_for(rails_mw, board)
    if policy is None:
        return None, reason
    return sum(rails_mw[rail] for rail in policy.rails), policy.scope


def policy_for(rails_mw: Dict[str, int], board: Optional[str] = None) -> Tuple[Optional[Policy], str]:
    """(policy, "") whose rails are all there, or (None, reason)."""
    if not rails_mw:
        return None, "there are no power rails"
    if board is None:
        return _recognise(rails_mw)
    policy, reason = named(board)
    if policy is None:
        return None, reason
    missing = [rail for rail in policy.rails if rail not in rails_mw]
    if missing:
        return None, _lacks(policy, missing, rails_mw)
    return policy, ""


def named(board: str) -> Tuple[Optional[Policy], str]:
    """(policy, "") of a board's name or device-tree model, or (None, reason)."""
    name = re.sub(r"[^a-z0-9]", "", board.lower())
    found: Optional[Policy] = None
    if "thor" in name:
        found = AGX_THOR
    elif "orin" in name:
        found = AGX_ORIN if "agx" in name else MODULE if "nx" in name or "nano" in name else None
    elif "xavier" in name:
        found = MODULE if "nx" in name else AGX_XAVIER
    elif "tx1" in name or "tx2" in name:
        found = MODULE
    elif "nano" in name:
        if "2gb" in name:
            return None, "a Jetson Nano 2GB has no power monitor: measure with an INA219 or a USB meter"
        found = NANO
    elif "raspberry" in name:
        return None, "a Raspberry Pi has no such rails: the sensor pi_pmic reads those of a Raspberry Pi 5"
    elif name in ("jetsonagx", "jetsonxavier"):  # the device tree's name of AGX Xavier
        found = AGX_XAVIER
    if found is None:
        return None, f"the board {board[:80]!r} has no policy for its total power: known are {_NAMED}"
    return found._replace(board=board[:80].strip()) if found is MODULE else found, ""


def _recognise(rails_mw: Dict[str, int]) -> Tuple[Optional[Policy], str]:
    complete = [policy for policy in POLICIES if all(rail in rails_mw for rail in policy.rails)]
    if len(complete) == 1:
        return complete[0], ""
    if complete:
        return None, (
            f"the rails fit several boards ({', '.join(p.board for p in complete)}), whose totals differ: name the board"
        )
    hints: List[Policy] = [_SIGNS[rail] for rail in rails_mw if rail in _SIGNS]
    if hints:
        return None, _lacks(hints[0], [rail for rail in hints[0].rails if rail not in rails_mw], rails_mw)
    return None, f"no known board has just these rails: {_list(rails_mw)}; name the board, one of {_NAMED}"


def _lacks(policy: Policy, missing: List[str], rails_mw: Dict[str, int]) -> str:
    return (
        f"the total of {policy.board} is {'+'.join(policy.rails)}, but {', '.join(missing)} "
        f"{'is' if len(missing) == 1 else 'are'} missing from its rails: {_list(rails_mw)}"
    )


def _list(rails_mw: Dict[str, int]) -> str:
    names = sorted(rails_mw)
    return ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
