"""The phone table: enough phones, every value sourced, user files on top; bad files say what is wrong in one line."""

import json
import re
import tomllib

import pytest

from mobile_export.budget.phones import DOUBT, find_phones, packaged_phones, read_phones
from mobile_export.cli import run
from mobile_export.errors import InputError

MINE = """
[sources]
bench = "our own bench"

[soc."Own 1"]
memory = "LPDDR5-6400"
bandwidth_gb_s = { value = 50, source = "bench", confidence = "high" }
big_cores = { value = 4, source = "bench", confidence = "high" }

[[phone]]
name = "Mine"
year = 2026
os = "Android"
soc = "Own 1"
dram_gib = { value = 4, source = "bench", confidence = "high" }
app_limit_mib = { low = 900, high = 1100, source = "bench", confidence = "medium" }
"""


def test_there_are_phones_of_all_sizes_years_and_makers():
    phones = read_phones().values()
    assert len(phones) >= 30
    assert {phone.row.dram_gib.value for phone in phones} == {6, 8, 12}
    assert {phone.row.year for phone in phones} == set(range(2021, 2027))
    assert {phone.row.os for phone in phones} == {"Android", "iOS"}
    assert sum(phone.row.app_limit_mib is not None for phone in phones) >= 5


def test_every_value_names_a_page_and_no_source_is_left_over():
    held = tomllib.loads(packaged_phones().read_text(encoding="utf-8"))
    used = {source for phone in read_phones().values() for source in phone.sources}
    assert used == set(held["sources"])
    assert len(held["phone"]) == len(read_phones())  # no name twice
    for page in held["sources"].values():
        assert re.match(r"https://[\w.-]+/\S+( \(.+\))?$|(phonearena|tldrdaily)\.\w+, |no public value found: ", page), page


def test_what_has_no_public_value_is_of_low_confidence_or_shared_by_a_class():
    for phone in read_phones().values():
        for name, value in phone.values.items():
            if value.source == "class":
                assert value.confidence != "high", (phone.name, name)


def test_bandwidth_is_what_the_data_rate_allows():
    for phone in read_phones().values():
        rate = re.search(r"-(\d+)", phone.chip.memory)
        if rate:
            bits = 32 if "32-bit" in phone.chip.memory else 64
            assert phone.chip.bandwidth_gb_s.interval.likely == pytest.approx(int(rate[1]) * bits / 8e3, rel=0.02), phone.name


def test_doubt_widens_a_value_and_never_dram():
    chip = read_phones()["Galaxy S23"].chip.bandwidth_gb_s
    assert chip.interval.low == pytest.approx(chip.value * (1 - DOUBT["medium"]))
    assert chip.interval.high == pytest.approx(chip.value * (1 + DOUBT["medium"]))
    dram = read_phones()["iPhone 17"]  # of low confidence
    assert dram.dram_bytes.low == dram.dram_bytes.high == 8 * 2**30


def test_a_file_of_ones_own_adds_and_replaces(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(MINE + MINE[MINE.index("[[phone]]") :].replace("Mine", "Pixel 8"))
    phones = read_phones([file])
    assert len(phones) == len(read_phones()) + 1
    assert phones["Pixel 8"].row.soc == "Own 1"
    assert phones["Mine"].sources == {"bench": "our own bench"}
    assert phones["Mine"].values["app_limit_mib"].interval.likely == 1000


def test_a_phone_of_ones_own_may_have_a_packaged_chip(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(MINE[: MINE.index("[soc")] + MINE[MINE.index("[[phone]]") :].replace("Own 1", "Tensor G3"))
    assert read_phones([file])["Mine"].chip == read_phones()["Pixel 8"].chip


def test_names_are_found_in_any_case_and_all_is_every_one():
    phones = read_phones()
    assert [phone.name for phone in find_phones(["PIXEL 8", "iphone 15", "pixel 8"], phones)] == ["Pixel 8", "iPhone 15"]
    assert find_phones(["all"], phones) == list(phones.values())


BAD = {
    "not TOML": (lambda text: text + "[[phone", "not TOML: "),
    "an unknown key": (lambda text: text.replace("year = 2026", "yaer = 2026"), "phone.0.year: Field required"),
    "a key too many": (lambda text: text.replace('os = "A', 'colour = "red"\nos = "A'), "phone.0.colour: Extra inputs"),
    "a year of another age": (lambda text: text.replace("2026", "1926"), "phone.0.year: "),
    "an os nobody knows": (lambda text: text.replace("Android", "Symbian"), "phone.0.os: "),
    "no confidence": (lambda text: text.replace(', confidence = "medium"', ""), "phone.0.app_limit_mib.confidence: "),
    "another confidence": (lambda text: text.replace('"medium"', '"sure"'), "phone.0.app_limit_mib.confidence: "),
    "value and ends": (lambda text: text.replace("low = 900", "value = 1, low = 900"), "phone.0.app_limit_mib: give either"),
    "one end": (lambda text: text.replace("low = 900, ", ""), "phone.0.app_limit_mib: give either"),
    "ends the wrong way": (lambda text: text.replace("low = 900", "low = 9000"), "phone.0.app_limit_mib: low is above high"),
    "no DRAM": (lambda text: text.replace("value = 4, source", "value = 0, source"), "soc.Own 1.big_cores.value: "),
    "a soc that is not there": (
        lambda text: text.replace('soc = "Own 1"', 'soc = "Own 2"'),
        "no soc 'Own 2'; did you mean",
    ),
    "a source that is not there": (lambda text: text.replace("bench =", "bank ="), "phone 'Mine': source 'bench' is not among"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_refused_in_one_line(tmp_path, case):
    change, said = BAD[case]
    file = tmp_path / "mine.toml"
    file.write_text(change(MINE))
    with pytest.raises(InputError) as error:
        read_phones([file])
    assert str(error.value).startswith(f"{file}: ")
    assert said in str(error.value)
    assert error.value.exit_code == 3


def test_the_command_lists_them(capsys):
    assert run(["phones"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(read_phones())
    assert lines[0].split()[:3] == ["phone", "soc", "memory"]
    assert run(["phones", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["name"] for row in rows} == set(read_phones())
    assert all(value["page"] and value["confidence"] for row in rows for value in row["values"].values())


def test_the_command_gives_sources_for_a_name(capsys, tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(MINE)
    assert run(["phones", "mine", "--phones-file", str(file)]) == 0
    assert capsys.readouterr().out.splitlines()[-4:] == [
        "dram_gib: 4, high confidence, our own bench",
        "bandwidth_gb_s: 50, high confidence, our own bench",
        "big_cores: 4, high confidence, our own bench",
        "app_limit_mib: 900 to 1100, medium confidence, our own bench",
    ]


def test_the_command_refuses_what_it_does_not_know(fails, tmp_path):
    nearest = "did you mean 'Pixel 8' or 'Pixel 8a' or 'Pixel 9'?"
    assert fails("phones", "Pixle 8") == (2, f"Pixle 8: no such phone; {nearest} `phones` lists them")
    assert fails("phones", "zzzz") == (2, "zzzz: no such phone; `phones` lists them")
    none = tmp_path / "none.toml"
    missing = f"{none}: cannot be read: No such file or directory; name a TOML file of phones"
    assert fails("phones", "--phones-file", none) == (3, missing)
