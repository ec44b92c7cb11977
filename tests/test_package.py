"""A model package is used whole and unchanged, or not at all."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import pytest

from conftest import spot_model, write_spot_package
from linegate.errors import PackageError, ParityError
from linegate.infer import Inspector
from linegate.package import MANIFEST_FILE, MODEL_FILE, ModelPackage, write_package


@pytest.fixture
def package(tmp_path: Path, spot_package: Path) -> Path:
    """A package of one's own, to be damaged."""
    return Path(shutil.copytree(spot_package, tmp_path / "package"))


def test_a_written_package_is_read_as_it_was(spot_package: Path) -> None:
    package = ModelPackage.load(spot_package)
    assert package.manifest.name == "spots"
    assert package.model == spot_model()
    assert len(package.digest) == 64


def test_the_zip_of_a_package_is_the_same_package(package: Path, tmp_path: Path) -> None:
    archive = Path(shutil.make_archive(str(tmp_path / "spots"), "zip", tmp_path, package.name))
    assert ModelPackage.load(archive).digest == ModelPackage.load(package).digest


@pytest.mark.parametrize("name", ["model.onnx", "parity.npz", "card.md", "package.json"])
@pytest.mark.parametrize("place", [0.0, 0.3, 0.6, 0.999])
def test_one_flipped_byte_anywhere_is_found(package: Path, name: str, place: float) -> None:
    data = bytearray((package / name).read_bytes())
    data[int(place * (len(data) - 1))] ^= 1
    (package / name).write_bytes(data)
    with pytest.raises(PackageError, match=name) as caught:
        ModelPackage.load(package)
    assert "\n" not in str(caught.value)
    assert "copy the package again" in str(caught.value)


def test_every_byte_of_the_manifest_counts(package: Path) -> None:
    original = (package / MANIFEST_FILE).read_bytes()
    for place in range(0, len(original), 7):
        data = bytearray(original)
        data[place] ^= 1
        (package / MANIFEST_FILE).write_bytes(data)
        with pytest.raises(PackageError):
            ModelPackage.load(package)


def test_a_threshold_changed_by_hand_is_refused(package: Path) -> None:
    text = (package / MANIFEST_FILE).read_text()
    (package / MANIFEST_FILE).write_text(text.replace('"score": 0.8', '"score": 9.9'))
    with pytest.raises(PackageError, match="was changed after it was made"):
        ModelPackage.load(package)


@pytest.mark.parametrize("name", ["model.onnx", "parity.npz", "card.md", "package.json"])
def test_a_missing_file_is_named(package: Path, name: str) -> None:
    (package / name).unlink()
    with pytest.raises(PackageError, match=f"{name} is missing"):
        ModelPackage.load(package)


def test_what_is_no_package_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("no zip")
    for name, words in (("gone", "no such model package"), ("empty", "no model package"), ("text", "nor a whole zip")):
        with pytest.raises(PackageError, match=words):
            ModelPackage.load(tmp_path / name)


def test_a_torn_zip_is_refused(package: Path, tmp_path: Path) -> None:
    archive = Path(shutil.make_archive(str(tmp_path / "spots"), "zip", package))
    archive.write_bytes(archive.read_bytes()[:-200])
    with pytest.raises(PackageError, match="nor a whole zip"):
        ModelPackage.load(archive)


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a", "w") as entry:
        for _ in range(1025):
            entry.write(bytes(1 << 20))
    with pytest.raises(PackageError, match="more than a package may have"):
        ModelPackage.load(tmp_path / "bomb.zip")


def test_a_newer_schema_asks_for_an_update(package: Path) -> None:
    values = json.loads((package / MANIFEST_FILE).read_text())
    (package / MANIFEST_FILE).write_text(json.dumps(values | {"schema_version": 2}))
    with pytest.raises(PackageError, match="update Linegate"):
        ModelPackage.load(package)


def test_a_new_package_takes_the_place_of_an_old_one_and_of_nothing_else(tmp_path: Path) -> None:
    first = write_spot_package(tmp_path / "spots", threshold=0.8)
    second = write_spot_package(tmp_path / "spots", threshold=0.7)
    assert ModelPackage.load(tmp_path / "spots").digest == second.digest != first.digest
    assert [path.name for path in tmp_path.iterdir()] == ["spots"], "nothing is left beside it"
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("precious")
    with pytest.raises(PackageError, match="is no model package"):
        write_spot_package(tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter1.tex").exists()


def test_a_model_that_computes_otherwise_is_refused_at_load(package: Path) -> None:
    loaded = ModelPackage.load(package)
    files = dict(loaded.files)
    altered = spot_model().replace(b"\x00\x00\x7f\x43", b"\x00\x00\x80\x43")  # divides by 256 where it was 255
    assert altered != files[MODEL_FILE]
    write_package(package, loaded.manifest, files | {MODEL_FILE: altered})
    with pytest.raises(ParityError, match="differs"):
        Inspector(ModelPackage.load(package))


def test_a_place_that_cannot_be_written_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(PackageError, match="the package cannot be written"):
        write_spot_package(tmp_path / "file" / "package")
