"""From a power trace to joules per inference: `summarise` one variant, `compare` two; and what the sensor itself costs."""

from __future__ import annotations

from edgecompress.energy.comparison import EnergyComparison, compare
from edgecompress.energy.summary import Budget, EnergySummary, summarise
from edgecompress.energy.validity import sensor_cost, sensor_warnings

__all__ = [
    "Budget", "EnergyComparison", "EnergySummary", "compare", "sensor_cost", "sensor_warnings", "summarise",
]  # fmt: skip
