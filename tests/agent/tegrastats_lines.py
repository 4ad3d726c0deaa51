"""Lines as tegrastats prints them on every board family, in every shape, with what they say.

The rest of the lines (before the rails) is of the board; the figures of the rails are put into the shape that is asked for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

SHAPES = ("bare", "mW", "three", "runs of spaces", "dated")


@dataclass(frozen=True)
class Family:
    """before: the line up to its rails. rails: (name, now, average), in the order of the board, NC among them."""

    name: str
    before: str
    rails: tuple[tuple[str, int, int], ...]
    total_mw: int | None
    scope: str

    def line(self, shape: str) -> str:
        """The line in one of SHAPES."""
        form = {"bare": "{0}/{1}", "three": "{0}mW/{1}mW/{1}mW"}.get(shape, "{0}mW/{1}mW")
        before = re.sub(r"(\d)C(?!\S)", r"\1C/44.5C", self.before) if shape == "three" else self.before
        words = [before, *(f"{name} {form.format(now, average)}" for name, now, average in self.rails)]
        if shape == "runs of spaces":
            return "  ".join(words).replace(" ", "   ") + "  \r"
        return ("11-21-2025 08:49:48 " if shape == "dated" else "") + " ".join(words)

    @property
    def rails_mw(self) -> dict[str, int]:
        return {name: now for name, now, _ in self.rails if name != "NC"}


FAMILIES = (
    Family(
        "Nano 4GB",
        "RAM 534/3964MB (lfb 2x2MB) SWAP 5/1982MB (cached 0MB) IRAM 0/252kB(lfb 252kB) CPU [5%@1224,4%@1224,off,off] "
        "EMC_FREQ 0%@1600 GR3D_FREQ 0%@76 APE 25 PLL@37C CPU@40C PMIC@50C GPU@40C AO@45C thermal@40C",
        (("POM_5V_IN", 1022, 1030), ("POM_5V_GPU", 0, 0), ("POM_5V_CPU", 366, 406)),
        1022, "board",
    ),
    Family(
        "TX1",
        "RAM 1083/3995MB (lfb 593x4MB) SWAP 0/0MB (cached 0MB) CPU [12%@1734,3%@1734,0%@1734,2%@1734] EMC_FREQ 1%@1600 "
        "GR3D_FREQ 0%@76 APE 25 MTS fg 0% bg 0% PLL@28C CPU@28.5C GPU@27C thermal@28.25C",
        (("VDD_IN", 3042, 3050), ("VDD_CPU", 760, 750), ("VDD_GPU", 76, 76)),
        3042, "module",
    ),
    Family(
        "TX2",
        "RAM 1873/3830MB (lfb 144x4MB) CPU [8%@2016,off,off,7%@2026,7%@2034,6%@2034] EMC_FREQ 0%@1600 GR3D_FREQ 0%@114 "
        "APE 150 MTS fg 0% bg 1% PLL@39C MCPU@39C PMIC@50C Tboard@35C GPU@37C BCPU@39C thermal@38.5C Tdiode@37C",
        (("VDD_SYS_GPU", 77, 77), ("VDD_SYS_SOC", 539, 539), ("VDD_IN", 2930, 3405), ("VDD_SYS_CPU", 539, 937),
         ("VDD_SYS_DDR", 727, 758)),
        2930, "module",
    ),
    Family(
        "TX2 NX",
        "RAM 702/3825MB (lfb 339x4MB) SWAP 0/1913MB (cached 0MB) CPU [3%@345,off,off,0%@345,1%@345,1%@345] EMC_FREQ 0% "
        "GR3D_FREQ 0% PLL@50.5C MCPU@50.5C PMIC@50C GPU@50C BCPU@50.5C thermal@50.3C",
        (("VDD_IN", 2276, 2290), ("VDD_CPU_GPU", 341, 350), ("VDD_SOC", 607, 607)),
        2276, "module",
    ),
    Family(
        "Xavier NX",
        "RAM 2842/7771MB (lfb 18x4MB) SWAP 0/3886MB (cached 0MB) CPU [12%@1420,14%@1420,off,off,off,off] EMC_FREQ 13%@1600 "
        "GR3D_FREQ 61%@1109 VIC_FREQ 0%@115 APE 150 MTS fg 0% bg 0% AO@48.5C GPU@49C PMIC@50C AUX@49C CPU@50.5C thermal@49.55C",
        (("VDD_IN", 5299, 5310), ("VDD_CPU_GPU_CV", 1320, 1330), ("VDD_SOC", 1080, 1090)),
        5299, "module",
    ),
    Family(
        "AGX Xavier",
        "RAM 10881/31919MB (lfb 4230x4MB) SWAP 0/15959MB (cached 0MB) CPU [17%@1190,17%@1190,off,off,17%@1336,15%@1340,off,off] "
        "EMC_FREQ 55%@2133 GR3D_FREQ 95%@1377 APE 150 MTS fg 0% bg 10% AO@35C GPU@36.5C Tdiode@38.25C PMIC@100C AUX@34C "
        "CPU@37.5C thermal@35.95C Tboard@35C",
        (("GPU", 18401, 18525), ("CPU", 311, 330), ("SOC", 4602, 4602), ("CV", 0, 0), ("VDDRQ", 2914, 2911), ("SYS5V", 4632, 4620)),
        18401 + 311 + 4602 + 0 + 2914 + 4632, "module",
    ),
    Family(
        "AGX Orin",
        "RAM 1282/62795MB (lfb 15152x4MB) SWAP 0/31398MB (cached 0MB) CPU [0%@729,0%@729,0%@729,0%@729,off,off,off,off] "
        "EMC_FREQ 0%@2133 GR3D_FREQ 12%@[1300,1300] GR3D2_FREQ 0%@0 VIC_FREQ 729 NVENC off NVDEC off NVDLA0_FREQ @1600 APE 174 "
        "CV0@-256C CPU@42.593C Tboard@32C SOC2@39.343C Tdiode@33.25C SOC0@39.375C CV1@-256C GPU@-256C tj@42.593C SOC1@40.468C",
        (("VDD_GPU_SOC", 2399, 2400), ("VDD_CPU_CV", -398, -398), ("VIN_SYS_5V0", 4032, 4032), ("NC", 0, 0),
         ("VDDQ_VDD2_1V8AO", 301, 301), ("NC", 7, 0)),
        2399 - 398 + 4032, "module",
    ),
    Family(
        "Orin NX",
        "RAM 3200/15523MB (lfb 2x4MB) SWAP 0/7761MB (cached 0MB) CPU [40%@1984,35%@1984,22%@1984,18%@1984,off,off,off,off] "
        "EMC_FREQ 3%@3199 GR3D_FREQ 72%@[918] NVDEC off NVJPG off NVJPG1 off VIC off OFA off APE 200 cpu@53.968C soc2@52.9C "
        "soc0@53.3C gpu@54.2C tj@54.2C soc1@53.1C",
        (("VDD_IN", 8500, 8400), ("VDD_CPU_GPU_CV", 3200, 3100), ("VDD_SOC", 2100, 2090)),
        8500, "module",
    ),
    Family(
        "Orin Nano",
        "RAM 6185/7620MB (lfb 8x2MB) SWAP 851/3810MB (cached 1MB) CPU [15%@729,11%@729,14%@729,13%@729,11%@729,8%@729] "
        "EMC_FREQ 43%@2133 GR3D_FREQ 63%@[621] NVDEC off NVJPG off VIC off OFA off APE 200 cpu@53.968C soc2@52.437C gpu@54.1C",
        (("VDD_IN", 12479, 4667), ("VDD_CPU_GPU_CV", 4667, 4667), ("VDD_SOC", 2817, 2817)),
        12479, "module",
    ),
    Family(
        "AGX Thor",
        "RAM 9101/125811MB (lfb 19x4MB) SWAP 0/2048MB (cached 0MB) CPU [39%@2160,20%@2160,16%@1944,15%@1944] EMC_FREQ 7%@3200 "
        "GR3D_FREQ @[314,314,314] NVENC0_FREQ @1556 VIC 59%@423 OFA_FREQ @1556 PVA0_FREQ off APE 300 cpu@52.9C tj@53.9C "
        "soc012@34.437C gpu@35.906C soc345@34.406C",
        (("VDD_GPU", -392, -392), ("VDD_CPU_SOC_MSS", 7148, 7148), ("VIN_SYS_5V0", 6807, 6807), ("VIN", 25530, 12765)),
        25530, "board",
    ),
)  # fmt: skip

NANO_2GB = "RAM 1083/1972MB (lfb 3x4MB) SWAP 0/986MB (cached 0MB) IRAM 0/252kB(lfb 252kB) CPU [5%@1224,4%@1224,off,off] " \
    "EMC_FREQ 0%@1600 GR3D_FREQ 0%@76 APE 25 PLL@37C CPU@40C PMIC@50C GPU@40C AO@45C thermal@40C"  # fmt: skip
"""No power monitor. Boards that show their rails to root only print such a line too."""

BY_NAME = {family.name: family for family in FAMILIES}
