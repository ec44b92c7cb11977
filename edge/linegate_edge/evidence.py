"""Pictures kept as evidence: files named by the SHA-256 of their bytes.

Rules kept here: a file appears whole or not at all (temporary name, fsync, rename); free disk space is kept for the
verdicts, which matter more; what must go goes oldest first, pictures of passed parts before all others. Which verdict a
picture belongs to is the store's to know.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from linegate.errors import StationError
from linegate.images import SUFFIX_OF_MEDIA_TYPE, encode_jpeg, encode_png
from linegate.stages import Decision, Frame, FrameFault
from linegate_edge.durable import sync_folder
from linegate_edge.records import Evidence
from linegate_edge.settings import EvidenceSection
from linegate_edge.store import StoredEvidence, StoreReader

log = logging.getLogger("linegate.evidence")
_TEMPORARY_PREFIX: Final = ".writing-"
_PRUNE_BATCH: Final = 200
_FRESH_S: Final = 60.0


class EvidenceFolder:
    """The folder of evidence files of one station; `save` may be called from several threads.

    Who only reads beside the station says that the folder is not `owned`, and leaves alone what the station is writing.
    """

    def __init__(self, folder: Path, settings: EvidenceSection, owned: bool = True) -> None:
        self.folder = folder
        self.settings = settings
        self._lock = threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for leftover in folder.glob(f"{_TEMPORARY_PREFIX}*") if owned else ():
                leftover.unlink(missing_ok=True)
        except OSError as error:
            raise StationError(f"{folder}: the evidence folder cannot be used: {error.strerror}") from error

    def wants(self, decision: Decision, verdict_id: str) -> bool:
        """Say whether the frame of a part is to be kept; of passed parts a share, chosen by their random id."""
        if decision is not Decision.PASS:
            return True
        return int(verdict_id[:8], 16) < self.settings.passed_share * 2**32

    def save(self, item: Frame | FrameFault) -> Evidence | None:
        """Write the picture of a frame, or the bytes of a faulty one as they came, and return what was written.

        None where the fault brought no bytes.

        Raises:
            OSError: the disk is full, or fuller than the settings allow.
        """
        if item.encoded is not None:
            data, media_type = item.encoded, item.media_type or "application/octet-stream"
        elif isinstance(item, Frame):
            data, media_type = self._encode(item)
        else:
            return None
        self.folder.mkdir(parents=True, exist_ok=True)  # somebody may have cleared it away
        free_mib = self.free_bytes() / 2**20
        if free_mib < self.settings.min_free_mib:
            text = f"{free_mib:.0f} MiB free, {self.settings.min_free_mib} MiB are kept for verdicts"
            raise OSError(28, text, str(self.folder))
        digest = hashlib.sha256(data).hexdigest()
        name = digest + SUFFIX_OF_MEDIA_TYPE.get(media_type, ".bin")
        self._write(name, data)
        return Evidence(digest, name, media_type, len(data))

    def _encode(self, frame: Frame) -> tuple[bytes, str]:
        if self.settings.format == "jpeg":
            return encode_jpeg(frame.image, frame.pixel_format, self.settings.jpeg_quality), "image/jpeg"
        return encode_png(frame.image, frame.pixel_format), "image/png"

    def _write(self, name: str, data: bytes) -> None:
        target = self.path_of(name)
        with self._lock:
            if target.exists():
                os.utime(target)  # wanted again: retention keeps its hands off until the new verdict is stored
                return
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=_TEMPORARY_PREFIX, dir=self.folder)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)  # noqa: PTH105 - one system call, no Path needed
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        sync_folder(target.parent)

    def remove(self, name: str) -> bool:
        """Delete a file unless it was written or wanted again just now; return whether it is gone."""
        target = self.path_of(name)
        with self._lock:
            try:
                if time.time() - target.stat().st_mtime < _FRESH_S:
                    return False
                target.unlink()
            except FileNotFoundError:
                pass
        return True

    def path_of(self, name: str) -> Path:
        """Return where the file of this name lies; 256 folders, since some file systems are slow with many files."""
        return self.folder / name[:2] / name

    def free_bytes(self) -> int:
        """Return the free space of the disk that holds the folder."""
        return shutil.disk_usage(self.folder).free


class Retention(threading.Thread):
    """Deletes evidence that is too old, too much, or in the way of the free space that verdicts need.

    Files go first and their rows after, through `forget`, which the store's writer serves: a crash between leaves rows
    that the next round finds again.
    """

    def __init__(
        self,
        folder: EvidenceFolder,
        store_path: Path,
        forget: Callable[[Sequence[int]], None],
        now: Callable[[], datetime],
        interval_s: float = 60.0,
    ) -> None:
        super().__init__(name="retention", daemon=True)
        self._folder, self._store_path, self._forget, self._now = folder, store_path, forget, now
        self._interval_s = interval_s
        self._stopping = threading.Event()

    def run(self) -> None:
        """Prune now and then until `stop`."""
        while not self._stopping.is_set():
            try:
                self.prune()
            except Exception:
                log.exception("evidence could not be pruned; trying again in %g s", self._interval_s)
            self._stopping.wait(self._interval_s)

    def stop(self) -> None:
        """End the thread after the round in hand."""
        self._stopping.set()
        if self.is_alive():
            self.join()

    def prune(self) -> int:
        """Delete what the limits ask for, and return how many files went."""
        reader = StoreReader(self._store_path)
        try:
            return self._prune(reader)
        finally:
            reader.close()

    def _prune(self, reader: StoreReader) -> int:
        settings = self._folder.settings
        too_old = (self._now() - timedelta(days=settings.retention_days)).isoformat()
        excess = max(
            reader.evidence_size_bytes() - int(settings.max_gib * 2**30),
            settings.min_free_mib * 2**20 - self._folder.free_bytes(),
        )
        count = 0
        for passed in (True, False):
            after, enough = 0, False
            while not enough and (rows := reader.oldest_evidence(passed=passed, after=after, limit=_PRUNE_BATCH)):
                gone: list[StoredEvidence] = []
                for row in rows:
                    enough = row.stored_at >= too_old and excess <= 0
                    if enough:
                        break
                    # A picture that other verdicts share stays for them; then only this verdict's row goes.
                    shared = reader.evidence_count(row.name) - sum(other.name == row.name for other in gone) > 1
                    if shared or self._folder.remove(row.name):
                        gone.append(row)
                        excess -= 0 if shared else row.size_bytes
                self._forget([row.sequence for row in gone])
                count += len(gone)
                after = rows[-1].sequence
        if count:
            log.info("retention: evidence of %d verdicts deleted", count)
        return count
