"""From a power trace to joules per inference: `summarise` one variant, `compare` two."""

from __future__ import annotations

from edgecompress.energy.comparison import EnergyComparison, compare
from edgecompress.energy.summary import Budget, EnergySummary, summarise

__all__ = ["Budget", "EnergyComparison", "EnergySummary", "compare", "summarise"]
