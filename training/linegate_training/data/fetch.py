"""Known data sets: where a copy lies, getting one, and checking one.

Rules kept here: nothing is downloaded unless asked for; an archive is checked before it is unpacked, and unpacked beside
its place; a download that fails says what to place where.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tarfile
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from linegate.dataset_version import is_version
from linegate.errors import DataError
from linegate_training.data.folder import read_folder
from linegate_training.data.layouts import read_boxes_layout, read_elpv, read_elpv_supervised, read_folds, with_items
from linegate_training.data.manifest import DownloadSource, KnownSet, PypiSource, known_set, known_sets
from linegate_training.data.parts import PartSet, Sample, digest_of, sha256_of
from linegate_training.data.versions import read_version

ROOT_VARIABLE = "LINEGATE_DATA"
TIMEOUT_S = 30.0
FOLDS_FILE = "folds.csv"


def open_parts(
    data: str, root: Path | None = None, fold: int | None = None, to_learn: bool = True, supervised: bool = False
) -> PartSet:
    """Return the data set `data`: a folder in the MVTec AD layout, a data set version, or the name of a known one.

    Not `to_learn`, a folder need have nothing but test parts. `supervised`, known sets give defective parts to learn from
    too, by a split of their own, and a folder with folds.csv at its top is read by fold where one is named.

    Raises:
        DataError: it is neither, no copy of it is here, or it is damaged.
    """
    if is_version(Path(data)):
        return read_version(Path(data), to_learn)
    # A fetched copy may lie right here under its own name and in its own layout.
    laid_out = any((Path(data) / part).is_dir() for part in ("train", "test"))
    if laid_out or (Path(data).is_dir() and data not in known_sets()):
        folder = Path(data)
        listed = (folder / FOLDS_FILE).is_file()
        if supervised and fold is not None and not listed:
            raise DataError(f"{folder}: no fold {fold}, for there is no {FOLDS_FILE} (image, label, fold): leave out --fold")
        if supervised and (fold is not None or (listed and not laid_out)):
            chosen = fold or 0
            words = f"by {FOLDS_FILE}; fold {chosen} is measured on, the others are learned from, but for groups that it has"
            found = tuple(read_folds(folder, chosen, True))
            return PartSet(folder.resolve().name, found, "not stated", "own images", split=words)
        return read_folder(folder, to_learn=to_learn, supervised=supervised)
    looks_like_path = data.startswith((".", "/", "~")) or data.count("/") > 1 or "\\" in data
    if looks_like_path:
        raise DataError(f"{data}: no such folder: name one in the MVTec AD layout, or a known set (linegate data list)")
    known = known_set(data)
    samples, words = _known_samples(data, known, local_copy(data, known, root), fold, to_learn, supervised)
    return PartSet(data, tuple(samples), known.licence, f"{known.title}, {known.home}", known.citation, words)


def _known_samples(
    data: str, known: KnownSet, folder: Path, fold: int | None, to_learn: bool, supervised: bool
) -> tuple[Sequence[Sample], str]:
    """Return the samples of a known set and, in words, its split."""
    split = known.split
    chosen = split.fold if fold is None else fold
    words = split.supervised if supervised and split.supervised else split.words
    if known.layout == "mvtec":
        category = data.partition("/")[2]
        if known.categories and category not in known.categories:
            raise DataError(f"{data}: choose one of its parts, as {data.split('/')[0]}/{known.categories[0]}")
        folder = folder / category if category else folder
        if supervised and (folder / FOLDS_FILE).is_file():
            return read_folds(folder, chosen, True, split.items), f"{words}; fold {chosen} is measured on"
        read = read_folder(folder, to_learn=to_learn, supervised=supervised)
        return with_items(read.samples, split.items), split.words
    if known.layout == "elpv":
        if supervised:
            return read_elpv_supervised(folder, split.supervised_test_share, split.seed), words
        return read_elpv(folder, split.test_good, split.seed), words
    if known.layout == "folds":
        return read_folds(folder, chosen, supervised, split.items), f"{words}; fold {chosen} is measured on"
    if known.layout == "boxes":
        if supervised or not to_learn:
            return read_boxes_layout(folder), words
        raise DataError(f"{data} cannot be trained on good parts: it has no good parts, so learn from its defects")
    reason = "convert it to the MVTec AD layout with its authors' script (prepare_data.py) and name the folder"
    raise DataError(f"{data} cannot be trained on good parts: {reason}")


def local_copy(name: str, known: KnownSet, root: Path | None) -> Path:
    """Return the folder that holds a copy: in `root`, else in $LINEGATE_DATA or here, else in a PyPI package.

    Raises:
        DataError: there is none, and the text says how to get one; or $LINEGATE_DATA names no folder.
    """
    base_name = name.split("/")[0]
    if root is not None:
        return _inside(root, base_name)
    base = Path(os.environ.get(ROOT_VARIABLE) or ".")
    here = base / base_name
    try:
        if not base.is_dir():
            raise DataError(f"{ROOT_VARIABLE} names no folder: {base}: set it to the folder that holds copies, or unset it")
        if here.is_dir():
            return here
    except PermissionError as error:
        raise DataError(f"{here}: cannot be looked into ({error.strerror}): name another {ROOT_VARIABLE}") from error
    if isinstance(known.source, PypiSource):
        return _package_folder(known.source, base_name)
    raise DataError(
        f"no copy of {base_name} here: linegate data fetch {base_name} --root DIR, then set {ROOT_VARIABLE}=DIR or --root DIR"
    )


def fetch(name: str, root: Path | None) -> Path:
    """Get a copy of a known data set into `root`/`name` and return that folder.

    Raises:
        DataError: it cannot be had; the text says what to place where.
    """
    known = known_set(name)
    stated = os.environ.get(ROOT_VARIABLE)
    base = root if root is not None else Path(stated or ".")
    named_by = "--root" if root is not None else ROOT_VARIABLE if stated else "the current folder"
    target = base / name
    try:
        if target.exists():
            problems = check(target, known)
            if not problems:
                return target
            raise DataError(f"{target}: is there but not whole ({problems[0]}): move it away and fetch again")
        if base.exists() and not base.is_dir():
            raise DataError(f"{named_by} names a file, not a folder: {base}: name a folder for copies of data sets")
        if not base.exists():
            base.mkdir(parents=True)
            print(f"note: {named_by}: made the folder {base.resolve()} for copies of data sets", file=sys.stderr)
        if isinstance(known.source, PypiSource):
            source = _package_folder(known.source, name)
            with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=base) as staging:
                shutil.copytree(source, Path(staging) / name)
                (Path(staging) / name).rename(target)
            return target
        return _download(name, known.source, base, target)
    except shutil.Error as error:
        raise DataError(f"{target}: cannot be copied ({error.args[0][0][2]}): mend it, or name another folder") from error
    except OSError as error:
        raise DataError(f"{named_by}: {base} cannot be written to ({error.strerror}): name another folder") from error


def check(folder: Path, known: KnownSet) -> list[str]:
    """Return what is wrong with a copy, nothing where it is whole."""
    if not folder.is_dir():
        return [f"{folder} is missing"]
    problems = []
    for pattern, count in known.expected.counts.items():
        found = sum(path.is_file() for path in folder.glob(pattern))
        if found != count:
            problems.append(f"{pattern}: {count} files expected, {found} found")
    for pattern, digest in known.expected.trees.items():
        files = [path for path in folder.glob(pattern) if path.is_file()]
        if digest_of((path.relative_to(folder).as_posix(), sha256_of(path)) for path in files) != digest:
            problems.append(f"{pattern}: one of {len(files)} files is not the publisher's")
    for name, digest in known.expected.digests.items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif sha256_of(path) != digest:
            problems.append(f"{name}: SHA-256 is not {digest[:12]}…")
    return problems


def _inside(root: Path, name: str) -> Path:
    """Return `root`/`name`, or `root` itself where that is the data set's own folder."""
    if (root / name).is_dir():
        return root / name
    if root.is_dir() and root.resolve().name == name:
        return root
    raise DataError(f"{root / name}: no such folder: place {name} there, or name another --root")


def _package_folder(source: PypiSource, name: str) -> Path:
    found = importlib.util.find_spec(source.module)
    if found is None or not found.submodule_search_locations:
        raise DataError(f"{name} comes with a PyPI package: pip install {source.package}")
    return Path(found.submodule_search_locations[0]) / source.path


def _download(name: str, source: DownloadSource, base: Path, target: Path) -> Path:
    place = f"get it from {source.page} and place it as {target}" + (f" ({source.note})" if source.note else "")
    if source.url is None:
        raise DataError(f"{name} has no address to download from: {place}")
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=base) as staging:
        archive = Path(staging) / source.url.rsplit("/", 1)[-1]
        try:
            _save(source.url, archive)
        except (urllib.error.URLError, OSError) as error:
            reason = getattr(error, "reason", error)
            raise DataError(f"{name} could not be downloaded from {source.url} ({reason}): {place}") from error
        if source.sha256 is not None and sha256_of(archive) != source.sha256:
            raise DataError(f"{name}: what {source.url} gives is not the expected file (SHA-256 differs): {place}")
        unpacked = Path(staging) / "unpacked"
        try:
            if zipfile.is_zipfile(archive):
                with zipfile.ZipFile(archive) as packed:
                    packed.extractall(unpacked)
            else:
                with tarfile.open(archive) as packed_tar:
                    _extract(packed_tar, unpacked)
        except (OSError, tarfile.TarError, zipfile.BadZipFile) as error:
            raise DataError(f"{name}: the archive from {source.url} cannot be unpacked ({error}): {place}") from error
        inner = list(unpacked.iterdir())
        (inner[0] if len(inner) == 1 and inner[0].is_dir() else unpacked).rename(target)
    return target


def _save(url: str, path: Path) -> None:
    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer, path.open("wb") as file:
        total = int(answer.headers.get("Content-Length") or 0) or None
        with tqdm(total=total, desc=path.name, unit="B", unit_scale=True, disable=None) as progress:
            while block := answer.read(1 << 20):
                file.write(block)
                progress.update(len(block))


def _extract(packed: tarfile.TarFile, folder: Path) -> None:
    """Unpack an archive, and refuse one with names that lead out of the folder.

    Raises:
        tarfile.TarError: there is such a name, or the archive is damaged.
    """
    if hasattr(tarfile, "data_filter"):
        packed.extractall(folder, filter="data")
        return
    # Python 3.11.0 to 3.11.3 have no filters: files and folders alone, each by its place.
    members = [member for member in packed if member.isfile() or member.isdir()]
    for member in members:
        if not (folder / member.name).resolve().is_relative_to(folder.resolve()):
            raise tarfile.TarError(f"'{member.name}' would be outside the destination")
    packed.extractall(folder, members)
