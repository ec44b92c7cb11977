"""Pictures kept as evidence: whole files, named by their content, within limits."""

from __future__ import annotations

import hashlib
import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest

from linegate.images import decode_image
from linegate.stages import Decision, Frame, FrameFault, PixelFormat, Reason
from linegate_edge.changes import Changes, NewVerdict
from linegate_edge.evidence import EvidenceFolder, Retention
from linegate_edge.settings import EvidenceSection
from linegate_edge.store import Store, StoreReader

NOW = datetime(2026, 6, 1, tzinfo=UTC)
PIXELS = np.random.default_rng(0).integers(0, 256, (32, 48), dtype=np.uint8)


def folder(path: Path, **limits: float) -> EvidenceFolder:
    return EvidenceFolder(path, EvidenceSection.model_validate({"min_free_mib": 0, **limits}))


def frame(encoded: bytes | None = None, pixels: np.ndarray = PIXELS) -> Frame:
    return Frame(pixels, PixelFormat.MONO8, "f", "c", "v", 1, NOW, encoded, "image/png" if encoded else None)


def test_a_camera_frame_is_kept_without_loss_under_its_digest(tmp_path: Path) -> None:
    evidence = folder(tmp_path)
    saved = evidence.save(frame())
    assert saved is not None
    data = evidence.path_of(saved.name).read_bytes()
    assert hashlib.sha256(data).hexdigest() == saved.sha256
    assert saved.name == f"{saved.sha256}.png"
    np.testing.assert_array_equal(decode_image(data)[0], PIXELS)


def test_bytes_that_came_encoded_are_kept_as_they_came(tmp_path: Path) -> None:
    evidence = folder(tmp_path)
    torn = FrameFault(Reason.IMAGE_TRUNCATED, "torn", "f", "c", "v", 1, NOW, b"\xff\xd8torn", "image/jpeg")
    for item, data in ((frame(b"as sent"), b"as sent"), (torn, b"\xff\xd8torn")):
        saved = evidence.save(item)
        assert saved is not None
        assert evidence.path_of(saved.name).read_bytes() == data
    nothing = FrameFault(Reason.QUEUE_FULL, "no bytes", "f", "c", "v", 1, NOW)
    assert evidence.save(nothing) is None


def test_the_same_picture_is_stored_once_and_nothing_is_left_half_written(tmp_path: Path) -> None:
    evidence = folder(tmp_path)
    assert evidence.save(frame()) == evidence.save(frame())
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 1
    (tmp_path / ".writing-abc").write_bytes(b"half")
    folder(tmp_path)
    assert not (tmp_path / ".writing-abc").exists()


def test_every_part_that_did_not_pass_is_kept_and_a_share_of_the_others(tmp_path: Path) -> None:
    evidence = folder(tmp_path, passed_share=0.25)
    ids = [str(uuid4()) for _ in range(4000)]
    assert all(evidence.wants(Decision.FAIL, item) and evidence.wants(Decision.UNDECIDED, item) for item in ids[:50])
    share = sum(evidence.wants(Decision.PASS, item) for item in ids) / len(ids)
    assert 0.2 < share < 0.3
    assert not any(folder(tmp_path, passed_share=0).wants(Decision.PASS, item) for item in ids)
    assert all(folder(tmp_path, passed_share=1).wants(Decision.PASS, item) for item in ids)


def test_a_folder_that_was_cleared_away_is_made_again(tmp_path: Path) -> None:
    evidence = folder(tmp_path / "evidence")
    (tmp_path / "evidence").rmdir()
    saved = evidence.save(frame())
    assert saved is not None
    assert evidence.path_of(saved.name).exists()


def test_free_space_for_verdicts_is_kept(tmp_path: Path) -> None:
    free_mib = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize // 2**20
    with pytest.raises(OSError, match="are kept for verdicts"):
        folder(tmp_path, min_free_mib=free_mib + 100_000).save(frame())


class Kept:
    """A store and its evidence folder, with one picture a verdict."""

    def __init__(self, path: Path, **limits: float) -> None:
        self.store, self.folder = Store(path, "a/b/c/d/e"), folder(path / "evidence", **limits)
        self.names: list[str] = []

    def add(self, decision: Decision, age_days: float, pixels: np.ndarray | None = None) -> str:
        if pixels is None:
            pixels = np.random.default_rng(len(self.names)).integers(0, 256, (32, 48), dtype=np.uint8)
        saved = self.folder.save(frame(pixels=pixels))
        assert saved is not None
        an_hour_ago = time.time() - 3600
        os.utime(self.folder.path_of(saved.name), (an_hour_ago, an_hour_ago))
        stored_at = (NOW - timedelta(days=age_days)).isoformat()
        new = NewVerdict(str(uuid4()), "s", decision, stored_at, lambda _: "{}", evidence=[saved])
        self.store.commit(Changes([new]))
        self.names.append(saved.name)
        return saved.name

    def prune(self) -> int:
        retention = Retention(
            self.folder, self.store.path, lambda numbers: self.store.commit(Changes(forgotten=numbers)) and None, lambda: NOW
        )
        return retention.prune()

    def there(self) -> list[str]:
        return [name for name in self.names if self.folder.path_of(name).exists()]


def test_old_evidence_goes_and_its_verdict_stays(tmp_path: Path) -> None:
    kept = Kept(tmp_path, retention_days=30)
    old, new = kept.add(Decision.FAIL, 31), kept.add(Decision.FAIL, 29)
    assert kept.prune() == 1
    assert kept.there() == [new]
    reader = StoreReader(kept.store.path)
    assert reader.verdict_count() == 2
    assert (reader.evidence(old), reader.evidence(new)) == (None, "image/png")
    assert kept.prune() == 0


def test_over_its_size_the_oldest_of_passed_parts_goes_first(tmp_path: Path) -> None:
    kept = Kept(tmp_path, max_gib=4_000 / 2**30)
    failed = kept.add(Decision.FAIL, 9)
    passed = [kept.add(Decision.PASS, age) for age in (8, 7, 6, 5)]
    kept.prune()
    there = kept.there()
    assert there[0] == failed, "the oldest, and of a part that failed: it stays while a passed one can go"
    assert there[1:] == passed[-len(there[1:]) :] != passed
    total = sum(kept.folder.path_of(name).stat().st_size for name in there)
    assert total <= 4_000


def test_a_picture_shared_with_a_failed_part_does_not_go_as_a_passed_one(tmp_path: Path) -> None:
    kept = Kept(tmp_path, max_gib=1 / 2**30)
    shared = kept.add(Decision.PASS, 9, PIXELS)
    kept.add(Decision.FAIL, 8, PIXELS)
    reader = StoreReader(kept.store.path)
    assert reader.oldest_evidence(passed=True, limit=10) == []
    assert [row.name for row in reader.oldest_evidence(passed=False, limit=10)] == [shared]


def test_a_picture_of_two_verdicts_goes_with_the_last_of_them(tmp_path: Path) -> None:
    kept = Kept(tmp_path, retention_days=30)
    shared = kept.add(Decision.FAIL, 40, PIXELS)
    kept.add(Decision.FAIL, 10, PIXELS)
    assert kept.prune() == 1
    assert kept.there() == [shared, shared], "one verdict still has it"
    assert StoreReader(kept.store.path).evidence_count(shared) == 1
    both = Kept(tmp_path / "both", retention_days=5)
    for age in (40, 10):
        both.add(Decision.FAIL, age, PIXELS)
    assert both.prune() == 2
    assert both.there() == []


def test_a_picture_wanted_again_just_now_is_not_deleted_before_its_verdict_is_stored(tmp_path: Path) -> None:
    kept = Kept(tmp_path, retention_days=30)
    name = kept.add(Decision.FAIL, 40, PIXELS)
    kept.folder.save(frame())  # the same picture again; its verdict is on its way to the store
    assert kept.prune() == 0
    assert kept.there() == [name]


def test_a_file_that_is_gone_already_does_not_stop_retention(tmp_path: Path) -> None:
    kept = Kept(tmp_path, retention_days=1)
    name = kept.add(Decision.PASS, 5)
    kept.folder.path_of(name).unlink()
    assert kept.prune() == 1
    assert StoreReader(kept.store.path).evidence(name) is None
