"""`linegate run`: what keeps a station from starting is one line and exit status 2."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import MakeStation, free_port, station_toml
from linegate.cli import main


def run(path: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "linegate.cli", "run", str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def assert_one_line(done: subprocess.CompletedProcess[str], words: str) -> None:
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.startswith("linegate: ")
    assert done.stderr.count("\n") == 1, "one line, no traceback"


@pytest.fixture
def settings(tmp_path: Path, spot_package: Path) -> Path:
    return station_toml(tmp_path, spot_package, broker_port=9, http_port=free_port())


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("[mqtt]", "[mqqt]", "unknown key 'mqqt': did you mean 'mqtt'?"),
        ("port = 9\n", 'port = "9"\n', "key 'mqtt.port': input should be a valid integer, got '9'"),
        ("package = ", "packages = ", "did you mean 'package'?"),
        ("spots", "none", "no such model package"),
    ],
)
def test_a_wrong_setting_is_told(settings: Path, old: str, new: str, words: str) -> None:
    settings.write_text(settings.read_text().replace(old, new))
    assert_one_line(run(settings), words)


@pytest.mark.parametrize(
    "arguments",
    [
        ["demo", "--port", "99999"],
        ["demo", "--port", "-1"],
        ["demo", "--parts", "0"],
        ["demo", "--parts", "many"],
        ["bench", "line", "--model", "m", "--workers", "-3"],
        ["inspect", "p.png", "--model", "m", "--max-megapixels", "nan"],
        ["inspect", "p.png", "--model", "m", "--max-megapixels", "-1"],
    ],
)
def test_an_option_out_of_range_is_a_usage_error(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "expected a" in capsys.readouterr().err


def test_a_missing_settings_file_is_told(tmp_path: Path) -> None:
    assert_one_line(run(tmp_path / "none.toml"), "no such settings file")


def test_a_taken_port_is_told(settings: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        settings.write_text(settings.read_text().replace("[http]\nport = ", f"[http]\nport = {port} # "))
        assert_one_line(run(settings), f"{port}")


def test_a_store_in_use_is_told(settings: Path, make_station: MakeStation) -> None:
    make_station(9)
    assert_one_line(run(settings), "is in use by process")


def test_a_store_that_may_not_be_written_is_told(settings: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    settings.write_text(settings.read_text().replace('store = "var"', 'store = "file/var"'))
    assert_one_line(run(settings), "the store cannot be made here")


def test_a_damaged_package_is_told(settings: Path, spot_package: Path, tmp_path: Path) -> None:
    copy = tmp_path / "spots-copy"
    copy.mkdir()
    for file in spot_package.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    data = bytearray((copy / "model.onnx").read_bytes())
    data[100] ^= 1
    (copy / "model.onnx").write_bytes(data)
    settings.write_text(settings.read_text().replace(str(spot_package), str(copy)))
    assert_one_line(run(settings), "model.onnx is damaged")
