"""The whole station of edge/README.md: two views, two recipes, a PLC; run from the README's own text against simulators."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from conftest import Mes, Mosquitto, encode, require, spot_picture, wait_until, write_spot_package
from linegate_edge.settings import load_station
from linegate_edge.station import Station
from simulators.plc import RESULT, SimulatedPlc

README = (Path(__file__).parents[1] / "edge" / "README.md").read_text(encoding="utf-8")
FLANGE, COVER = 1, 2
PASS, FAIL, UNDECIDED = 1, 2, 3


@pytest.fixture
def text() -> str:
    found = re.search(r"^### A whole station\n.*?^```toml\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert found is not None, "the README has a whole station"
    return found.group(1)


def test_the_station_of_the_readme_judges_two_recipes_for_a_plc(text: str, mosquitto: Mosquitto, tmp_path: Path) -> None:
    camera = subprocess.Popen(
        [require("arv-fake-gv-camera-0.8"), "-i", "127.0.0.1"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    plc = SimulatedPlc(int(re.findall(r"^port = (\d+)$", text, re.MULTILINE)[0]))
    # The camera's test pattern is bright all over, so the top views take their defects from further up.
    for name, threshold in (("flange_top", 1000.0), ("flange_side", 0.8), ("cover", 1000.0)):
        (tmp_path / "models").mkdir(exist_ok=True)
        write_spot_package(tmp_path / "models" / name, name=name, threshold=threshold)
    side = tmp_path / "side"
    side.mkdir()
    path = tmp_path / "STATION.toml"
    path.write_text(text + f"[mqtt]\nport = {mosquitto.port}\n[http]\nport = 0\n[evidence]\nmin_free_mib = 0\n")
    mes = Mes(mosquitto.port, topic="acme/graz/press/line-1/flange")
    plc.appear()
    station = Station(load_station(path))
    station.start()
    try:
        wait_until(lambda: station.not_ready() is None and plc.epoch, 30, f"the station to be ready: {station.not_ready()}")
        codes = []
        for number, (part_type, defect) in enumerate([(FLANGE, False), (FLANGE, True), (COVER, False), (FLANGE, False)]):
            serial = f"P-{number:04d}"
            if part_type == FLANGE:
                temporary = side / f".{serial}"
                temporary.write_bytes(encode(spot_picture(defect=defect, seed=number)))
                temporary.rename(side / f"{serial}.png")
            plc.part(serial, part_type)
            wait_until(lambda: plc.answered, 30, f"the answer for {serial}")
            codes.append(plc[RESULT])
        plc.part("P-LOST", FLANGE)  # its side view never comes
        wait_until(lambda: plc.answered, 30, "an answer at the deadline")
        codes.append(plc[RESULT])
        assert codes == [PASS, FAIL, PASS, PASS, UNDECIDED]
        wait_until(lambda: len(mes.sequences) == 5, what="all verdicts at the MES")
    finally:
        station.stop()
        mes.close()
        plc.close()
        camera.kill()
        camera.wait()
    verdicts = {verdict["part"]["serial"]: verdict for verdict in mes.verdicts}
    assert [verdicts[f"P-{number:04d}"]["provenance"]["recipe"] for number in range(4)] == [
        "flange",
        "flange",
        "cover",
        "flange",
    ]
    assert {view["view"] for view in verdicts["P-0001"]["views"]} == {"top", "side"}
    defect = next(view for view in verdicts["P-0001"]["views"] if view["view"] == "side")
    assert {region["plant_code"] for region in defect["regions"]} == {"D-017"}
    assert (verdicts["P-LOST"]["decision"], verdicts["P-LOST"]["reason"]) == ("undecided", "no_view")
    assert station.live.triggers_and_verdicts == (5, 5)
