"""`linegate doctor`: is this machine fit for a station, and is all there that a STATION.toml names?

Rules kept here: nothing is changed and nothing stays behind; each check stands for itself, so that one that breaks does not
hide the others; the rules that judge are functions of what was measured. What a station needs is left to `doctor_station`.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import onnxruntime

from linegate import __version__
from linegate.errors import SettingsError
from linegate.infer import available_providers
from linegate_edge.findings import Finding, fail, ok, show, warn
from linegate_edge.settings import load_station

_PACE_WINDOW_S: Final = 0.25
_PACE_TOLERANCE_S: Final = 0.002
_TIME_ERROR: Final = 5  # adjtimex(2): the clock is not synchronised
_GOVERNORS: Final = Path("/sys/devices/system/cpu")
_CGROUP_LIMIT: Final = Path("/sys/fs/cgroup/cpu.max")
_CONSERVATIVE_GOVERNORS: Final = {"powersave", "conservative", "userspace"}


def run_doctor(settings_path: Path | None, *, as_json: bool) -> int:
    """Look at this machine and, where a STATION.toml is given, at what it names; print the findings, return the status."""
    findings = list(machine_findings())
    if settings_path is not None:
        try:
            settings = load_station(settings_path)
        except SettingsError as error:
            findings.append(fail("settings", str(error), "mend the file; the rest of it was not looked at"))
        else:
            from linegate_edge.doctor_station import station_findings

            findings.append(ok("settings", f"{settings_path}: station {settings.station.topic}"))
            findings.extend(station_findings(settings))
    return show(findings, as_json=as_json)


def machine_findings() -> Iterator[Finding]:
    """Yield what was found of the machine itself."""
    yield ok("linegate", f"version {__version__}")
    for name, check in _MACHINE_CHECKS.items():
        yield from guarded(name, check)


def guarded(name: str, check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """Yield the findings of a check, and a failure where the check itself broke."""
    try:
        yield from check()
    except Exception as error:  # noqa: BLE001 - one check that breaks must not hide the others
        yield fail(name, f"could not be looked at: {type(error).__name__}: {error}", "report this to Linegate")


# -- rules: what was measured → finding ----------------------------------------------------------------------------


def judge_providers(offered: list[str], version: str) -> Finding:
    """Judge the execution providers that onnxruntime offers."""
    what = f"onnxruntime {version} offers {', '.join(offered) or 'none'}"
    if not offered:
        return fail("providers", what, "install onnxruntime anew: pip install --force-reinstall onnxruntime")
    return ok("providers", what)


def judge_cores(usable: int, there: int, quota: float | None) -> Finding:
    """Judge the cores that this process may use; `quota` is how many a container's limit allows."""
    cores = usable if quota is None else min(usable, quota)
    what = f"{cores:g} of {there} cores may be used"
    if cores < 2:
        return warn("cpu", what, "give the station two cores at least: cameras, store and publisher need some beside the model")
    if quota is not None and quota < usable:
        mend = f"set [model] workers = {max(1, int(quota))}: the station counts {usable}, and the limit makes them wait"
        return warn("cpu", what, mend)
    return ok("cpu", what)


def judge_load(load: float, cores: int) -> Finding:
    """Judge the load average over the last minute."""
    what = f"load {load:.1f} on {cores} cores over the last minute"
    if load > 1.5 * cores:
        return warn("load", what, "see with top what else runs here: it takes time from the parts")
    return ok("load", what)


def judge_governors(governors: Mapping[str, int]) -> Finding:
    """Judge the frequency governors, by how many cores have each."""
    if not governors:
        return ok("governor", "the frequency is not this system's to set")
    what = ", ".join(f"{name} on {count} cores" for name, count in sorted(governors.items()))
    if _CONSERVATIVE_GOVERNORS & governors.keys():
        return warn("governor", what, "cpupower frequency-set --governor performance: latency is longer and less even")
    return ok("governor", what)


def judge_clock(state: int, max_error_us: int) -> Finding:
    """Judge what the kernel says of its clock: the state that adjtimex(2) returns, and the error it grants."""
    if state == _TIME_ERROR:
        mend = "start chrony or systemd-timesyncd: times in verdicts cannot be compared with those of other machines"
        return warn("clock", "is not synchronised", mend)
    return ok("clock", f"synchronised, off by {max_error_us / 1e3:.1f} ms at most")


def judge_pace(wall_s: float, monotonic_s: float) -> Finding:
    """Judge how far the wall clock and the monotonic one went in the same while."""
    drift_ms = (wall_s - monotonic_s) * 1e3
    if abs(drift_ms) > _PACE_TOLERANCE_S * 1e3:
        mend = "find who sets the clock: NTP should slew it, and step it at the start of the machine alone"
        return warn("clock", f"wall clock went {drift_ms:+.1f} ms beside the monotonic one in {monotonic_s:.2f} s", mend)
    return ok("clock", "wall and monotonic clock go alike")


# -- looks ---------------------------------------------------------------------------------------------------------


def _look_at_providers() -> Iterator[Finding]:
    yield judge_providers(available_providers(), onnxruntime.__version__)


def _look_at_cores() -> Iterator[Finding]:
    usable, there = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    yield judge_cores(usable, there, _cgroup_quota())
    yield judge_load(os.getloadavg()[0], usable)
    governors: dict[str, int] = {}
    for file in _GOVERNORS.glob("cpu[0-9]*/cpufreq/scaling_governor"):
        name = file.read_text().strip()
        governors[name] = governors.get(name, 0) + 1
    yield judge_governors(governors)


def _cgroup_quota() -> float | None:
    try:
        quota, period = _CGROUP_LIMIT.read_text().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else int(quota) / int(period)


class _Timex(ctypes.Structure):
    """The head of `struct timex` of adjtimex(2); what follows is not looked at, but written to."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("rest", ctypes.c_byte * 256),
    )


def _look_at_clock() -> Iterator[Finding]:
    # The kernel knows, whoever sets the clock: chrony, ntpd, timesyncd or the host of a container.
    timex = _Timex()
    state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(timex))
    if state < 0:
        reason = os.strerror(ctypes.get_errno())
        yield warn("clock", f"the kernel does not say whether it is synchronised: {reason}", "ask timedatectl on the host")
    else:
        yield judge_clock(state, timex.maxerror)
    wall, monotonic = time.time(), time.monotonic()
    time.sleep(_PACE_WINDOW_S)
    yield judge_pace(time.time() - wall, time.monotonic() - monotonic)


_MACHINE_CHECKS: Final[Mapping[str, Callable[[], Iterator[Finding]]]] = {
    "providers": _look_at_providers,
    "cpu": _look_at_cores,
    "clock": _look_at_clock,
}
