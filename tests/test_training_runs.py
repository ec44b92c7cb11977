"""Training runs: processes of their own that the station starts, finds again, ends, and whose end it tells."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import MakeStation, signed_in, submit, wait_until
from linegate.errors import StationError
from linegate.package import ModelPackage
from linegate_edge.review.audit import AuditTrail, verify
from linegate_edge.review.database import ReviewDatabase
from linegate_edge.review.dataset_versions import build_version
from linegate_edge.review.models.run_record import (
    OUT_FOLDER,
    RunRecord,
    is_alive,
    read_log,
    read_progress,
    read_record,
    write_record,
)
from linegate_edge.review.models.training_runs import NOT_INSTALLED, TrainingRuns
from models_world import ANNA, MIA, NO_BROKER, write_run
from simulators.reviews import reviewed

SCRIPT = """
import json, os, pathlib, shutil, signal, sys, time
arguments = dict(zip(sys.argv[2:-1], sys.argv[3:]))
version, behaviour = pathlib.Path(sys.argv[1]), json.loads((pathlib.Path(sys.argv[1]) / "behaviour.json").read_text())
out, progress = pathlib.Path(arguments["--out"]), pathlib.Path(arguments["--progress"])
def tell(step, share, text=""):
    with progress.open("a") as file:
        file.write(json.dumps({"at": "2026-11-24T08:00:00Z", "step": step, "share": share, "text": text}) + "\\n")
tell("learn", 0.25, "epoch 1 of 4")
print("priority", os.getpriority(os.PRIO_PROCESS, 0), "session", os.getsid(0) == os.getpid(), flush=True)
print(json.dumps(sys.argv[1:]), flush=True)
if behaviour.get("deaf"):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if behaviour.get("waits"):
    print("waiting", flush=True)
    while not (version / "go").exists():
        time.sleep(0.02)
if "dies" in behaviour:
    print("linegate: " + behaviour["dies"], file=sys.stderr, flush=True)
    os._exit(2)
shutil.copytree(behaviour["result"], out)
tell("done", 1.0, "go")
"""


class Site:
    """A store with a data set version, a champion, and a script that stands for a training."""

    def __init__(self, folder: Path, champion: Path) -> None:
        self.folder, self.champion = folder, champion
        self.store = folder / "var"
        self.script = folder / "training.py"
        self.script.write_text(SCRIPT)
        self.version = folder / "datasets" / "tiles-v1"
        self.version.mkdir(parents=True)
        self.database = ReviewDatabase(self.store)
        self.trail = AuditTrail(self.database)
        self.runs = self.make()

    def make(self) -> TrainingRuns:
        return TrainingRuns(self.store, self.trail, command=(sys.executable, str(self.script)), grace_s=0.3)

    def behave(self, **behaviour: object) -> None:
        (self.version / "behaviour.json").write_text(json.dumps({"result": str(self.folder / "result"), **behaviour}))

    def start(self) -> RunRecord:
        champion = ModelPackage.load(self.champion)
        return self.runs.start(
            MIA, self.version, self.champion, champion.reference, champion.digest, {"seed": 7, "instant": True}
        )

    def state(self, number: int = 1) -> str:
        return self.runs.find(number).state

    @property
    def out(self) -> Path:
        """What the first run has made."""
        return self.runs.folder_of(1) / OUT_FOLDER

    def log(self, number: int = 1) -> list[str]:
        return read_log(self.runs.folder_of(number), 50)

    def said(self, text: str, number: int = 1) -> bool:
        return any(text in line for line in self.log(number))


@pytest.fixture
def site(tmp_path: Path, spot_package: Path) -> Iterator[Site]:
    made = Site(tmp_path, spot_package)
    yield made
    for record in made.runs.listed():
        if is_alive(record):
            os.killpg(record.pid, signal.SIGKILL)
    made.database.close()


def test_there_are_no_runs_at_first(site: Site) -> None:
    assert site.runs.listed() == []
    with pytest.raises(LookupError, match="no training run 1"):
        site.runs.find(1)


def test_a_run_that_ends_well_is_done_and_has_its_package(site: Site) -> None:
    write_run(site.folder / "result", ModelPackage.load(site.champion), threshold=0.5)
    for name in ("checkpoint.pt", ".checkpoint.pt.part", "trained.pt"):
        (site.folder / "result" / name).write_bytes(b"tensors")
    site.behave()
    site.start()
    wait_until(lambda: site.state() == "done", what="the end")
    wait_until(lambda: not (site.out / "checkpoint.pt").exists(), what="room on the disk")
    assert [path.name for path in site.out.glob("*.pt*")] == ["trained.pt"]
    assert (site.out / "comparison.json").is_file()
    record = site.runs.find(1)
    assert (record.exit_status, record.by, record.problem) == (0, "mia", None)
    progress = read_progress(site.runs.folder_of(1))
    assert progress is not None
    assert (progress.step, progress.share) == ("done", 1.0)
    wait_until(lambda: [line.action for line in site.trail.lines()] == ["training.end", "training.start"], what="the trail")
    assert verify(site.store).problem is None


def test_a_run_has_the_lowest_priority_a_session_of_its_own_and_no_shell(site: Site) -> None:
    odd = site.version.with_name("tiles; touch x && $(id)")
    site.version.rename(odd)
    site.version = odd
    site.behave(waits=True)
    site.start()
    wait_until(lambda: site.said("waiting"), what="the script")
    record = site.runs.find(1)
    assert os.getpriority(os.PRIO_PROCESS, record.pid) == 19
    assert "session True" in site.log()[0]
    arguments = json.loads(site.log()[1])
    assert arguments[0] == str(odd)
    assert arguments[-2:] == ["--seed=7", "--instant"]


def test_a_run_that_fails_tells_its_last_line(site: Site) -> None:
    site.behave(dies="the version has no defective parts")
    site.start()
    wait_until(lambda: site.state() == "failed", what="the end")
    problem = site.runs.find(1).problem
    assert problem == "ended with status 2; its last line: linegate: the version has no defective parts"


def test_a_run_that_is_killed_is_told_as_failed(site: Site) -> None:
    site.behave(waits=True)
    record = site.start()
    wait_until(lambda: site.said("waiting"), what="the script")
    os.kill(record.pid, signal.SIGKILL)
    wait_until(lambda: site.state() == "failed", what="the end")
    problem = site.runs.find(1).problem
    assert problem == "ended by SIGKILL, by a lack of memory perhaps; its last line: waiting"


def test_one_run_at_a_time(site: Site) -> None:
    site.behave(waits=True)
    site.start()
    with pytest.raises(StationError, match="training run 1 is at work"):
        site.start()
    assert [run.number for run in site.runs.listed()] == [1]


@pytest.mark.parametrize("deaf", [False, True])
def test_a_run_can_be_cancelled_though_it_does_not_listen(site: Site, deaf: bool) -> None:
    site.behave(waits=True, deaf=deaf)
    site.start()
    wait_until(lambda: site.said("waiting"), what="the script")
    site.runs.cancel(ANNA, 1)
    wait_until(lambda: site.state() == "cancelled", what="the end")
    assert site.runs.find(1).cancelled_by == "anna"
    with pytest.raises(StationError, match="has ended already"):
        site.runs.cancel(ANNA, 1)
    site.behave(dies="at once")
    assert site.start().number == 2


def test_a_run_that_goes_on_is_found_again_after_a_restart(site: Site) -> None:
    write_run(site.folder / "result", ModelPackage.load(site.champion), threshold=0.5)
    site.behave(waits=True)
    site.start()
    wait_until(lambda: site.said("waiting"), what="the script")
    again = site.make()
    assert again.find(1).state == "running"
    with pytest.raises(StationError, match="at work"):
        again.start(MIA, site.version, site.champion, "spots", "0" * 64, {})
    (site.version / "go").touch()
    wait_until(lambda: again.find(1).state == "done", what="the end")


def test_a_run_that_died_with_the_station_is_told_as_failed(site: Site) -> None:
    site.behave(dies="no memory")
    site.start()
    wait_until(lambda: site.state() == "failed", what="the end")
    folder = site.runs.folder_of(1)
    record = site.runs.find(1)
    # As the file was while it ran, and as it is found by a station that was not there at the end.
    write_record(folder, record.model_copy(update={"state": "running", "problem": None, "ended_at": None}))
    found = site.make().find(1)
    assert found.state == "failed"
    assert found.problem == "died while the station was not there; its last line: linegate: no memory"


def test_another_process_with_the_same_number_is_not_taken_for_the_run_and_not_ended(site: Site) -> None:
    site.behave(dies="at once")
    site.start()
    wait_until(lambda: site.state() == "failed", what="the end")
    folder = site.runs.folder_of(1)
    record = site.runs.find(1)
    write_record(folder, record.model_copy(update={"state": "running", "pid": os.getpid(), "process_started": 1}))
    again = site.make()
    assert again.find(1).state == "failed"
    with pytest.raises(StationError, match="has ended already"):
        again.cancel(ANNA, 1)


def test_torn_files_of_a_run_break_nothing(site: Site) -> None:
    site.behave(dies="at once")
    site.start()
    wait_until(lambda: site.state() == "failed", what="the end")
    folder = site.runs.folder_of(1)
    (folder / "progress.jsonl").write_text('{"at": "now", "step": "learn", "share": 0.5}\n{"at": "no')
    progress = read_progress(folder)
    assert progress is not None
    assert progress.share == 0.5
    (folder / "log.txt").write_bytes(b"\xff\xfe\n 10 %\r 20 %\n")
    assert read_log(folder, 1) == [" 20 %"]
    (folder / "run.json").write_text("{")
    assert read_record(folder) is None
    assert site.runs.listed() == []


def test_without_the_training_package_one_line_says_how_to_train_elsewhere(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("linegate_edge.review.models.training_runs.why_no_training", lambda: NOT_INSTALLED)
    with pytest.raises(StationError, match="run `linegate retrain` there"):
        TrainingRuns(site.store, site.trail).start(MIA, site.version, site.champion, "spots", "0" * 64, {})
    assert "\n" not in NOT_INSTALLED


def test_the_api_starts_shows_cancels_and_brings_the_package(
    tmp_path: Path, spot_package: Path, make_station: MakeStation
) -> None:
    station = make_station(NO_BROKER)
    script = tmp_path / "training.py"
    script.write_text(SCRIPT)
    station.models.runs._command = (sys.executable, str(script))
    version = tmp_path / "datasets" / "tiles-v1"
    version.mkdir(parents=True)
    (version / "version.json").write_text("{}")
    package = write_run(tmp_path / "result", ModelPackage.load(spot_package), threshold=0.5)
    (version / "behaviour.json").write_text(json.dumps({"waits": True, "result": str(tmp_path / "result")}))
    with signed_in(station, "root", "admin") as client:
        assert client.post("/api/v1/training", json={"version": "../x"}).status_code == 404
        assert client.get("/api/v1/datasets").json()["broken"] != []
        started = client.post("/api/v1/training", json={"version": "tiles-v1"})
        assert started.status_code == 201, started.text
        early = client.post("/api/v1/models", json={"run": 1})
        assert (early.status_code, early.json()["error"]) == (409, "training run 1 is running, and has no package to bring")
        (version / "go").touch()
        wait_until(lambda: client.get("/api/v1/training/1").json()["run"]["state"] == "done", what="the end")
        run = client.get("/api/v1/training/1").json()
        assert (run["gate"]["go"], run["candidate_digest"], run["on_shelf"]) == (True, package.digest, False)
        assert client.post("/api/v1/training/1/cancel").status_code == 409
        brought = client.post("/api/v1/models", json={"run": 1})
        assert brought.status_code == 201, brought.text
        assert brought.json()["comparison"]["gate"]["go"] is True
        assert client.get("/api/v1/training").json()["items"][0]["on_shelf"] is True
        picture = client.get(f"/api/v1/models/{package.digest}/differences/0001-crack.jpg")
        assert (picture.status_code, picture.headers["content-type"]) == (200, "image/jpeg")
        assert client.get(f"/api/v1/models/{package.digest}/differences/..%2fcomparison.json").status_code == 404
        assert client.get(f"/api/v1/models/{package.digest}/card").text.startswith("# spots")


def test_a_zip_is_uploaded_and_one_that_is_too_large_is_not(
    tmp_path: Path, spot_package: Path, make_station: MakeStation
) -> None:
    from models_world import zip_of

    station = make_station(NO_BROKER, more="[evidence]\nmin_free_mib = 0\n[review]\nmax_package_mib = 1\n")
    write_run(tmp_path / "result", ModelPackage.load(spot_package), threshold=0.5)
    data = zip_of(tmp_path / "result", tmp_path / "run.zip").read_bytes()
    headers = {"Content-Type": "application/zip"}
    with signed_in(station, "root", "admin") as client:
        brought = client.post("/api/v1/models", content=data, headers=headers)
        assert brought.status_code == 201, brought.text
        large = client.post("/api/v1/models", content=os.urandom(1 << 20) + data, headers=headers)
        torn = client.post("/api/v1/models", content=data[:-100], headers=headers)
        other = client.post("/api/v1/models", content=b"x", headers={"Content-Type": "text/plain"})
    assert [answer.status_code for answer in (large, torn, other)] == [413, 422, 415]
    assert torn.json()["error"].startswith("upload: neither a package folder nor a whole zip")
    assert [path for path in (tmp_path / "models").iterdir() if path.name.startswith(".")] == []


def test_a_real_retraining_becomes_a_candidate_on_the_shelf(
    tmp_path: Path, spot_package: Path, make_station: MakeStation
) -> None:
    reviews = [reviewed(tmp_path / "evidence", seed) for seed in range(0, 60, 2)]
    version = build_version(reviews, tmp_path / "datasets", name="goods", created_by="ada", test_share=0.3)
    station = make_station(NO_BROKER)
    wanted = {"version": version.folder.name, "options": {"instant": True, "threads": 1, "seed": 3}}
    with signed_in(station, "root", "admin") as client:
        assert [item["number"] for item in client.get("/api/v1/datasets").json()["items"]] == [1]
        started = client.post("/api/v1/training", json=wanted)
        assert started.status_code == 201, started.text
        ended = {"done", "failed", "cancelled"}
        wait_until(lambda: client.get("/api/v1/training/1").json()["run"]["state"] in ended, timeout_s=240, what="the end")
        run = client.get("/api/v1/training/1").json()
        assert (run["run"]["state"], run["run"]["exit_status"]) == ("done", 1), run
        assert run["progress"]["step"] == "done"
        assert not run["gate"]["go"]  # good parts alone: nothing can be told of escapes
        brought = client.post("/api/v1/models", json={"run": 1})
        assert brought.status_code == 201, brought.text
        model = brought.json()
        assert (model["digest"], model["trained_by"]) == (run["candidate_digest"], "root")
        assert model["comparison"]["gate"] == run["gate"]
        place = {"recipe": "default", "view": "main"}
        assert client.post(f"/api/v1/models/{model['digest']}/approve", json={}).status_code == 200
        refused = client.post(f"/api/v1/models/{model['digest']}/promote", json=place)
        assert (refused.status_code, "the gate said no-go" in refused.json()["error"]) == (409, True)
        reason = {"override_reason": "the line has no defects yet"}
        promoted = client.post(f"/api/v1/models/{model['digest']}/promote", json={**place, **reason})
        assert promoted.status_code == 200, promoted.text
    assert submit(station, 1)[0].result(20).message["provenance"]["package_digest"] == model["digest"]
