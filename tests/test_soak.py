"""The short form of the soak: every kind of fault once, and an exact account."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import require
from linegate.errors import SettingsError, StationError
from linegate_edge.soak import run_soak


def test_every_fault_once_and_the_account_is_exact(spot_package: Path) -> None:
    require("mosquitto")
    command = [sys.executable, "-m", "linegate.cli", "soak", "--minutes", "0.45", "--seed", "5", "--json"]
    done = subprocess.run([*command, "--model", str(spot_package)], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    account = json.loads(done.stdout.splitlines()[-1])
    assert account["parts"] == account["verdicts"] == account["received"] > 100
    assert account["exact"]
    assert account["wrong"] == []
    assert {"station killed", "broker killed", "frames torn", "camera unplugged"} <= account["faults"].keys()


def test_without_a_broker_to_break_the_soak_says_what_to_install(spot_package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    with pytest.raises(StationError, match="apt install mosquitto"):
        run_soak(spot_package, minutes=0.1, parts_per_second=10, seed=0, as_json=True)


def test_an_unknown_fault_is_told_with_those_there_are(spot_package: Path) -> None:
    with pytest.raises(SettingsError, match="no such fault; there are: broker away, "):
        run_soak(spot_package, minutes=0.1, parts_per_second=10, seed=0, as_json=True, faults=["meteor"])
