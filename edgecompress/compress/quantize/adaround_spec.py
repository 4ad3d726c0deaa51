"""What a user may say of AdaRound (adaround.py): `adaround: true`, or some of its settings."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from edgecompress.study import Spec


class AdaRoundSpec(Spec):
    """One learning of the rounding per layer. Defaults: Nagel et al. 2020 and their own code, but a tenth of the iterations at ten
    times the learning rate."""

    iterations: int = Field(default=1000, ge=1, description="steps of Adam for each layer (the paper: 10,000)")
    lr: float = Field(default=0.01, gt=0, description="learning rate of Adam (the paper: 0.001)")
    batch_size: int = Field(default=32, ge=1, description="images per step")
    images: int | None = Field(default=None, ge=1, description="at most so many calibration images; null: all")
    regulariser: float = Field(
        default=0.01, ge=0, description="weight of the term that drives each weight up or down (λ)"
    )
    beta_start: float = Field(
        default=20.0, ge=1, description="its exponent β at first: only what is nearly decided is driven"
    )
    beta_end: float = Field(default=2.0, ge=1, description="its exponent at the end, reached by a half cosine")
    warm_up: float = Field(default=0.2, ge=0, lt=1, description="fraction of the iterations without that term")


def _spec(value: Any) -> Any:
    if isinstance(value, bool):
        return {} if value else None
    return value


AdaRound = Annotated[AdaRoundSpec | None, BeforeValidator(_spec)]
"""true: the defaults; false or null: without."""
