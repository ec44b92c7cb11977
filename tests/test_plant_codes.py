"""The plant's own code stands beside each defect class; a code for a class that nothing finds is told before the start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from conftest import MakeStation, free_port, station_toml, submit
from linegate.errors import SettingsError
from linegate_edge.plant_codes import check_plant_codes
from linegate_edge.reload import reload_station
from linegate_edge.settings import load_station
from linegate_edge.station import Station
from linegate_edge.station_check import check

CODES = '[plant_codes]\ndefect = "Q-117"\n'
LIMITS = "[evidence]\nmin_free_mib = 0\n"


def codes_of(message: dict[str, Any]) -> set[tuple[str, str | None]]:
    return {(region["defect_class"], region["plant_code"]) for view in message["views"] for region in view["regions"]}


def test_no_codes_fit_any_package() -> None:
    check_plant_codes({}, set())
    check_plant_codes({"crack": "Q-1"}, {"crack", "pore"})


@pytest.mark.parametrize(
    ("codes", "told"),
    [
        ({"crak": "Q-1", "pore": "Q-2"}, r"no package finds the defect class 'crak': did you mean 'crack'\?"),
        ({"zzz": "Q-1"}, "no package finds the defect class 'zzz': they find crack, pore"),
        ({"a": "1", "b": "2"}, "no package finds the defect class 'a', 'b': they find crack, pore"),
    ],
)
def test_codes_for_classes_that_no_package_finds_are_named(codes: dict[str, str], told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        check_plant_codes(codes, {"pore", "crack"})


def test_each_region_carries_the_code_of_its_class(make_station: MakeStation) -> None:
    station = make_station(free_port(), more=LIMITS + CODES)
    (done,) = submit(station, 1)
    assert codes_of(done.result(20).message) == {("defect", "Q-117")}


def test_codes_read_again_hold_from_the_next_part_on_and_bad_ones_change_nothing(
    tmp_path: Path, make_station: MakeStation, caplog: pytest.LogCaptureFixture
) -> None:
    station = make_station(free_port())
    codes = [codes_of(submit(station, 1)[0].result(20).message)]
    for more in ('[plant_codes]\ndefect = "A"\n', '[plant_codes]\ndefekt = "B"\n'):
        path = station_toml(
            tmp_path, station.settings.model.package, broker_port=station.settings.mqtt.port, more=LIMITS + more
        )
        reload_station(path, station)
        codes.append(codes_of(submit(station, 1)[0].result(20).message))
    assert codes == [{("defect", None)}, {("defect", "A")}, {("defect", "A")}]
    assert "reload refused" in caplog.text
    assert "did you mean 'defect'?" in caplog.text


def test_a_station_with_a_code_for_nothing_does_not_start(tmp_path: Path, spot_package: Path) -> None:
    settings = load_station(
        station_toml(tmp_path, spot_package, broker_port=free_port(), more='[plant_codes]\nscratch = "Q-9"\n')
    )
    with pytest.raises(SettingsError, match="no package finds the defect class 'scratch'"):
        Station(settings)
    assert not (tmp_path / "var").exists(), "it was told before anything was made"
    assert [finding.level for finding in check(settings) if finding.check == "plant codes"] == ["fail"]


def test_the_check_of_a_station_counts_its_codes(tmp_path: Path, spot_package: Path) -> None:
    settings = load_station(station_toml(tmp_path, spot_package, broker_port=free_port(), more=CODES))
    (found,) = [finding for finding in check(settings) if finding.check == "plant codes"]
    assert (found.level, found.what) == ("ok", "for 1 of 1 defect classes that the packages find")
    assert not [finding for finding in check(settings.model_copy(update={"plant_codes": {}})) if finding.check == "plant codes"]
