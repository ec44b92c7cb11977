"""Data sets: layouts, the manifest, fetching and checking, and one clear line for each mistake."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from linegate import cli
from linegate.errors import DataError, SettingsError
from linegate.settings import parse
from linegate_training.data import fetch as fetching
from linegate_training.data.fetch import check, fetch, open_parts
from linegate_training.data.folder import read_folder
from linegate_training.data.manifest import DataManifest, DownloadSource, known_set, known_sets, manifest_path
from linegate_training.data.parts import check_masks, check_sizes, read_mask, read_part

ROOT = Path(__file__).parents[1]


def picture(path: Path, size_wh: tuple[int, int] = (40, 30), value: int = 100) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size_wh[1], size_wh[0]), value, np.uint8)).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "tiles"
    for index in range(4):
        picture(root / "train/good" / f"{index}.png")
    picture(root / "test/good/10.png")
    picture(root / "test/crack/11.png")
    picture(root / "ground_truth/crack/11_mask.png", value=255)
    return root


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must fail, and return its one line."""
    assert cli.main(arguments) == 2
    shown = capsys.readouterr()
    lines = [line for line in shown.err.splitlines() if not line.startswith("note:")]
    assert len(lines) == 1, shown.err
    assert "Traceback" not in shown.err
    return lines[0]


def test_folder_without_test_parts_is_a_data_set(tmp_path: Path) -> None:
    picture(tmp_path / "train/good/a.png")
    parts = read_folder(tmp_path)
    assert [sample.name for sample in parts.goods()] == ["train/good/a.png"]
    assert parts.tests() == []
    assert not parts.has_masks


def test_folder_is_read_with_labels_subsets_and_masks(folder: Path) -> None:
    parts = read_folder(folder)
    assert parts.name == "tiles"
    assert len(parts.goods()) == 4
    good, crack = sorted(parts.tests(), key=lambda sample: sample.name, reverse=True)
    assert (good.label, good.defective, good.mask) == ("good", False, None)
    assert (crack.label, crack.defective) == ("crack", True)
    assert parts.has_masks
    assert read_mask(crack, (40, 30)).all()


def test_missing_folder_is_refused_with_the_layout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(["train", str(tmp_path / "no"), "--out", str(tmp_path / "p")], capsys)
    assert "no such folder" in line


def test_folder_without_good_images_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture(tmp_path / "parts/test/good/a.png")
    line = refused(["train", str(tmp_path / "parts"), "--out", str(tmp_path / "p")], capsys)
    assert "no good images" in line
    assert "train/good" in line


def test_defective_image_without_mask_is_refused_by_name(folder: Path) -> None:
    picture(folder / "test/crack/12.png")
    with pytest.raises(DataError, match=r"12\.png: has no mask: draw .*12_mask\.png"):
        read_folder(folder)


def test_mask_without_image_is_refused_by_name(folder: Path) -> None:
    picture(folder / "ground_truth/crack/99_mask.png")
    with pytest.raises(DataError, match=r"99_mask\.png: a mask without an image"):
        read_folder(folder)


def test_masks_of_a_class_without_images_are_refused(folder: Path) -> None:
    picture(folder / "ground_truth/dent/1_mask.png")
    with pytest.raises(DataError, match="masks without images"):
        read_folder(folder)


def test_mask_of_another_size_is_refused_with_both_sizes(folder: Path) -> None:
    picture(folder / "ground_truth/crack/11_mask.png", (20, 30), 255)
    with pytest.raises(DataError, match="is 20 × 30, its image 40 × 30"):
        check_masks(read_folder(folder).tests(), "tiles")


def test_colour_mask_is_refused(folder: Path) -> None:
    Image.new("RGB", (40, 30), "red").save(folder / "ground_truth/crack/11_mask.png")
    with pytest.raises(DataError, match="got mode RGB"):
        check_masks(read_folder(folder).tests(), "tiles")


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_masks_of_one_channel_are_read(folder: Path, mode: str) -> None:
    image = Image.new("L", (40, 30), 0)
    image.putpixel((3, 4), 255)
    path = folder / "ground_truth/crack/11_mask.png"
    if mode == "P":
        image = Image.fromarray((np.asarray(image) > 0).astype(np.uint8))
        image.putpalette([0, 0, 0, 255, 0, 0])
        image.save(path)
    else:
        image.convert(mode).save(path)
    (sample,) = [sample for sample in read_folder(folder).tests() if sample.defective]
    mask = read_mask(sample, (40, 30))
    assert mask.sum() == 1
    assert mask[4, 3]


def test_empty_mask_is_noted_not_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture(folder / "ground_truth/crack/11_mask.png", value=0)
    check_masks(read_folder(folder).tests(), "tiles")
    assert "1 of 1 masks mark no pixel" in capsys.readouterr().err


def test_unequal_sizes_are_noted_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture(folder / "train/good/5.png", (60, 50))
    check_sizes(read_folder(folder).samples, "tiles")
    noted = capsys.readouterr().err.splitlines()
    assert len(noted) == 1
    assert "40–60 wide, 30–50 high" in noted[0]


def test_image_of_an_absurd_aspect_is_refused_by_name(folder: Path) -> None:
    picture(folder / "train/good/strip.png", (300, 20))
    with pytest.raises(DataError, match=r"strip\.png is 300 × 20"):
        check_sizes(read_folder(folder).samples, "tiles")


def test_truncated_image_is_refused_by_name(folder: Path) -> None:
    path = folder / "train/good/0.png"
    path.write_bytes(path.read_bytes()[:60])
    (sample,) = [sample for sample in read_folder(folder).goods() if sample.path == path]
    with pytest.raises(DataError, match=r"0\.png: .*mend or remove"):
        read_part(sample)


def test_unreadable_image_is_refused_by_name(folder: Path) -> None:
    (folder / "train/good/1.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"1\.png: not a readable picture"):
        check_sizes(read_folder(folder).samples, "tiles")


def test_unknown_name_suggests_the_nearest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(["train", "magnetic_tiles", "--out", str(tmp_path / "p")], capsys)
    assert "did you mean 'magnetic_tile'?" in line


def test_known_set_without_a_copy_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LINEGATE_DATA", raising=False)
    with pytest.raises(DataError, match="linegate data fetch magnetic_tile --root DIR"):
        open_parts("magnetic_tile")


def test_fetched_copy_in_the_current_folder_is_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LINEGATE_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    assert fetch("elpv", None) == Path("elpv")
    assert open_parts("elpv").samples[0].path.parts[0] == "elpv"


@pytest.mark.parametrize("command", [["data", "verify", "elpv"], ["train", "elpv", "--out", "p"]])
def test_variable_that_names_no_folder_is_refused(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    for name in ("missing", "file"):
        monkeypatch.setenv("LINEGATE_DATA", str(tmp_path / name))
        assert f"LINEGATE_DATA names no folder: {tmp_path / name}" in refused(command, capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_fetching_into_a_file_or_under_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    for name in (".", "below"):
        place = str(file / name)
        monkeypatch.delenv("LINEGATE_DATA", raising=False)
        line = refused(["data", "fetch", "elpv", "--root", place], capsys)
        assert "--root" in line
        monkeypatch.setenv("LINEGATE_DATA", place)
        line = refused(["data", "fetch", "elpv"], capsys)
        assert "LINEGATE_DATA" in line
        assert ("names a file" if name == "." else "cannot be written to") in line
    assert file.read_text() == "mine"


def test_variable_that_names_a_locked_folder_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "linegate.cli", "data", "verify", "elpv"]
    if os.geteuid() == 0:
        rights = "-dac_override,-dac_read_search"
        bound = ["setpriv", "--bounding-set", rights, "--inh-caps", rights]
        if shutil.which("setpriv") is None or subprocess.run([*bound, "true"], check=False).returncode != 0:
            pytest.skip("root may look everywhere, and setpriv cannot take that right from it here")
        command = [*bound, *command]
    (tmp_path / "locked").mkdir(mode=0)
    where = {**os.environ, "LINEGATE_DATA": str(tmp_path / "locked/data")}
    shown = subprocess.run(command, capture_output=True, text=True, check=False, env=where)
    assert shown.returncode == 2
    assert shown.stderr.splitlines() == [
        f"linegate: {tmp_path / 'locked/data/elpv'}: cannot be looked into (Permission denied): name another LINEGATE_DATA"
    ]


def test_fetch_makes_the_folder_that_the_variable_names_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LINEGATE_DATA", str(tmp_path / "new/data"))
    assert cli.main(["data", "fetch", "elpv"]) == 0
    shown = capsys.readouterr()
    assert shown.err.splitlines() == [f"note: LINEGATE_DATA: made the folder {tmp_path / 'new/data'} for copies of data sets"]
    assert f"elpv lies in {tmp_path / 'new/data/elpv'}" in shown.out
    assert cli.main(["data", "verify", "elpv"]) == 0


def test_pure_test_set_is_read_to_measure_but_not_to_learn(folder: Path) -> None:
    shutil.rmtree(folder / "train")
    parts = open_parts(str(folder), to_learn=False)
    assert [sample.name for sample in parts.tests()] == ["test/crack/11.png", "test/good/10.png"]
    assert parts.goods() == []
    assert parts.has_masks
    with pytest.raises(DataError, match="no good images"):
        open_parts(str(folder))


def test_pure_test_set_may_be_called_as_a_known_set(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(folder / "test", tmp_path / "elpv/test")
    monkeypatch.chdir(tmp_path)
    assert len(open_parts("elpv", to_learn=False).tests()) == 2


def test_folder_without_test_is_refused_to_measure_on(folder: Path) -> None:
    for path in (folder / "test", folder / "train/good", folder):
        shutil.rmtree(folder / "ground_truth", ignore_errors=True)
        if path == folder:
            shutil.rmtree(folder / "test")
        with pytest.raises(DataError, match="name the folder that holds test/good and test/<defect class>"):
            read_folder(path, to_learn=False)


def test_name_that_is_not_utf_8_is_refused_before_training(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = os.fsdecode(b"gr\xfcn")
    (tmp_path / bad).mkdir()
    shutil.copytree(folder, tmp_path / bad / "tiles")
    assert "gr\\xfcn/tiles: this path is not UTF-8" in refused(
        ["train", str(tmp_path / bad / "tiles"), "--out", str(tmp_path / "p")], capsys
    )
    line = refused(["train", str(folder), "--out", str(tmp_path / bad / "p")], capsys)
    assert "gr\\xfcn/p: this path is not UTF-8" in line
    shutil.rmtree(folder / "train/good")
    for index in range(12):
        (folder / "train/good").mkdir(exist_ok=True)
        picture(folder / "train/good/a.png").rename(folder / "train/good" / f"{bad}{index}.png")
    line = refused(["train", str(folder), "--out", str(tmp_path / "p")], capsys)
    assert "train/good/gr\\xfcn0.png: this name is not UTF-8, so no package can list it: rename it" in line
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize("damage", [b"", b"no picture", b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"])
def test_damaged_mask_is_refused_by_name(folder: Path, damage: bytes) -> None:
    (folder / "ground_truth/crack/11_mask.png").write_bytes(damage)
    with pytest.raises(DataError, match=r"11_mask\.png: the mask cannot be read"):
        check_masks(read_folder(folder).tests(), "tiles")


def test_data_set_without_good_parts_says_so(tmp_path: Path) -> None:
    (tmp_path / "neu_det").mkdir()
    with pytest.raises(DataError, match="no good parts"):
        open_parts("neu_det", tmp_path)


def test_category_must_be_named_where_there_are_several(tmp_path: Path) -> None:
    (tmp_path / "mvtec_ad").mkdir()
    with pytest.raises(DataError, match="mvtec_ad/bottle"):
        open_parts("mvtec_ad", tmp_path)


def test_category_of_a_known_set_is_read(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(folder, tmp_path / "data/mvtec_ad/bottle")
    monkeypatch.setenv("LINEGATE_DATA", str(tmp_path / "data"))
    parts = open_parts("mvtec_ad/bottle")
    assert len(parts.goods()) == 4
    assert "CC BY-NC-SA" in parts.licence


def test_folds_hold_one_out_and_leave_other_defects_unused(tmp_path: Path) -> None:
    root = tmp_path / "kolektor_sdd"
    rows = ["image,label,mask,fold"]
    for index in range(9):
        label = "crack" if index % 3 == 2 else "good"
        picture(root / "images" / f"{index}.png")
        mask = f"masks/{index}.png" if label == "crack" else ""
        if mask:
            picture(root / mask, value=255)
        rows.append(f"images/{index}.png,{label},{mask},{index // 3}")
    (root / "folds.csv").write_text("\n".join(rows) + "\n")
    parts = open_parts("kolektor_sdd", tmp_path, fold=1)
    assert [sample.name for sample in parts.goods()] == [f"images/{index}.png" for index in (0, 1, 6, 7)]
    assert [sample.name for sample in parts.tests()] == [f"images/{index}.png" for index in (3, 4, 5)]
    assert parts.has_masks
    with pytest.raises(DataError, match="no fold 7: choose one of 0, 1, 2"):
        open_parts("kolektor_sdd", tmp_path, fold=7)


def test_elpv_has_its_fixed_split_with_uncertain_cells_left_out() -> None:
    parts = open_parts("elpv")
    assert len(parts.samples) == 2624
    assert len(parts.goods()) == 1108
    tests = parts.tests()
    assert sum(sample.defective for sample in tests) == 821
    assert sum(not sample.defective for sample in tests) == 400
    assert sum(sample.label == "uncertain" for sample in parts.samples) == 295
    assert parts == open_parts("elpv")


def test_elpv_package_is_whole() -> None:
    folder = fetching.local_copy("elpv", known_set("elpv"), None)
    assert check(folder, known_set("elpv")) == []


def test_elpv_is_laid_out_and_a_damaged_copy_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "fetch", "elpv", "--root", str(tmp_path)]) == 0
    assert "CC BY-NC-SA 4.0" in capsys.readouterr().out
    assert cli.main(["data", "verify", "elpv", "--root", str(tmp_path)]) == 0
    victim = next((tmp_path / "elpv/images").iterdir())
    victim.write_bytes(victim.read_bytes()[:-1])
    assert cli.main(["data", "verify", "elpv", "--root", str(tmp_path)]) == 1
    assert "not the publisher's" in capsys.readouterr().err
    victim.unlink()
    assert cli.main(["data", "fetch", "elpv", "--root", str(tmp_path)]) == 2
    assert "2624 files expected, 2623 found" in capsys.readouterr().err


def test_failed_download_says_what_to_place_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = known_set("visa")
    # A port of loopback on which nobody listens: what a line without a network sees, without waiting for one.
    source = DownloadSource(
        kind="download", page="https://example.org/visa", url="http://127.0.0.1:9/visa.tar", note="unpacked"
    )
    monkeypatch.setattr(fetching, "known_set", lambda name: known.model_copy(update={"source": source}))
    with pytest.raises(DataError) as caught:
        fetch("visa", tmp_path)
    text = str(caught.value)
    assert "could not be downloaded from http://127.0.0.1:9/visa.tar" in text
    assert f"get it from https://example.org/visa and place it as {tmp_path / 'visa'} (unpacked)" in text
    assert list(tmp_path.iterdir()) == []


def test_data_set_without_an_address_says_what_to_place_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(["data", "fetch", "magnetic_tile", "--root", str(tmp_path)], capsys)
    assert f"place it as {tmp_path / 'magnetic_tile'}" in line


def archive_source(folder: Path, tmp_path: Path, **more: Any) -> DownloadSource:
    archive = tmp_path / "tiles.tar.xz"
    with tarfile.open(archive, "w:xz") as packed:
        packed.add(folder, "tiles")
    return DownloadSource(kind="download", page="https://example.org", url=archive.as_uri(), **more)


def test_archive_is_fetched_and_unpacked(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = known_set("magnetic_tile").model_copy(update={"source": archive_source(folder, tmp_path)})
    monkeypatch.setattr(fetching, "known_set", lambda name: known)
    target = fetch("magnetic_tile", tmp_path / "data")
    assert len(read_folder(target).goods()) == 4
    assert [path.name for path in target.parent.iterdir()] == ["magnetic_tile"]


def test_archive_with_another_digest_is_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = known_set("magnetic_tile").model_copy(update={"source": archive_source(folder, tmp_path, sha256="0" * 64)})
    monkeypatch.setattr(fetching, "known_set", lambda name: known)
    with pytest.raises(DataError, match="SHA-256 differs"):
        fetch("magnetic_tile", tmp_path / "data")
    assert not (tmp_path / "data/magnetic_tile").exists()


def test_manifest_names_the_public_sets_and_is_closed_to_unknown_keys() -> None:
    assert {"elpv", "magnetic_tile", "kolektor_sdd", "neu_det", "mvtec_ad", "visa"} <= set(known_sets())
    values = yaml.safe_load(manifest_path().read_text(encoding="utf-8"))
    values["datasets"]["elpv"]["license"] = "x"
    with pytest.raises(SettingsError, match="did you mean 'licence'"):
        parse(values, DataManifest, "manifest")


def test_list_names_every_set_with_its_licence(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed.keys() == known_sets().keys()
    assert cli.main(["data", "list"]) == 0
    shown = capsys.readouterr().out
    assert all(entry.licence in shown for entry in known_sets().values())


def test_commands_are_registered_without_importing_what_only_training_has() -> None:
    heavy = ["torch", "torchvision", "timm", "sklearn", "scipy", "onnx", "tqdm", "yaml", "albumentations"]
    code = f"import sys; import linegate_training.cli; print([name for name in {heavy} if name in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_without_the_extra_a_command_names_the_install_line(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['yaml'] = None; sys.modules['torch'] = None\n"
        "from linegate import cli; sys.exit(cli.main(['data', 'list']))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert shown.returncode == 2
    assert "pip install 'linegate[training]'" in shown.stderr
    assert "Traceback" not in shown.stderr
