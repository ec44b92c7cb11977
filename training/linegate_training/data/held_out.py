"""A folder → the parts that a package may be calibrated on.

Rules kept here: `calibration/` where there is one, else `train/` less what the package has learned from, else the folder
itself, with `good/` and `<class>/` or images that are all good; of a data set version its train split; never `test/` or the
frozen test set, which are to stay untouched; every picture counts once, for a promise is about different parts.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from linegate.dataset_version import is_version
from linegate.errors import DataError
from linegate.images import IMAGE_SUFFIXES
from linegate.package import ModelPackage
from linegate_training.data.folder import PARTS
from linegate_training.data.parts import GOOD, UNCERTAIN, Sample, check_sizes, digest_of, sha256_of
from linegate_training.data.seen import digests_of_subset, learned_digests
from linegate_training.data.versions import read_version

LAYOUT = "calibration/good and calibration/<defect class>, or good/ and <defect class>/, or images of good parts alone"
_MEANT_GOOD = ("good", "ok", "okay", "normal", "pass")


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Parts to calibrate on, with what was left out of the folder.

    `digests` are the SHA-256 by name. `learned` parts were left out because the package learned from them, `repeated` ones
    because their bytes are those of another; `tests` of the parts are among the package's test parts. `checked` says that
    the package lists what it learned from.
    """

    name: str
    samples: tuple[Sample, ...]
    digests: dict[str, str]
    learned: int
    repeated: int
    tests: int
    checked: bool

    @property
    def digest(self) -> str:
        """One SHA-256 over the names and bytes of the parts."""
        return digest_of(self.digests.items())


def read_held_out(root: Path, package: ModelPackage) -> HeldOut:
    """Return the parts under `root` that `package` has not learned from.

    Raises:
        DataError: the folder holds no such parts, or holds them in a way that can be meant in two ways.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder: name one that holds {LAYOUT}")
    learned = learned_digests(package)
    if is_version(root):
        # Its frozen test set stays untouched, as test/ does.
        base, read = root, [sample for sample in read_version(root).samples if sample.subset == "train"]
        read = [sample for sample in read if sample.label != UNCERTAIN]
    else:
        base = _base(root, learned is not None)
        read = _samples(base, root)
    kept: dict[str, Sample] = {}
    repeated = 0
    left_out: list[Sample] = []
    for sample in read:
        digest = sha256_of(sample.path)
        if learned is not None and digest in learned:
            left_out.append(sample)
        elif digest in kept:
            if kept[digest].label != sample.label:
                raise DataError(f"{sample.path}: is the same image as {kept[digest].path}: remove it where it is wrong")
            repeated += 1
        else:
            kept[digest] = sample
    if not kept:
        known = f"all {len(left_out)} images in {base} are among those the package learned from: use parts that it has not seen"
        raise DataError(known if left_out else f"{base}: no images: put parts there as {LAYOUT}")
    samples = tuple(kept.values())
    check_sizes(samples, root.resolve().name)
    tests = len(digests_of_subset(package, ("test",)) & kept.keys())
    digests = {sample.name: digest for digest, sample in kept.items()}
    return HeldOut(_utf8(root.resolve().name), samples, digests, len(left_out), repeated, tests, learned is not None)


def _base(root: Path, knows_learned: bool) -> Path:
    if (root / "calibration").is_dir():
        return root / "calibration"
    if not any((root / part).is_dir() for part in PARTS):
        return root
    if not (root / "train").is_dir():
        raise DataError(
            f"{root}: test parts stay untouched, so none calibrate: put other parts into {root / 'calibration' / GOOD}"
        )
    if not knows_learned:
        said = "the package does not list what it learned from, so train/ cannot be used"
        raise DataError(f"{root}: {said}: put fresh parts into {root / 'calibration' / GOOD}")
    return root / "train"


def _samples(base: Path, root: Path) -> list[Sample]:
    loose = _images(base)
    folders = sorted(path for path in base.iterdir() if path.is_dir() and not path.name.startswith("."))
    classes = [folder for folder in folders if folder.name != UNCERTAIN and _images(folder)]
    if loose and classes:
        raise DataError(f"{base}: images both here and in {classes[0].name}/: put the good ones into {base / GOOD}")
    for folder in classes:
        if folder.name != GOOD and folder.name.lower() in _MEANT_GOOD:
            raise DataError(f"{folder}: would count as a class of defects: rename it to '{GOOD}' if its parts are good")
    labelled = [(path, GOOD) for path in loose] + [(path, folder.name) for folder in classes for path in _images(folder)]
    return [Sample(_utf8(path.relative_to(root).as_posix()), path, "calibration", _utf8(label)) for path, label in labelled]


def _images(folder: Path) -> list[Path]:
    found = (path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    return sorted(path for path in found if path.is_file() and not path.name.startswith("."))


def _utf8(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "backslashreplace")
