"""STATION.toml: one clear line for every mistake, before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from linegate.errors import SettingsError
from linegate_edge.settings import StationSettings, load_station

SMALLEST = '[station]\ntopic = "acme/graz/press/line-1/tiles"\n[model]\npackage = "models/tiles"\n'


def load(folder: Path, text: str) -> StationSettings:
    path = folder / "STATION.toml"
    path.write_text(text)
    return load_station(path)


def test_the_smallest_station_needs_a_topic_and_a_package(tmp_path: Path) -> None:
    settings = load(tmp_path, SMALLEST)
    assert settings.source == ()
    assert settings.http.host == "127.0.0.1", "nothing is open beyond loopback unless somebody says so"


def test_relative_paths_are_taken_from_the_folder_of_the_file(tmp_path: Path) -> None:
    settings = load(tmp_path, SMALLEST + '[[source]]\nkind = "folder"\npath = "frames"\n')
    assert settings.model.package == tmp_path / "models" / "tiles"
    assert settings.station.store == tmp_path / "var"
    assert settings.source[0].path == tmp_path / "frames"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("addition", "words"),
    [
        ("[mqtt]\nhots = 'broker'\n", "unknown key 'mqtt.hots': did you mean 'host'?"),
        ("[modell]\n", "unknown key 'modell': did you mean 'model'?"),
        ('[[source]]\nkind = "folder"\npth = "x"\n', "did you mean 'path'?"),
        ("[mqtt]\nport = '1883'\n", "key 'mqtt.port': input should be a valid integer, got '1883'"),
        ("[mqtt]\nport = 70000\n", "key 'mqtt.port'"),
        ("[evidence]\npassed_share = 1.5\n", "key 'evidence.passed_share'"),
        ("[recipe]\nthreshold = nan\n", "key 'recipe.threshold'"),
        (
            '[[source]]\nkind = "usb"\n',
            "key 'source.0.kind': expected one of 'folder', 'opencv', 'aravis', 'genicam', got 'usb'",
        ),
        ('[[source]]\npath = "x"\n', "key 'source.0.kind' is missing"),
        ("[evidence]\nmax_gib = inf\n", "key 'evidence.max_gib'"),
        ("[evidence]\nretention_days = 1000000\n", "key 'evidence.retention_days'"),
        ('[[source]]\nkind = "folder"\npath = "~nobody-there/x"\n', "no such user's home folder"),
        ('[[source]]\nkind = "folder"\npath = "a\\u0000b"\n', "cannot hold a NUL character"),
        ('[[source]]\nkind = "folder"\n', "path' is missing"),
        ("[mqtt\n", "not valid TOML"),
        ('[review]\nshifts = ["06:10"]\n', "key 'review.shifts': expected 1 to 24 quarters of an hour"),
        ('[review]\nshifts = ["14:00", "06:00"]\n', "in the order of the day, each once"),
        ('[review]\ntime_zone = "Europe/Grazz"\n', "no such time zone on this machine: expected one as 'Europe/Berlin'"),
        ("[review]\naudit_share = 2\n", "key 'review.audit_share'"),
        (
            '[[source]]\nkind="folder"\npath="a"\ncamera="c"\n[[source]]\nkind="folder"\npath="b"\ncamera="c"\n',
            "a camera name of its own",
        ),
    ],
)
def test_a_mistake_is_named_with_its_key_and_the_mend(tmp_path: Path, addition: str, words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, SMALLEST + addition)
    assert words in str(caught.value)
    assert str(tmp_path / "STATION.toml") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("topic", ["tiles", "a/b/c/d", "a/b/c/d/e/f", "a/b//d/e", "a/b/+/d/e", "a/b/c/d/#", "$SYS/b/c/d/e"])
def test_a_topic_has_five_plain_levels(tmp_path: Path, topic: str) -> None:
    with pytest.raises(SettingsError, match="enterprise/site/area/line/station"):
        load(tmp_path, SMALLEST.replace("acme/graz/press/line-1/tiles", topic))


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    (tmp_path / "bom.toml").write_text(SMALLEST, encoding="utf-8-sig")
    assert load_station(tmp_path / "bom.toml").station.topic == "acme/graz/press/line-1/tiles"


@pytest.mark.parametrize(
    ("address", "becomes"),
    [("line.avi", "{folder}/line.avi"), ("/dev/video0", "/dev/video0"), ("0", "0"), ("rtsp://cam/1", "rtsp://cam/1")],
)
def test_a_video_file_is_looked_for_beside_the_settings(tmp_path: Path, address: str, becomes: str) -> None:
    settings = load(tmp_path, SMALLEST + f'[[source]]\nkind = "opencv"\naddress = "{address}"\n')
    assert settings.source[0].address == becomes.format(folder=tmp_path)  # type: ignore[union-attr]


def test_missing_and_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no such settings file"):
        load_station(tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes(b'[station]\ntopic = "\xff"')
    with pytest.raises(SettingsError, match="cannot be read"):
        load_station(tmp_path / "latin.toml")
