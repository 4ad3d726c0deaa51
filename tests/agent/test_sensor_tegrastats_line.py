"""A line of tegrastats: every board family in every shape, every trap, and any text at all; and each board's total."""

from __future__ import annotations

import re

import pytest
from edgecompress_agent.sensors.tegrastats import Reading, parse_line, total_mw
from hypothesis import given
from hypothesis import strategies as st

from tests.agent.tegrastats_lines import BY_NAME, FAMILIES, NANO_2GB, SHAPES, Family

EVERY = pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
BARE_NAMES = {"VIN", "GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"}
JUNK = st.lists(
    st.one_of(
        st.text(max_size=12),
        st.sampled_from(
            ["RAM", "5/9MB", "CPU", "[1%@1,off]", "CPU [", "]", "(", ")", "NC", "0mW/0mW", "1/2", "-3mW/4mW", "VDD_IN", "IRAM",
             "0/252kB(lfb", "GR3D_FREQ", "@[1,,2]", "12%@", "GPU@-256C", "MTS", "fg", "off", "mW", "/", "-", "1" * 5000, "VIN",
             "٣/٣", "1mW/", "\x00", "CV"]
        ),
    ),
    max_size=12,
)  # fmt: skip


@EVERY
@pytest.mark.parametrize("shape", SHAPES)
def test_rails_of_every_board_in_every_shape(family: Family, shape: str) -> None:
    reading = parse_line(family.line(shape))
    assert reading.rails_mw == family.rails_mw
    assert reading.reason is None
    assert total_mw(reading.rails_mw) == (family.total_mw, family.scope)
    assert total_mw(reading.rails_mw, family.name) == (family.total_mw, family.scope)


@EVERY
def test_the_rest_of_a_line_is_the_same_in_every_shape(family: Family) -> None:
    first, *others = [parse_line(family.line(shape)) for shape in SHAPES]
    assert first.temperatures_c and first.utilisation and first.clocks
    for other in others:
        assert (other.temperatures_c, other.utilisation) == (first.temperatures_c, first.utilisation)
        assert (other.clocks, other.off) == (first.clocks, first.off)


def test_the_shapes_as_the_manuals_show_them() -> None:
    assert parse_line("POM_5V_IN 1022/1022").rails_mw == {"POM_5V_IN": 1022}
    assert parse_line("VDD_IN 5299mW/5299mW").rails_mw == {"VDD_IN": 5299}
    three = parse_line("cpu@52.9C/52.9C VDD_GPU_SOC 5139mW/5139mW/5139mW")
    assert three == Reading({"VDD_GPU_SOC": 5139}, {"cpu": 52.9})
    assert parse_line("VDD_CPU_CV -398mW/-398mW").rails_mw == {"VDD_CPU_CV": -398}
    assert parse_line("VDD_IN 1mW/2mW/3mW").rails_mw == {"VDD_IN": 1}


def test_three_things_named_cpu() -> None:
    reading = parse_line(BY_NAME["AGX Xavier"].line("bare"))
    assert reading.rails_mw["CPU"] == 311
    assert reading.temperatures_c["CPU"] == 37.5
    assert reading.utilisation["CPU[0]"] == 17 and reading.clocks["CPU[5]"] == 1340
    assert {"CPU[2]", "CPU[3]", "CPU[6]", "CPU[7]"} == set(reading.off)
    assert reading.utilisation["MTS fg"] == 0 and reading.utilisation["MTS bg"] == 10


def test_engines_clocks_and_absent_temperatures() -> None:
    orin = parse_line(BY_NAME["AGX Orin"].line("dated"))
    assert orin.utilisation["GR3D_FREQ"] == 12
    assert (orin.clocks["GR3D_FREQ[0]"], orin.clocks["GR3D_FREQ[1]"]) == (1300, 1300)
    assert orin.utilisation["GR3D2_FREQ"] == 0 and orin.clocks["GR3D2_FREQ"] == 0
    assert orin.clocks["VIC_FREQ"] == 729 and orin.clocks["NVDLA0_FREQ"] == 1600 and orin.clocks["APE"] == 174
    assert {"NVENC", "NVDEC"} <= set(orin.off)
    assert "GPU" not in orin.temperatures_c and "CV0" not in orin.temperatures_c and orin.temperatures_c["tj"] == 42.593
    thor = parse_line(BY_NAME["AGX Thor"].line("three"))
    assert [thor.clocks[f"GR3D_FREQ[{i}]"] for i in range(3)] == [314] * 3
    assert "GR3D_FREQ" not in thor.utilisation and thor.utilisation["VIC"] == 59 and thor.clocks["VIC"] == 423
    assert parse_line("GR3D_FREQ 63%@[621]").clocks == {"GR3D_FREQ": 621}


@pytest.mark.parametrize(
    "line",
    ["RAM 534/3964MB", "SWAP 5/1982MB (cached 0MB)", "IRAM 0/252kB(lfb 252kB)", "IRAM 0/252kB (lfb 252kB)", "NC 0mW/0mW NC 0mW/0mW",
     "RAM 534/3964", "SWAP 5mW/5mW", "MTS fg 0% bg 0%", "CPU [5%@1224,4%@1224]", "CPU@37.5C", "(VDD_IN 1/1)", "VDD_IN 5299",
     "VDD_IN", "VDD_IN 5299mW/52", "VDD_IN 5299/5299mW", "VDD_IN 1.5mW/1.5mW", "VDD_IN 5W/5W", "VDD_IN 1234567mW/1234567mW",
     "DD_IN 5mW/5mW", "vdd_in 5mW/5mW", "VDD_IN=5mW/5mW", "11-21-2025 08:49:48", "",
     "VDD_IN " + "9" * 5000 + "/1", "GR3D_FREQ 12%@[1300,1300]"],
)  # fmt: skip
def test_no_rail_and_why(line: str) -> None:
    reading = parse_line(line)
    assert reading.rails_mw == {}
    assert reading.reason
    assert total_mw(reading.rails_mw) == (None, "there are no power rails")


def test_a_board_without_rails_is_told_from_another_text() -> None:
    assert parse_line(NANO_2GB).reason == "the line of tegrastats has no power rails"
    assert "not a line of tegrastats" in (parse_line("bash: tegrastats: command not found").reason or "")


def test_a_rail_that_stands_twice() -> None:
    assert parse_line("VDD_IN 5mW/5mW VDD_IN 5mW/6mW").rails_mw == {"VDD_IN": 5}
    doubtful = parse_line("VDD_IN 5mW/5mW VDD_SOC 1mW/1mW VDD_IN 6mW/6mW")
    assert doubtful.rails_mw == {"VDD_SOC": 1}
    assert "stand twice" in (parse_line("VDD_IN 5mW/5mW VDD_IN 6mW/6mW").reason or "")
    both = FAMILIES[0].line("bare") + "\n" + FAMILIES[1].line("bare")
    assert parse_line(both).rails_mw == {}
    assert "one line" in (parse_line(both).reason or "")


@EVERY
@pytest.mark.parametrize("shape", SHAPES)
def test_a_line_cut_anywhere_has_no_wrong_rail(family: Family, shape: str) -> None:
    line = family.line(shape)
    for end in range(len(line)):
        assert parse_line(line[:end]).rails_mw.items() <= family.rails_mw.items()
    at_rails = len(line) - len(line.partition(family.rails[0][0])[2])
    for start in range(at_rails):
        # a cut that leaves just the end of a name may leave a rail of another board (VDD_CPU_CV, CV): one at most, the first
        rails = parse_line(line[start:]).rails_mw
        assert len(rails.keys() - family.rails_mw.keys()) <= (line[start - 1] == "_")
        assert all(family.rails_mw[name] == rails[name] for name in rails.keys() & family.rails_mw.keys())


@given(st.text())
def test_any_text_gives_a_reading_or_a_reason(text: str) -> None:
    _check(text, parse_line(text))


@given(JUNK, st.sampled_from([" ", "  ", "", "\t"]))
def test_any_mixture_of_what_lines_are_made_of(parts: list[str], separator: str) -> None:
    text = separator.join(parts)
    _check(text, parse_line(text))


@given(
    st.sampled_from(FAMILIES),
    st.sampled_from(SHAPES),
    st.lists(st.text(alphabet="abcxyz:;=<>!?#~-_.,é", min_size=1, max_size=9)),
)
def test_words_that_mean_nothing_change_no_rail(family: Family, shape: str, words: list[str]) -> None:
    line = family.line(shape).rstrip("\r")
    assert parse_line(" ".join([line, *words])).rails_mw == family.rails_mw
    assert parse_line(" ".join([*words, line])).rails_mw == family.rails_mw


@given(st.binary(max_size=400))
def test_bytes_that_are_no_text(data: bytes) -> None:
    text = data.decode("ascii", "replace")
    _check(text, parse_line(text))


def _check(text: str, reading: Reading) -> None:
    """Every rail is a rail's name, followed in the text by just this figure; no rail, a reason; and a total never raises."""
    for rail, milliwatts in reading.rails_mw.items():
        assert rail in BARE_NAMES or re.fullmatch(r"(POM|VDDQ?|VIN)(_[A-Z0-9]+)+", rail)
        assert re.search(rf"(?<!\S){rail}\s+0*{milliwatts}|(?<!\S){rail}\s+-0*{-milliwatts}", text)
    assert bool(reading.rails_mw) == (reading.reason is None)
    assert all(-200 < celsius < 1000 for celsius in reading.temperatures_c.values())
    total, scope = total_mw(reading.rails_mw)
    assert scope in ("module", "board") if total is not None else scope


@given(
    st.dictionaries(st.sampled_from([n for f in FAMILIES for n in f.rails_mw]), st.integers(-999999, 999999)),
    st.none() | st.text(),
)
def test_any_rails_and_any_board_give_a_total_or_a_reason(rails: dict[str, int], board: str | None) -> None:
    total, scope = total_mw(rails, board)
    if total is None:
        assert len(scope) > 10
    else:
        assert scope in ("module", "board")
        assert total in (
            rails.get("POM_5V_IN"), rails.get("VDD_IN"), rails.get("VIN"),
            sum(rails.get(n, 0) for n in ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V")),
            sum(rails.get(n, 0) for n in ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")),
        )  # fmt: skip


@pytest.mark.parametrize(
    ("board", "family"),
    [("NVIDIA Jetson Nano Developer Kit", "Nano 4GB"), ("nano", "Nano 4GB"), ("jetson_tx1", "TX1"), ("quill TX2", "TX2"),
     ("NVIDIA Jetson TX2 NX Developer Kit", "TX2 NX"), ("NVIDIA Jetson Xavier NX Developer Kit", "Xavier NX"),
     ("xavier-nx", "Xavier NX"),
     ("Jetson-AGX", "AGX Xavier"), ("agx_xavier", "AGX Xavier"), ("NVIDIA Jetson AGX Orin Developer Kit", "AGX Orin"),
     ("agx-orin", "AGX Orin"), ("NVIDIA Jetson Orin NX Engineering Reference Developer Kit", "Orin NX"),
     ("NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super", "Orin Nano"),
     ("NVIDIA Jetson AGX Thor Developer Kit", "AGX Thor"),
     ("thor", "AGX Thor")],
)  # fmt: skip
def test_names_of_boards(board: str, family: str) -> None:
    wanted = BY_NAME[family]
    assert total_mw(wanted.rails_mw, board) == (wanted.total_mw, wanted.scope)


def test_a_total_that_cannot_be_told() -> None:
    orin, thor, xavier = BY_NAME["AGX Orin"].rails_mw, BY_NAME["AGX Thor"].rails_mw, BY_NAME["AGX Xavier"].rails_mw
    for rails, board, words in (
        ({k: v for k, v in thor.items() if k != "VIN"}, None, "VIN is missing"),  # JetPack 7.2 of some carriers
        ({k: v for k, v in xavier.items() if k != "CV"}, None, "CV is missing"),
        ({k: v for k, v in orin.items() if k != "VDD_CPU_CV"}, None, "VDD_CPU_CV is missing"),
        ({**orin, "VDD_IN": 9000}, None, "name the board"),
        ({"POM_5V_IN": 1, "VDD_IN": 2}, None, "name the board"),
        ({"VDD_DDR": 1}, None, "no known board"),
        ({"VDD_IN": 1}, "Nano 4GB", "POM_5V_IN is missing"),
        ({"POM_5V_IN": 1}, "Jetson Nano 2GB", "no power monitor"),
        ({"VDD_IN": 1}, "Raspberry Pi 5", "pi_pmic"),
        ({"VDD_IN": 1}, "orin", "no policy"),
        ({"VDD_IN": 1}, "a toaster", "no policy"),
        ({}, "AGX Orin", "no power rails"),
    ):
        total, reason = total_mw(rails, board)
        assert total is None and words in reason, (rails, reason)
    assert total_mw({**orin, "VDD_IN": 9000}, "AGX Orin") == (BY_NAME["AGX Orin"].total_mw, "module")
    # a total may be negative: the monitors' offsets at idle
    assert total_mw({"VDD_GPU_SOC": -398, "VDD_CPU_CV": -398, "VIN_SYS_5V0": 0, "VDDQ_VDD2_1V8AO": 300}) == (
        -796,
        "module",
    )
