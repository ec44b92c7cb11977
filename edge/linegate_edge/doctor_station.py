"""What a STATION.toml names, looked at from this machine: package, store, files, cameras, broker, PLC, ports.

Rules kept here: the station need not run, and is not disturbed where it does; each thing that is missing is named with the
setting that names it. Disk and broker have modules of their own.
"""

from __future__ import annotations

import fcntl
import functools
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from linegate.errors import AccessError, PackageError, ProviderError, SettingsError, StoreError
from linegate.infer import Inspector
from linegate.package import ModelPackage
from linegate_edge.access_settings import AccessSection
from linegate_edge.doctor import guarded
from linegate_edge.doctor_broker import broker_findings
from linegate_edge.doctor_disk import disk_findings
from linegate_edge.findings import Finding, fail, ok, warn
from linegate_edge.plant_codes import check_plant_codes
from linegate_edge.plc_settings import ModbusTrigger
from linegate_edge.review.access.oidc import Provider
from linegate_edge.review.models.promotion import promoted
from linegate_edge.review.models.shelf import Shelf
from linegate_edge.settings import FolderSource, HttpSection, OpenCVSource, StationSettings
from linegate_edge.store import LOCK_FILE

_REACH_TIMEOUT_S: Final = 3.0
_SECRETS: Final = ("password_file", "key_file", "oidc_client_secret_file")
_ROLL_BACK: Final = "; or undo its promotion: linegate model list, linegate model roll-back"
_PUT_BACK: Final = f"put the promoted package back{_ROLL_BACK}"
_PORTS: Final = {"rtsp": 554, "rtsps": 322, "http": 80, "https": 443}


def station_findings(settings: StationSettings) -> Iterator[Finding]:
    """Yield what was found of all that the settings name."""
    running = is_running(settings.station.store)
    yield ok("station", "runs" if running else "does not run")
    checks = {
        "package": functools.partial(package_findings, settings),
        "disk": functools.partial(disk_findings, settings.station.store, settings.evidence),
        "files": functools.partial(file_findings, settings),
        "camera": functools.partial(camera_findings, settings),
        "plc": functools.partial(plc_findings, settings),
        "broker": functools.partial(broker_findings, settings.mqtt, settings.station.topic, running=running),
        "login": functools.partial(login_findings, settings.access),
        "port": functools.partial(port_findings, settings.http, running=running),
    }
    for name, check in checks.items():
        yield from guarded(name, check)


def is_running(store: Path) -> bool:
    """Say whether a station holds the store at this moment."""
    try:
        descriptor = os.open(store / LOCK_FILE, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def package_findings(settings: StationSettings) -> Iterator[Finding]:
    """Yield whether each model package is whole and computes here what it did where it was made, and finds what has codes.

    Looked at are those that a station judges with that starts now: a promoted one in the place of that which the settings name.
    """
    try:
        packages, promoted_ones = _served(settings)
    except StoreError as error:
        yield fail("package", str(error), "look at the store's disk: which packages were promoted is not known")
        return
    classes: set[str] = set()
    whole = True
    for location in packages:
        try:
            package = ModelPackage.load(location)
            inspector = Inspector(package, settings.model.provider, settings.model.threads_per_worker)
        except (PackageError, ProviderError) as error:
            mend = "copy the package anew, or choose another [model] provider"
            yield fail("package", str(error), f"{mend}{_ROLL_BACK if location in promoted_ones else ''}")
            whole = False
            continue
        if promoted_ones.get(location, package.digest) != package.digest:
            yield fail("package", f"{location} is {package.reference}, promoted was {promoted_ones[location][:12]}", _PUT_BACK)
            whole = False
            continue
        classes.update(package.manifest.labels[1:])
        how = "was promoted, is whole" if location in promoted_ones else "is whole"
        what = f"{package.reference} {how}, and proved on {inspector.provider}"
        yield ok("package", f"{what}: scores differ by {inspector.parity_difference:.2g} at most")
    if whole and settings.plant_codes:
        try:
            check_plant_codes(settings.plant_codes, classes)
            yield ok("plant codes", f"for {len(settings.plant_codes)} of {len(classes)} defect classes that the packages find")
        except SettingsError as error:
            yield fail("plant codes", str(error), "write the class as the package's card does")


def _served(settings: StationSettings) -> tuple[list[Path], dict[Path, str]]:
    """Return where the packages lie that a station would judge with, and the digests of those that were promoted."""
    shelf = Shelf(settings.models_folder)
    places = {(name, view): own.package for name, recipe in settings.all_recipes.items() for view, own in recipe.views.items()}
    digests = {}
    for row in promoted(settings.station.store):
        if row.place != "station" and (row.recipe, row.view) in places:
            location = shelf.location(row.package_digest)
            places[row.recipe, row.view] = location
            digests[location] = row.package_digest
    return list(dict.fromkeys(places.values())), digests


def login_findings(settings: AccessSection) -> Iterator[Finding]:
    """Yield whether the plant's identity provider answers, where logins go by one; nobody is logged in."""
    if settings.oidc_issuer is None:
        yield ok("login", "users are the station's own: no [access] oidc_issuer")
        return
    try:
        keys = Provider(settings).probe()
    except (AccessError, SettingsError) as error:
        yield fail(
            "login", str(error), "check [access] oidc_issuer and oidc_ca_file, DNS and firewall; its own users still log in"
        )
        return
    if keys == 0:
        yield fail(
            "login", f"{settings.oidc_issuer} names no key of RS256 or ES256", "have the provider sign with one of these"
        )
    else:
        yield ok("login", f"{settings.oidc_issuer} answers, and has {keys} keys to sign with")


def file_findings(settings: StationSettings) -> Iterator[Finding]:
    """Yield whether the files that `[mqtt]` and `[access]` name can be read, and secrets by nobody else."""
    for name, section in (("mqtt", settings.mqtt), ("access", settings.access)):
        for key in type(section).model_fields:
            path = getattr(section, key)
            if isinstance(path, Path):
                yield judge_file(f"[{name}] {key}", path, secret=key in _SECRETS)


def judge_file(name: str, path: Path, *, secret: bool) -> Finding:
    """Judge a file that the settings name."""
    try:
        with path.open("rb"):
            mode = path.stat().st_mode
    except OSError as error:
        return fail("files", f"{name} {path}: cannot be read: {error.strerror}", f"let user {os.geteuid()} read it")
    if secret and mode & (stat.S_IROTH | stat.S_IWOTH):
        return warn("files", f"{name} {path}: everybody may read it", f"chmod o-rw {path}")
    return ok("files", f"{name} {path} can be read")


def camera_findings(settings: StationSettings) -> Iterator[Finding]:
    """Yield whether folders, devices and addresses of the sources are there; an address is connected to, no more."""
    if not settings.source:
        yield ok("camera", "no [[source]]: frames come by POST /frames")
    for source in settings.source:
        if isinstance(source, FolderSource):
            yield judge_folder(source.camera, source.path)
        elif isinstance(source, OpenCVSource):
            yield _look_at_address(source.camera, source.address)
        else:
            yield ok("camera", f"{source.camera}: of a kind that is looked at when the station starts")


def judge_folder(camera: str, path: Path) -> Finding:
    """Judge a folder that serves as a camera."""
    if not path.is_dir():
        return fail("camera", f"{camera}: no such folder: {path}", "make it, or mend [[source]] path")
    if not os.access(path, os.R_OK | os.X_OK):
        return fail("camera", f"{camera}: {path} may not be read", f"let user {os.geteuid()} read it")
    return ok("camera", f"{camera}: folder {path}")


def _look_at_address(camera: str, address: str) -> Finding:
    if "://" in address:
        parts = urlsplit(address)
        return _reach("camera", camera, parts.hostname or "", parts.port or _PORTS.get(parts.scheme, 80), "[[source]] address")
    device = Path(f"/dev/video{address}") if address.isdigit() else Path(address)
    if not device.exists():
        return fail("camera", f"{camera}: {device} is not there", "check cable and [[source]] address")
    is_device = stat.S_ISCHR(device.stat().st_mode)
    if not os.access(device, os.R_OK | (os.W_OK if is_device else 0)):
        mend = "add the station's user to group video" if is_device else f"let user {os.geteuid()} read it"
        return fail("camera", f"{camera}: {device} may not be opened", mend)
    return ok("camera", f"{camera}: {device}")


def plc_findings(settings: StationSettings) -> Iterator[Finding]:
    """Yield whether the PLC takes a connection, where one triggers the station."""
    if isinstance(settings.trigger, ModbusTrigger):
        yield _reach("plc", "PLC", settings.trigger.host, settings.trigger.port, "[trigger] host and port")


def _reach(check: str, name: str, host: str, port: int, setting: str) -> Finding:
    try:
        socket.create_connection((host, port), _REACH_TIMEOUT_S).close()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        return fail(check, f"{name}: {host}:{port} cannot be reached: {reason}", f"check {setting}, cable and firewall")
    return ok(check, f"{name}: {host}:{port} takes a connection")


def port_findings(settings: HttpSection, *, running: bool) -> Iterator[Finding]:
    """Yield whether the page's port is free, or this station's own."""
    where = f"[http] {settings.host}:{settings.port}"
    if running:
        yield ok("port", f"{where} is for the running station")
        return
    try:
        address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(address[0], socket.SOCK_STREAM) as probe:
            # As the station binds: a port that a station has just left is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address[4])
    except OSError as error:
        mend = "choose another [http] port, or see with ss -ltnp who has it"
        yield fail("port", f"{where} cannot be taken: {error.strerror}", mend)
    else:
        yield ok("port", f"{where} is free")
