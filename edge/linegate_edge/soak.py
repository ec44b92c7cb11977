"""`linegate soak`: a station under faults for as long as you like, and then an exact account.

Parts come by two cameras while broker, station, camera and frames are broken at random, by seed. At the end everything is
left in peace until the outbox is empty; then parts = verdicts = received must hold, part by part, or the exit status is 1.
What can only be broken from inside the process (a model that hangs, a clock that is set, power loss) is in the tests.
"""

from __future__ import annotations

import json
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from linegate.errors import SettingsError, StationError
from linegate.images import encode_png
from linegate.package import ModelPackage
from linegate.stages import PixelFormat
from linegate_edge.soak_world import TOPIC, Broker, FolderCamera, Mes, OwnDisk, Process, PushCamera, free_port, station_process
from linegate_edge.store import DATABASE_FILE, StoreReader

_SETTLE_TIMEOUT_S: Final = 120.0
_SHORT_S, _LONGEST_S = 6.0, 180.0
_DISK_FULL: Final = "disk full"


@dataclass(frozen=True, slots=True)
class _World:
    broker: Broker
    station: Process
    push: PushCamera
    folder: FolderCamera
    disk: OwnDisk
    rest: Callable[[float], None]
    longest_s: float
    pace: random.Random


def run_soak(
    model: Path, *, minutes: float, parts_per_second: float, seed: int, as_json: bool, faults: Sequence[str] = ()
) -> int:
    """Run the soak, print the account, and return the exit status; `faults` are those of `FAULTS` to choose from, or all.

    Raises:
        SettingsError: there is no such fault.
        LinegateError: the package cannot be read, there is no Mosquitto, or broker or station do not start.
    """
    unknown = sorted(set(faults) - FAULTS.keys())
    if unknown:
        raise SettingsError(f"--fault {unknown[0]!r}: there is no such fault; there are: {', '.join(sorted(FAULTS))}")
    package = ModelPackage.load(model)
    pictures = [encode_png(pixels, PixelFormat.RGB8) for pixels in package.parity_samples.pixels]
    with tempfile.TemporaryDirectory(prefix="linegate-soak-") as name:
        folder = Path(name)
        broker = Broker(folder / "broker")
        disk = OwnDisk(folder / "var")
        left_out = {_DISK_FULL: disk.why_not} if disk.why_not is not None else {}
        port = free_port()
        settings = folder / "STATION.toml"
        settings.write_text(
            f'[station]\ntopic = "{TOPIC}"\n[model]\npackage = "{model.absolute()}"\n[http]\nport = {port}\n'
            f"[mqtt]\nport = {broker.port}\nbackoff_max_s = 1.0\nack_timeout_s = 3.0\n[evidence]\nmin_free_mib = 0\n"
            f'[[source]]\nkind = "folder"\npath = "frames"\nsettle_ms = 0\n',
            encoding="utf-8",
        )
        station = station_process(settings, folder / "station.log", port)
        pause_s = 2 / parts_per_second  # two cameras
        push = PushCamera(port, pictures, pause_s)
        camera = FolderCamera(folder / "frames", pictures, pause_s)
        broker.start()
        mes = Mes(broker.port)
        try:
            station.start()
            push.start()
            camera.start()
            longest_s = min(_LONGEST_S, max(_SHORT_S, minutes * 60 / 20))
            world = _World(broker, station, push, camera, disk, time.sleep, longest_s, random.Random(seed))
            broken = _break_things(world, sorted(set(faults or FAULTS) - left_out.keys()), minutes, as_json)
            push.stop()
            camera.stop()
            push.join()
            camera.join()
            store = folder / "var" / DATABASE_FILE
            _settle(store, mes, len(push.answers) + len(camera.serials))
            status = station.end(30)
            account = _account(store, mes, push, camera)
        finally:
            mes.close()
            station.kill()
            broker.kill()
            disk.close()
    account |= {"faults": dict(broken), "left_out": left_out, "station_exit_status": status, "minutes": minutes, "seed": seed}
    account["exact"] = account["exact"] and status == 0
    _print(account, as_json)
    return 0 if account["exact"] else 1


def _break_things(world: _World, faults: Sequence[str], minutes: float, quiet: bool) -> Counter[str]:
    """Break one thing after another until the time is up; each kind comes before any comes again."""
    ends_at = time.monotonic() + minutes * 60
    done: Counter[str] = Counter()
    kinds: list[str] = []
    while (rest_s := ends_at - time.monotonic()) > 0:
        world.rest(min(rest_s, world.pace.uniform(0.2, 2.0)))
        kinds = kinds or world.pace.sample(faults, len(faults))
        kind = kinds.pop()
        if not quiet:
            print(f"{rest_s:6.0f} s left  {len(world.push.answers) + len(world.folder.serials):>8} parts  {kind}")
        FAULTS[kind](world)
        done[kind] += 1
    return done


def _kill_station(world: _World) -> None:
    world.station.kill()
    world.station.start()


def _kill_broker(world: _World) -> None:
    world.broker.kill()
    world.rest(world.pace.uniform(0.0, 1.0))
    world.broker.start()


def _freeze_broker(world: _World) -> None:
    """Let the broker accept connections and say nothing, as behind a network that swallows packets."""
    world.broker.send(signal.SIGSTOP)
    world.rest(world.pace.uniform(1.0, world.longest_s))
    world.broker.send(signal.SIGCONT)


def _take_broker_away(world: _World) -> None:
    """Let a backlog grow, which must then go out in order."""
    world.broker.kill()
    world.rest(world.pace.uniform(1.0, world.longest_s))
    world.broker.start()


def _fill_disk(world: _World) -> None:
    world.disk.fill()
    world.rest(world.pace.uniform(1.0, 4.0))
    world.disk.clear()


def _lock_out(world: _World) -> None:
    """Let the broker answer "not authorised" for a while."""
    world.broker.kill()
    world.broker.allow(False)
    world.broker.start()
    world.rest(world.pace.uniform(1.0, 3.0))
    world.broker.kill()
    world.broker.allow(True)
    world.broker.start()


def _lose_broker_state(world: _World) -> None:
    world.rest(0.5)  # what the broker has acknowledged must be able to reach the MES: nobody else has it
    world.broker.kill()
    world.broker.lose_state()
    world.broker.start()


def _unplug_camera(world: _World) -> None:
    world.folder.unplugged(world.pace.uniform(0.5, 3.0), world.rest)


def _tear_frames(world: _World) -> None:
    world.push.torn.set()
    world.rest(world.pace.uniform(0.5, 2.0))
    world.push.torn.clear()


def _freeze_station(world: _World) -> None:
    """Let the station stand still, as under a machine that has no time for it."""
    world.station.send(signal.SIGSTOP)
    world.rest(world.pace.uniform(0.5, 3.0))
    world.station.send(signal.SIGCONT)


FAULTS: Final[dict[str, Callable[[_World], None]]] = {
    "station killed": _kill_station,
    "station frozen": _freeze_station,
    "broker killed": _kill_broker,
    "broker away": _take_broker_away,
    "broker frozen": _freeze_broker,
    _DISK_FULL: _fill_disk,
    "broker not authorised": _lock_out,
    "broker state lost": _lose_broker_state,
    "camera unplugged": _unplug_camera,
    "frames torn": _tear_frames,
}


def _settle(store: Path, mes: Mes, parts: int) -> None:
    """Wait until every part is stored and heard of.

    Raises:
        StationError: that does not come to pass.
    """
    deadline = time.monotonic() + _SETTLE_TIMEOUT_S
    reader = StoreReader(store)
    try:
        while reader.verdict_count() < parts or reader.outbox_count() or len(mes.received) < parts:
            if time.monotonic() > deadline:
                text = f"{parts} parts, {reader.verdict_count()} stored, {reader.outbox_count()} in the outbox, "
                text += f"{len(mes.received)} received"
                raise StationError(f"the station did not settle within {_SETTLE_TIMEOUT_S:g} s: {text}")
            time.sleep(0.1)
    finally:
        reader.close()


def _account(store: Path, mes: Mes, push: PushCamera, camera: FolderCamera) -> dict[str, Any]:
    """Return the numbers of parts, verdicts and messages, and whether they agree part by part."""
    reader = StoreReader(store)
    try:
        stored: dict[str, str] = {}
        doubled: list[str] = []
        rows = list(reader.verdict_rows())
        for _, verdict_id, serial in rows:
            if serial in stored:
                doubled.append(serial)
            stored[serial] = verdict_id
    finally:
        reader.close()
    sent = set(push.answers) | set(camera.serials)
    wrong = list(push.wrong)
    wrong += [f"{serial}: sent, and has no verdict" for serial in sorted(sent - stored.keys())]
    wrong += [f"{serial}: has a verdict, and was never sent" for serial in sorted(stored.keys() - sent)]
    wrong += [f"{serial}: has two verdicts" for serial in doubled]
    wrong += [
        f"{serial}: the camera was told another verdict"
        for serial, verdict_id in push.answers.items()
        if stored.get(serial) != verdict_id
    ]
    received = mes.received
    wrong += [f"{serial}: the MES never heard of it" for serial, key in stored.items() if key not in received]
    wrong += [f"{key}: the MES has a verdict that is not stored" for key in received - set(stored.values())]
    if not [row[0] for row in rows] == list(range(1, len(rows) + 1)) == sorted(mes.sequences):
        wrong.append("the sequence has a gap")
    return {
        "parts": len(sent),
        "verdicts": len(rows),
        "received": len(received),
        "duplicates": mes.duplicates,
        "wrong": wrong[:20],
        "exact": not wrong,
    }


def _print(account: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(account))
        return
    print(f"{account['parts']} parts = {account['verdicts']} verdicts = {account['received']} received: ", end="")
    print("exact" if account["exact"] else "NOT EXACT", f"({account['duplicates']} messages came twice)")
    for kind, count in sorted(account["faults"].items()):
        print(f"  {kind:<24} {count}")
    for kind, why in account["left_out"].items():
        print(f"  {kind:<24} left out: {why}")
    for line in account["wrong"]:
        print(f"  {line}")
