"""The shelf: every package that was ever brought to this station, each under the digest of its content.

    <models>/<digest>/package/          the package's very files
                      comparison.json   how it did beside the champion, where that was measured
                      differences/      pictures of the parts on which they differ

Rules kept here: what stands on the shelf was whole, and gave its own scores on this machine, when it was put there; it appears
by rename, after fsync, or not at all; names that come from outside are only ever looked up. Who brought it, and what becomes of
it, is left to `register` and `promotion`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from pydantic import ValidationError

from linegate.comparison import COMPARISON_FILE, DIFFERENCES, Comparison
from linegate.errors import LinegateError, PackageError
from linegate.infer import Inspector
from linegate.package import CARD_FILE, Manifest, ModelPackage
from linegate.settings import describe
from linegate_edge.durable import sync_folder
from linegate_edge.review.models.contents import PACKAGE_FOLDER, PICTURE_NAME, Contents, read_contents

_STAGING: Final = ".importing-"
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A package on the shelf; `comparison_digest` is the SHA-256 of its comparison, "" where it has none."""

    digest: str
    location: Path
    manifest: Manifest
    card: str
    comparison: Comparison | None
    comparison_digest: str

    @property
    def reference(self) -> str:
        """Name, version and the first 12 digits of the digest."""
        return f"{self.manifest.name} {self.manifest.version} ({self.digest[:12]})"


class Shelf:
    """The packages in `folder`; `provider` runs their proof. All methods may be called from any thread."""

    def __init__(self, folder: Path, provider: str = "auto", max_bytes: int = 1 << 28) -> None:
        self.folder, self._provider, self._max_bytes = folder, provider, max_bytes
        self._lock = threading.Lock()
        self._known: dict[str, tuple[tuple[int, ...], Candidate]] = {}

    def tidy(self) -> None:
        """Remove what an import left that was killed; only the owner of the store may call it."""
        for left in self.folder.glob(f"{_STAGING}*"):
            shutil.rmtree(left, ignore_errors=True)

    @contextlib.contextmanager
    def room_to_receive(self) -> Iterator[Path]:
        """Lend a folder on the shelf's own disk for what is on its way.

        Raises:
            PackageError: there is none to be had.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(prefix=_STAGING, dir=self.folder))
        except OSError as error:
            raise PackageError(f"{self.folder}: no package can be kept here: {error.strerror}") from error
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def put(self, source: Path, called: str | None = None) -> Candidate:
        """Bring a package folder, a run's folder, or a zip of either; `called` names it in errors.

        A package that is here already stays, and takes a newer comparison.

        Raises:
            PackageError: it is damaged, of another schema, too large, or does not give its own scores here.
            ProviderError: it cannot run here.
        """
        contents = read_contents(source, self._max_bytes, called)
        with self._lock:
            staging = self._stage(contents)
            try:
                package = ModelPackage.load(staging / PACKAGE_FOLDER)
                if contents.comparison is not None:
                    read_comparison(contents.comparison, package.digest)
                quietly(lambda: Inspector(package, self._provider))
                self._place(staging, package.digest, replaces=contents.comparison is not None)
            except LinegateError as error:
                text = str(error).replace(str(staging / PACKAGE_FOLDER), called or str(source))
                raise type(error)(text) from error
            except OSError as error:
                raise PackageError(f"{self.folder}: the package cannot be kept: {error.strerror}") from error
            finally:
                shutil.rmtree(staging, ignore_errors=True)
        found = self.find(package.digest)
        assert found is not None
        return found

    def find(self, digest: str) -> Candidate | None:
        """Return what is on the shelf under a digest, or None; its bytes are checked when it is put to use.

        Raises:
            PackageError: it stands there and is damaged.
        """
        if not _DIGEST.fullmatch(digest):
            return None
        home = self.folder / digest
        marks = tuple(_mark(home / name) for name in (PACKAGE_FOLDER, COMPARISON_FILE))
        if not marks[0]:
            return None
        kept = self._known.get(digest)
        if kept is not None and kept[0] == marks:
            return kept[1]
        package = ModelPackage.load(home / PACKAGE_FOLDER)
        if package.digest != digest:
            raise PackageError(f"{home}: holds {package.reference} by now: remove it, and import the package again")
        raw = (home / COMPARISON_FILE).read_bytes() if marks[1] else None
        candidate = Candidate(
            digest,
            home / PACKAGE_FOLDER,
            package.manifest,
            package.files[CARD_FILE].decode(errors="replace"),
            None if raw is None else read_comparison(raw, digest),
            "" if raw is None else hashlib.sha256(raw).hexdigest(),
        )
        self._known[digest] = marks, candidate
        return candidate

    def location(self, digest: str) -> Path:
        """Return where the package of a digest lies, or would lie."""
        return self.folder / digest / PACKAGE_FOLDER

    def comparison(self, digest: str) -> bytes | None:
        """Return the JSON of a candidate's comparison, or None."""
        path = self.folder / digest / COMPARISON_FILE
        return path.read_bytes() if _DIGEST.fullmatch(digest) and path.is_file() else None

    def pictures(self, digest: str) -> Mapping[str, Path]:
        """Return the pictures of a candidate's differences by name."""
        folder = self.folder / digest / DIFFERENCES
        if not _DIGEST.fullmatch(digest) or not folder.is_dir():
            return {}
        return {path.name: path for path in sorted(folder.iterdir()) if PICTURE_NAME.fullmatch(path.name)}

    def _stage(self, contents: Contents) -> Path:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            staging = Path(tempfile.mkdtemp(prefix=_STAGING, dir=self.folder))
            try:
                for inner in (PACKAGE_FOLDER, DIFFERENCES):
                    (staging / inner).mkdir()
                for name, data in contents.package.items():
                    _write(staging / PACKAGE_FOLDER / name, data)
                for name, data in contents.pictures.items():
                    _write(staging / DIFFERENCES / name, data)
                if contents.comparison is not None:
                    _write(staging / COMPARISON_FILE, contents.comparison)
                for folder in (staging / PACKAGE_FOLDER, staging):
                    sync_folder(folder)
            except BaseException:
                shutil.rmtree(staging, ignore_errors=True)
                raise
        except OSError as error:
            raise PackageError(f"{self.folder}: the package cannot be kept: {error.strerror}") from error
        return staging

    def _place(self, staging: Path, digest: str, *, replaces: bool) -> None:
        target = self.folder / digest
        if target.exists() and not replaces and _is_whole(target / PACKAGE_FOLDER, digest):
            return
        retired = staging.with_name(staging.name + "-old")
        if target.exists():
            target.rename(retired)
        staging.rename(target)
        sync_folder(self.folder)
        shutil.rmtree(retired, ignore_errors=True)


def read_comparison(raw: bytes, digest: str) -> Comparison:
    """Return the comparison in the bytes of a file, which must speak of the package of this digest.

    Raises:
        PackageError: it is none that this Linegate reads, or one of another package.
    """
    try:
        comparison = Comparison.model_validate_json(raw)
    except ValidationError as error:
        raise PackageError(f"{COMPARISON_FILE}: {describe(error, Comparison)}: compare the packages again") from error
    if comparison.candidate is not None and comparison.candidate.digest != digest:
        text = f"speaks of package {comparison.candidate.digest[:12]}, not of {digest[:12]}: bring each with its own"
        raise PackageError(f"{COMPARISON_FILE} {text}")
    return comparison


def quietly(work: Callable[[], T]) -> T:
    """Do work on a thread of low priority, so that the line keeps its cores, and return what it gives."""
    outcome: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
        try:
            outcome.append(work())
        except BaseException as error:  # noqa: BLE001 - raised again by who waits
            failure.append(error)

    thread = threading.Thread(target=run, name="quiet", daemon=True)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]


def _is_whole(location: Path, digest: str) -> bool:
    try:
        return ModelPackage.load(location).digest == digest
    except PackageError:
        return False


def _mark(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
