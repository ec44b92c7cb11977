"""One station, put together from its settings, started and stopped in order.

Rules kept here: what is wrong with the settings, the package, the store or the port is told before anything starts; a
camera or a broker that is missing does not keep the station from starting; it stops from the front to the back, so that
each part in hand still gets its verdict.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal
from uuid import uuid4

import cv2

from linegate import __version__
from linegate.errors import SettingsError, StationError, StoreError
from linegate.stages import FrameFault, Reason
from linegate_edge.dispatch import Dispatch
from linegate_edge.evidence import EvidenceFolder, Retention
from linegate_edge.line import Line
from linegate_edge.live import Live
from linegate_edge.message import SCHEMA_VERSION, StateMessage, utc_now
from linegate_edge.metrics import Metrics
from linegate_edge.operate import KEPT_RECIPE, Operate
from linegate_edge.plc_settings import ModbusTrigger
from linegate_edge.process_times import process_age_s
from linegate_edge.publish import Publisher
from linegate_edge.recipes import LoadedRecipe, RecipeBook
from linegate_edge.reload import reload_station
from linegate_edge.review.access.access import Access
from linegate_edge.review.app import create_app
from linegate_edge.review.commands import add_commands
from linegate_edge.review.database import REVIEWS_FILE
from linegate_edge.review.dataset_routes import add_datasets
from linegate_edge.review.models.room import ModelRoom
from linegate_edge.review.models.routes import add_models
from linegate_edge.review.recipe_log import note_recipes
from linegate_edge.review.reviews import Reviews
from linegate_edge.review.server import HttpServer
from linegate_edge.service_manager import ServiceManager
from linegate_edge.settings import StationSettings
from linegate_edge.sources.camera import CameraMissingError
from linegate_edge.sources.make import make_camera
from linegate_edge.store import Store, StoreReader

if TYPE_CHECKING:
    from linegate_edge.plc import Plc

log = logging.getLogger("linegate.station")
_TICK_S: Final = 0.5


class Station:
    """One inspection point; `note` is shown on its page.

    Raises:
        PackageError, ProviderError: the model cannot be used here.
        StationError: the store is in use or not to be opened, or the HTTP port is taken.
    """

    def __init__(self, settings: StationSettings, note: str = "") -> None:
        self.settings = settings
        # The workers fill the cores already; OpenCV's own threads would only get in their way.
        cv2.setNumThreads(1)
        self.boot_id = str(uuid4())
        topic, folder = settings.station.topic, settings.station.store
        # A station without a store has no promotions: its settings are proved before anything is made.
        book = None if (folder / REVIEWS_FILE).exists() else RecipeBook(settings)
        with contextlib.ExitStack() as undo:
            self._store = Store(folder, topic)
            undo.callback(self._store.close)
            self.reviews = Reviews(folder, settings.review)
            undo.callback(self.reviews.close)
            self.models = ModelRoom(settings, self.reviews, lambda: self.line.workers.waiting > 0)
            self.book = book or RecipeBook(settings, overrides=self.models.promotions.overrides())
            self._restore_recipe()
            self.access = Access(self.reviews.database, self.reviews.trail, settings.access)
            self._evidence = EvidenceFolder(folder / "evidence", settings.evidence)
            self.metrics = Metrics()
            self.live = Live(topic, self.boot_id, "", "", note)
            self._name_packages()
            self.line = Line(
                settings,
                self.book,
                self._store,
                self._evidence,
                self.live,
                self.metrics,
                workers=settings.model.workers or os.cpu_count() or 1,
                on_commit=self._wake_publisher,
                plant_codes=settings.plant_codes,
                trigger_cameras=self._trigger_cameras,
                on_replay=lambda first, last: self.publisher.replayed(first, last),
                shadow=self.models.shadow,
            )
            self.operate = Operate(self.line, self._store, self._set_running_cameras)
            self.dispatch = Dispatch(
                self.operate, topic, self.boot_id, self.metrics, lambda confirmed: self.publisher.confirm(confirmed)
            )
            self.publisher = Publisher(
                settings.mqtt,
                topic,
                self._store.path,
                acknowledge=self.line.writer.acknowledge,
                state=self._state_message,
                live=self.live,
                metrics=self.metrics,
                take_command=self.dispatch.take,
            )
            self._retention = Retention(self._evidence, self._store.path, self.line.writer.forget_evidence, utc_now)
            self._reader = StoreReader(self._store.path)
            undo.callback(self._reader.close)
            self._reader_lock = threading.Lock()
            self.cameras = [
                make_camera(
                    source,
                    self.line.submit,
                    self.metrics,
                    knows_origin=self._knows_origin,
                    boot_id=self.boot_id,
                    next_trigger=lambda: self.line.next_number,
                    max_pixels=self._max_pixels,
                )
                for source in settings.source
            ]
            self._check_exposures()
            self._set_running_cameras()
            self._plc = self._make_plc()
            app = create_app(
                live=self.live,
                line=self.line,
                metrics=self.metrics,
                store_path=self._store.path,
                evidence=self._evidence,
                max_pixels=self._max_pixels,
                max_upload_bytes=int(settings.http.max_upload_mib * 2**20),
                ready=self.not_ready,
                settings=settings,
                reviews=self.reviews,
                class_names=self._class_names,
                access=self.access,
                host_names=settings.http.names,
            )
            add_commands(app, self.dispatch.take)
            self.models.open(self.book, self._name_packages)
            add_models(app, self.models)
            add_datasets(app, self.reviews, self._evidence, settings)
            self.metrics.outbox_pending.set_function(self.outbox_pending)
            self.metrics.disk_free_bytes.set_function(self._free_bytes)
            self._http = HttpServer(app, settings.http.host, settings.http.port)
            self._configured: dict[str, tuple[float | None, float | None]] = {}
            self._started = self._stopped = False
            undo.pop_all()

    @property
    def http_port(self) -> int:
        """The port of the page; it is known from the start, also where the settings say 0."""
        return self._http.port

    @property
    def address(self) -> str:
        """The address of the page."""
        return f"http://{self.settings.http.host}:{self.http_port}/"

    @property
    def _max_pixels(self) -> int:
        return int(self.settings.limits.max_megapixels * 1e6)

    def not_ready(self) -> str | None:
        """Return in one line why the station cannot judge parts now, or None."""
        if not self.line.alive:
            return "the line's threads do not run"
        if self.live.line_stop is not None:
            return f"line stop: {self.live.line_stop}"
        if self._plc is not None and self._plc.problem is not None:
            return f"PLC: {self._plc.problem}"
        missing = [f"camera {camera.camera}: {camera.problem}" for camera in self.cameras if camera.problem is not None]
        return "; ".join(missing) or None

    def start(self) -> None:
        """Start the line, then who publishes, then who brings parts."""
        self._started = True
        self.access.users.add_first_admin()
        self.line.start()
        self.dispatch.start()
        self.publisher.start()
        self._retention.start()
        self.reviews.start()
        self._http.start()
        for camera in self.cameras:
            camera.start()
        if self._plc is not None:
            self._plc.start()
        log.info("station %s: %s on %s, page at %s", self.live.station, self.live.package, self.live.provider, self.address)

    def stop(self) -> int:
        """Finish the parts in hand, publish what the broker takes, and return how many could not be stored.

        A station that was never started, or has stopped already, is only let go.
        """
        if self._stopped:
            return 0
        self._stopped = True
        unstored = self._stop_threads() if self._started else 0
        with self._reader_lock:
            self._reader.close()
        self.models.close()
        self.reviews.close()
        self._store.close()
        return unstored

    def _stop_threads(self) -> int:
        timeout_s = self.settings.limits.stop_timeout_s
        for camera in self.cameras:
            camera.stop()
        for camera in self.cameras:
            camera.join(timeout_s)
        self._http.stop(timeout_s)
        self._retention.stop()
        self.reviews.stop()
        self.dispatch.stop()
        unstored = self.line.stop(timeout_s)
        if self._plc is not None:
            self._plc.stop()
            self._plc.join(timeout_s)
        self.publisher.stop()
        self.line.writer.settle()
        if unstored:
            log.error("%d parts in hand could not be stored and have no verdict", unstored)
        log.info("station %s: stopped after verdict %d", self.live.station, self._store.last_sequence)
        return unstored

    def apply(self, settings: StationSettings) -> None:
        """Put settings in force from the next part on; they differ from those in force by what `reload.LIVE` names.

        Raises:
            LinegateError: they cannot be used; nothing was changed.
        """
        self.book.reload(settings)
        self.models.reloaded()
        self._set_running_cameras()
        self.line.health.use(settings.health)
        self.line.writer.plant_codes = settings.plant_codes
        self._evidence.settings = settings.evidence
        self.settings = settings

    def run(self, settings_path: Path) -> int:
        """Run until SIGTERM or Ctrl-C, and return the exit status; SIGHUP reads the settings again."""
        asked, again = threading.Event(), threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: asked.set())
        signal.signal(signal.SIGHUP, lambda *_: again.set())
        with contextlib.closing(ServiceManager()) as manager:
            self.start()
            manager.ready()
            log.info("ready %.2f s after the process started", process_age_s())
            died = False
            while not asked.wait(_TICK_S):
                if not self.line.alive:
                    log.critical("a thread of the line has ended; stopping, so that the service manager starts anew")
                    died = True
                    break
                if again.is_set():
                    again.clear()
                    manager.reloading()
                    reload_station(settings_path, self)
                    manager.ready()
                manager.feed(self.line.alive, self.line.writer.turns)
                manager.show(self.not_ready() or f"ready, last verdict {self._store.last_sequence}")
            manager.stopping()
            return 1 if self.stop() or died else 0

    def _name_packages(self) -> None:
        """Show which packages judge, after each change, and have the trail tell of it."""
        try:
            note_recipes(self.reviews.database, self.reviews.trail, self.book.recipes)
        except StoreError as error:  # the line goes on: its verdicts carry the package and the threshold themselves
            log.error("the audit trail does not know what judges now: %s", error)
        inspectors = self.book.inspectors
        self.metrics.package_info.clear()
        for inspector in inspectors:
            manifest, digest = inspector.package.manifest, inspector.package.digest
            self.metrics.package_info.labels(manifest.name, manifest.version, digest, inspector.provider).set(1)
        self.live.use_package(", ".join(inspector.package.reference for inspector in inspectors), inspectors[0].provider)

    def _restore_recipe(self) -> None:
        """Put the recipe in force that was when the station ended, where it still has it."""
        kept = self._store.value(KEPT_RECIPE)
        if kept is not None and kept in self.book.recipes:
            self.book.choose(kept)
        elif kept is not None:
            log.warning("recipe '%s' was in force and is no more: going on with '%s'", kept, self.book.active.name)

    def _check_exposures(self) -> None:
        """Refuse exposure or gain for a camera that Linegate cannot set: the verdict would rest on a setting that is none.

        Raises:
            SettingsError: a recipe asks for one.
        """
        for recipe in self.book.recipes.values():
            for name, view in recipe.views.items():
                fixed = [camera.camera for camera in self.cameras if camera.view == name and not camera.settable]
                if fixed and (view.exposure_us is not None or view.gain_db is not None):
                    mend = "take exposure_us and gain_db out, or use kind = 'aravis' or 'genicam'"
                    raise SettingsError(
                        f"recipe '{recipe.name}' sets view '{name}', but camera {fixed[0]} cannot be set: {mend}"
                    )

    def _set_running_cameras(self) -> None:
        """Set the cameras in free run for the recipe in force; those that are triggered are set with each part."""
        for camera in self.cameras:
            view = self.book.active.views.get(camera.view)
            if view is not None and camera.trigger_mode == "free_run" and camera.settable:
                camera.configure(view.exposure_us, view.gain_db)

    def _trigger_cameras(self, recipe: LoadedRecipe, key: str) -> list[FrameFault]:
        """Set the cameras of a recipe and have them take a frame for `key`; return a fault for each that is not there."""
        faults = []
        for camera in self.cameras:
            view = recipe.views.get(camera.view)
            if view is None or camera.trigger_mode == "free_run":
                continue
            wanted = view.exposure_us, view.gain_db
            try:
                if self._configured.get(camera.camera) != wanted:
                    camera.configure(*wanted)
                    self._configured[camera.camera] = wanted
                if camera.trigger_mode == "software":
                    camera.trigger(key)
            except CameraMissingError as error:
                faults.append(
                    FrameFault(Reason.CAMERA_MISSING, str(error), str(uuid4()), camera.camera, camera.view, 0, utc_now())
                )
        return faults

    def _class_names(self) -> list[str]:
        """Return the plant's defect classes, then those that the packages in service find, in their order."""
        found = (name for known in self.book.inspectors for name in known.package.manifest.labels[1:])
        return list(dict.fromkeys([*self.settings.review.classes, *found]))

    def _wake_publisher(self) -> None:
        self.publisher.wake()

    def _state_message(self, state: Literal["online", "stopped", "lost"]) -> StateMessage:
        triggers, verdicts = self.live.triggers_and_verdicts
        return StateMessage(
            schema_version=SCHEMA_VERSION,
            station=self.live.station,
            boot_id=self.boot_id,
            state=state,
            at=utc_now(),
            software_version=__version__,
            package=self.live.package,
            recipe=self.book.active.name,
            recipe_digest=self.book.active.digest,
            mode=self.line.mode,
            running=self.line.running,
            triggers=triggers,
            verdicts=verdicts,
            last_sequence=self._store.last_sequence,
            outbox_pending=self.outbox_pending(),
            no_subscriber=self.live.broker.no_subscriber,
            line_stop=self.live.line_stop,
        )

    def outbox_pending(self) -> int:
        """Return how many verdicts the broker has not acknowledged yet."""
        with self._reader_lock:
            return self._reader.outbox_count()

    def _free_bytes(self) -> float:
        try:
            return self._evidence.free_bytes()
        except OSError:  # the folder is gone: one missing number must not hide all others
            return float("nan")

    def _knows_origin(self, origin: str) -> bool:
        with self._reader_lock:
            return self._reader.recorded(origin) is not None

    def _make_plc(self) -> Plc | None:
        if not isinstance(self.settings.trigger, ModbusTrigger):
            return None
        from linegate_edge.plc import Plc  # pymodbus takes its time, and most stations have no PLC

        return Plc(
            self.settings.trigger,
            self.line,
            self.metrics,
            knows_origin=self._knows_origin,
            line_stop=lambda: self.live.line_stop,
            alive=lambda: self.line.alive,
        )


def run_station(path: Path, settings: StationSettings) -> int:
    """Run the station that a STATION.toml describes; `path` is where its settings were read, and are read again.

    Raises:
        LinegateError: it cannot start; the text says why in one line.
    """
    station = Station(settings)
    try:
        return station.run(path)
    except OSError as error:
        raise StationError(f"{path}: the station broke down: {error}") from error
