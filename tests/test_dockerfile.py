"""No container engine runs in the tests; so what the image installs and starts is held against what the tests exercise."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

import cv2
import httpx
from packaging.specifiers import SpecifierSet

from conftest import MakeStation, free_port
from linegate_edge.cli import register
from linegate_edge.settings import load_station

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "edge" / "deploy" / "station.toml"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

# Shared libraries that OpenCV's wheel leaves to the system, by the Debian package that brings them: itself, or because it
# depends on theirs.
LIBRARIES_OF_PACKAGE = {
    "libgl1": {
        "libGL.so.1",
        "libGLX.so.0",
        "libGLdispatch.so.0",
        "libX11.so.6",
        "libxcb.so.1",
        "libXau.so.6",
        "libXdmcp.so.6",
        "libbsd.so.0",
        "libmd.so.0",
    },
    "libglib2.0-0": {"libglib-2.0.so.0", "libgthread-2.0.so.0", "libpcre2-8.so.0"},
}
# In the base image: C, C++ and zlib, which apt and Python themselves need.
LIBRARIES_OF_BASE = {
    "libc.so.6",
    "libdl.so.2",
    "libgcc_s.so.1",
    "libm.so.6",
    "libpthread.so.0",
    "librt.so.1",
    "libstdc++.so.6",
    "libutil.so.1",
    "libz.so.1",
}


def instructions() -> list[tuple[str, str]]:
    """Return the Dockerfile's instructions as (name, arguments), comments and continuations resolved."""
    lines = [line for line in (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    return [(line.split()[0], line.split(None, 1)[1].strip()) for line in text.splitlines() if line.strip()]


def arguments(name: str) -> list[str]:
    """Return the arguments of all instructions of a name."""
    return [rest for instruction, rest in instructions() if instruction == name]


def stages() -> list[list[tuple[str, str]]]:
    """Return the instructions by stage."""
    found: list[list[tuple[str, str]]] = []
    for instruction in instructions():
        if instruction[0] == "FROM":
            found.append([])
        found[-1].append(instruction)
    return found


def apt_packages() -> set[str]:
    (command,) = (rest for rest in arguments("RUN") if "apt-get install" in rest)
    (install,) = (part for part in command.split("&&") if "apt-get install" in part)
    return {word for word in shlex.split(install)[2:] if not word.startswith("-")}


def environment() -> dict[str, str]:
    return dict(word.split("=", 1) for rest in arguments("ENV") for word in shlex.split(rest))


def health_command() -> list[str]:
    (rest,) = arguments("HEALTHCHECK")
    command = json.loads(rest.split("CMD", 1)[1])
    assert isinstance(command, list)
    return command


def test_image_installs_the_bare_project_and_nothing_else() -> None:
    installs = [shlex.split(part)[1:] for rest in arguments("RUN") for part in rest.split("&&") if re.search(r"\bpip3? ", part)]
    assert len(installs) == 1
    command, *words = installs[0]
    assert command == "install"
    assert [word for word in words if not word.startswith("-")] == ["."]
    assert not any(name.startswith(("torch", "albumentations")) for name in PROJECT["dependencies"])


def test_python_of_the_image_is_one_that_the_project_supports() -> None:
    images = {rest.split()[0] for rest in arguments("FROM")}
    assert len(images) == 1
    match = re.fullmatch(r"python:(3\.\d+)-slim-bookworm", images.pop())
    assert match is not None
    assert SpecifierSet(PROJECT["requires-python"]).contains(match[1])
    assert f"Programming Language :: Python :: {match[1]}" in PROJECT["classifiers"]


def test_image_starts_a_command_that_exists() -> None:
    assert [json.loads(rest) for rest in arguments("ENTRYPOINT")] == [["linegate"]]
    assert PROJECT["scripts"]["linegate"] == "linegate.cli:main"
    assert PROJECT["entry-points"]["linegate.commands"]["edge"] == "linegate_edge.cli:register"
    parser = argparse.ArgumentParser()
    register(parser.add_subparsers())
    (command,) = (json.loads(rest) for rest in arguments("CMD"))
    chosen = parser.parse_args(command)
    assert chosen.station == Path("/etc/linegate/station.toml")
    assert callable(chosen.run)
    assert environment()["PATH"].startswith("/opt/linegate/bin:")


def test_image_runs_as_a_user_without_rights_and_writes_only_to_its_volume() -> None:
    last = stages()[-1]
    (user,) = (rest for name, rest in last if name == "USER")
    uid, gid = (int(number) for number in user.split(":"))
    assert uid == gid == 10001
    assert f"--uid {uid} " in " ".join(rest for name, rest in last if name == "RUN")
    names = [name for name, _ in last]
    assert "RUN" not in names[names.index("USER") :]
    assert [rest for name, rest in last if name == "VOLUME"] == ["/var/lib/linegate"]
    assert environment()["PYTHONSAFEPATH"] == "1"
    assert environment()["PYTHONDONTWRITEBYTECODE"] == "1"


def test_image_reports_to_nobody() -> None:
    assert environment()["ORT_DISABLE_TELEMETRY"] == "1"


def test_what_the_image_copies_is_there_and_in_the_build_context() -> None:
    ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert ignored[0] == "*"
    allowed = [line[1:] for line in ignored if line.startswith("!")]
    copied = [source for rest in arguments("COPY") if not rest.startswith("--from=") for source in shlex.split(rest)[:-1]]
    assert copied
    for source in copied:
        assert (ROOT / source).exists(), source
        assert any(fnmatch(source, pattern) or fnmatch(source, f"{pattern}/*") for pattern in allowed), source
    assert {PurePosixPath(source).parts[0] for source in copied} == set(allowed)


def test_image_has_the_files_that_the_build_asks_for() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wheel = settings["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = [*wheel["packages"], *wheel["force-include"], PROJECT["readme"], *PROJECT["license-files"]]
    build = [rest for name, rest in stages()[0] if name == "COPY"]
    copied = {source for rest in build for source in shlex.split(rest)[:-1]}
    for path in needed:
        assert PurePosixPath(path).parts[0] in copied, path


def test_each_system_package_brings_a_library_that_opencv_links_to() -> None:
    assert apt_packages() == set(LIBRARIES_OF_PACKAGE)
    (module,) = Path(cv2.__file__).parent.glob("cv2*.so")
    listing = subprocess.run(["ldd", module], capture_output=True, text=True, check=True).stdout
    assert "not found" not in listing
    site_packages = str(Path(cv2.__file__).parent.parent)
    linked = {
        line.split()[0]
        for line in listing.splitlines()
        if "=>" in line and not line.split("=>")[1].strip().startswith(site_packages)
    }
    brought = set().union(*(LIBRARIES_OF_PACKAGE[name] for name in apt_packages()))
    assert linked - LIBRARIES_OF_BASE <= brought


def test_example_settings_fit_the_image() -> None:
    settings = load_station(EXAMPLE)
    (volume,) = arguments("VOLUME")
    (port,) = arguments("EXPOSE")
    assert settings.station.store == Path(volume)
    assert settings.model.package == Path("/etc/linegate/package")
    assert (settings.http.host, settings.http.port) == ("0.0.0.0", int(port))
    assert f"http://127.0.0.1:{port}/" in health_command()[-1]
    assert f"{EXAMPLE.relative_to(ROOT)} /etc/linegate/station.toml" in arguments("COPY")


def test_health_check_passes_on_a_station_that_runs_and_fails_on_one_that_does_not(make_station: MakeStation) -> None:
    station = make_station(free_port())
    program, *rest = health_command()
    assert program == "python"
    command = [sys.executable, *(word.replace(":8080/", f":{station.http_port}/") for word in rest)]
    assert httpx.get(f"{station.address}healthz").status_code == 200
    assert subprocess.run(command, capture_output=True, timeout=30).returncode == 0
    station.stop()
    assert subprocess.run(command, capture_output=True, timeout=30).returncode != 0


def test_documented_way_to_run_keeps_the_root_read_only() -> None:
    text = (ROOT / "edge" / "deploy" / "README.md").read_text(encoding="utf-8")
    assert "--read-only --tmpfs /tmp --cap-drop ALL" in text
    (volume,) = arguments("VOLUME")
    assert f":{volume} " in text
