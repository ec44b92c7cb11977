"""The shelf: what is whole and gives its own scores here is kept under its digest; all else changes nothing, in one line."""

from __future__ import annotations

import json
import stat
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from conftest import write_spot_package
from linegate.errors import PackageError, ParityError
from linegate.package import PARITY_FILE, ModelPackage, ParitySamples, write_package
from linegate_edge.review.models.contents import read_contents
from linegate_edge.review.models.shelf import Shelf
from models_world import MIA, World, write_run, zip_of

MIB = 2**20


@pytest.fixture
def world(tmp_path: Path, spot_package: Path) -> Iterator[World]:
    made = World(tmp_path, spot_package)
    yield made
    made.close()


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path / "models", "cpu", 64 * MIB)


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) if folder.exists() else []


def test_an_empty_shelf_has_nothing(shelf: Shelf) -> None:
    assert shelf.find("0" * 64) is None
    assert shelf.find("../../etc") is None
    assert shelf.comparison("0" * 64) is None
    assert shelf.pictures("0" * 64) == {}


def test_a_package_stands_under_its_digest_however_it_came(shelf: Shelf, tmp_path: Path) -> None:
    package = write_spot_package(tmp_path / "spots", threshold=0.5)
    of_folder = shelf.put(tmp_path / "spots")
    of_zip = shelf.put(zip_of(tmp_path / "spots", tmp_path / "spots.zip"))
    assert of_folder.digest == of_zip.digest == package.digest
    assert of_folder.location == shelf.location(package.digest)
    assert ModelPackage.load(of_folder.location).digest == package.digest
    assert [path.name for path in shelf.folder.iterdir()] == [package.digest]


def test_a_run_brings_its_comparison_and_its_pictures(shelf: Shelf, tmp_path: Path) -> None:
    champion = write_spot_package(tmp_path / "spots")
    package = write_run(tmp_path / "run", champion, threshold=0.5)
    brought = shelf.put(zip_of(tmp_path / "run", tmp_path / "run.zip"))
    assert brought.comparison is not None
    assert brought.comparison.gate.go
    assert list(shelf.pictures(package.digest)) == ["0001-crack.jpg"]
    assert json.loads(shelf.comparison(package.digest) or b"")["champion"]["digest"] == champion.digest


def test_a_comparison_of_another_package_is_refused(shelf: Shelf, tmp_path: Path) -> None:
    champion = write_spot_package(tmp_path / "spots")
    write_run(tmp_path / "run", champion, threshold=0.5)
    write_spot_package(tmp_path / "run" / "candidate", threshold=0.6)
    with pytest.raises(PackageError, match=r"speaks of package \w{12}, not of \w{12}"):
        shelf.put(tmp_path / "run")
    assert everything(shelf.folder) == []


def damaged(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"torn")


def of_another_schema(folder: Path) -> None:
    path = folder / "package.json"
    path.write_text(path.read_text().replace('"schema_version": 1', '"schema_version": 2'))


def incomplete(folder: Path) -> None:
    (folder / "parity.npz").unlink()


@pytest.mark.parametrize(
    ("damage", "told"),
    [(damaged, "model.onnx is damaged"), (of_another_schema, "schema version 2"), (incomplete, "parity.npz is missing")],
)
def test_what_is_not_whole_is_refused_in_one_line_and_stands_in_the_trail(
    world: World, tmp_path: Path, damage: Callable[[Path], None], told: str
) -> None:
    write_spot_package(tmp_path / "spots", threshold=0.5)
    damage(tmp_path / "spots")
    with pytest.raises(PackageError, match=told) as caught:
        world.room.register.bring(MIA, tmp_path / "spots", called="upload")
    assert "\n" not in str(caught.value)
    assert ".importing" not in str(caught.value)
    assert world.actions() == ["model.import_refused"]
    assert world.room.register.registered() == {}
    assert everything(world.room.shelf.folder) == []


def test_a_package_that_gives_other_scores_here_is_refused(shelf: Shelf, tmp_path: Path) -> None:
    package = write_spot_package(tmp_path / "spots", threshold=0.5)
    samples = package.parity_samples
    wrong = ParitySamples(samples.pixels, samples.scores + np.float32(0.1), samples.maps)
    write_package(tmp_path / "spots", package.manifest, {**package.files, PARITY_FILE: wrong.to_bytes()})
    with pytest.raises(ParityError, match="score differs"):
        shelf.put(tmp_path / "spots")
    assert everything(shelf.folder) == []


@pytest.mark.parametrize(
    "name", ["../package.json", "/etc/passwd", "a/../../package.json", "C:/package.json", "..\\package.json"]
)
def test_a_zip_that_names_a_place_outside_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "trick.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, "{}")
    with pytest.raises(PackageError, match="outside of itself"):
        read_contents(path, MIB)


def test_a_zip_with_a_link_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "link.zip"
    entry = zipfile.ZipInfo("package.json")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(entry, "/etc/passwd")
    with pytest.raises(PackageError, match="no plain file"):
        read_contents(path, MIB)


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("package.json", "{}")
        archive.writestr("model.onnx", b"\0" * (32 * MIB))
    assert path.stat().st_size < MIB
    with pytest.raises(PackageError, match="32 MiB unpacked is more than a package may have, 16 MiB"):
        read_contents(path, 16 * MIB)


def test_a_zip_that_lies_about_its_sizes_gives_no_more_than_it_states(tmp_path: Path) -> None:
    path = tmp_path / "liar.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("package.json", b"\0" * (8 * MIB))
    raw = path.read_bytes()
    path.write_bytes(raw.replace((8 * MIB).to_bytes(4, "little"), (10).to_bytes(4, "little")))
    with pytest.raises(PackageError, match="neither a package folder nor a whole zip"):
        read_contents(path, MIB)


@pytest.mark.parametrize("data", [b"", b"no zip", b"PK\x03\x04torn"])
def test_what_is_no_zip_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "upload.zip"
    path.write_bytes(data)
    with pytest.raises(PackageError, match="upload: neither a package folder nor a whole zip"):
        read_contents(path, MIB, "upload")


def test_a_package_that_was_changed_on_the_shelf_is_told(shelf: Shelf, tmp_path: Path) -> None:
    package = write_spot_package(tmp_path / "spots", threshold=0.5)
    shelf.put(tmp_path / "spots")
    write_spot_package(shelf.location(package.digest), threshold=0.6)
    with pytest.raises(PackageError, match="by now"):
        Shelf(shelf.folder, "cpu").find(package.digest)
    assert shelf.put(tmp_path / "spots").digest == package.digest
    assert ModelPackage.load(shelf.location(package.digest)).digest == package.digest


def test_what_a_killed_import_left_is_tidied_away(shelf: Shelf) -> None:
    (shelf.folder / ".importing-abc" / "package").mkdir(parents=True)
    shelf.tidy()
    assert everything(shelf.folder) == []
