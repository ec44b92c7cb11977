"""The station's HTTP side: every route, every bad input, and that the station goes on after each."""

from __future__ import annotations

import contextlib
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from PIL import Image

from conftest import encode, free_port, spot_picture, wait_until
from linegate.errors import StationError
from linegate_edge.evidence import EvidenceFolder
from linegate_edge.message import VerdictMessage
from linegate_edge.review.answers import FrameAnswer, LiveState
from linegate_edge.review.app import create_app
from linegate_edge.review.server import HttpServer
from linegate_edge.settings import StationSettings
from linegate_edge.sources.encoded import UNKNOWN_MEDIA_TYPE, guess_media_type
from linegate_edge.station import Station

GOOD, BAD = encode(spot_picture(defect=False)), encode(spot_picture(defect=True))
PNG = {"Content-Type": "image/png"}
MAX_UPLOAD_BYTES = 1 << 20
BOUNDARY = "multipart/form-data; boundary=line"


def settings_of(folder: Path, package: Path, **limits: object) -> StationSettings:
    return StationSettings.model_validate(
        {
            "station": {"topic": "acme/plant/area/line/station7", "store": str(folder / "store")},
            "model": {"package": str(package), "workers": 1},
            "mqtt": {"port": free_port()},
            "evidence": {"min_free_mib": 0},
            "http": {"port": 0, "max_upload_mib": MAX_UPLOAD_BYTES / 2**20},
            "limits": limits,
        }
    )


@pytest.fixture
def station(tmp_path: Path, spot_package: Path) -> Iterator[Station]:
    """A station that runs, without a broker."""
    running = Station(settings_of(tmp_path, spot_package), note="Photographs: CC0")
    running.start()
    yield running
    running.stop()


@pytest.fixture
def client(station: Station) -> Iterator[httpx.Client]:
    """A program that talks to the station."""
    with httpx.Client(base_url=station.address, timeout=30) as client:
        yield client


@contextlib.contextmanager
def serve(station: Station, folder: Path, **changes: Any) -> Iterator[tuple[httpx.Client, HttpServer]]:
    """Serve an application over a station's line, with other settings than the station's own server has."""
    app = create_app(
        **{
            "live": station.live,
            "line": station.line,
            "metrics": station.metrics,
            "store_path": folder / "store" / "linegate.sqlite3",
            "evidence": EvidenceFolder(folder / "store" / "evidence", station.settings.evidence),
            "max_pixels": 64_000_000,
            "max_upload_bytes": MAX_UPLOAD_BYTES,
            "ready": lambda: None,
            "settings": station.settings,
            "reviews": station.reviews,
            "access": station.access,
        }
        | changes
    )
    server = HttpServer(app, "127.0.0.1", 0)
    server.start()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=30) as client:
            yield client, server
    finally:
        server.stop(5)


@pytest.fixture
def idle(tmp_path: Path, spot_package: Path) -> Station:
    """A station whose line never starts: frames go in, and no verdict comes out."""
    return Station(settings_of(tmp_path, spot_package, queue_frames=1))


def post(client: httpx.Client, picture: bytes = GOOD, **options: Any) -> httpx.Response:
    headers = PNG | options.pop("headers", {})
    return client.post("/frames", content=picture, headers=headers, **options)


def parts(client: httpx.Client) -> int:
    return int(client.get("/live/state").json()["parts"])


def assert_goes_on(client: httpx.Client) -> None:
    before = parts(client)
    answer = post(client).json()
    assert answer["decision"] == "pass"
    assert answer["sequence"] == before + 1
    assert client.get("/readyz").status_code == 200


def error_of(response: httpx.Response) -> str:
    body = response.json()
    assert list(body) == ["error"]
    assert "\n" not in body["error"]
    return str(body["error"])


# -- before the first part --------------------------------------------------------------------------------------------


def test_station_without_a_part_shows_an_empty_state(client: httpx.Client) -> None:
    state = LiveState.model_validate(client.get("/live/state").json())
    assert (state.parts, state.last, state.first_pass_yield, state.overlay_uri) == (0, None, None, None)
    assert state.note == "Photographs: CC0"
    response = client.get("/live/last.jpg")
    assert response.status_code == 404
    assert error_of(response) == "no part was inspected yet"


def test_page_and_assets_are_served_and_cached_by_their_digest(client: httpx.Client) -> None:
    page = client.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    for name in ("live.js", "live.css", "icon.svg"):
        assert f"/assets/{name}" in page.text
        asset = client.get(f"/assets/{name}")
        assert asset.status_code == 200
        again = client.get(f"/assets/{name}", headers={"If-None-Match": asset.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
    assert client.get("/assets/app.py").status_code == 404


def test_page_has_no_inline_script_or_style_and_loads_nothing_from_elsewhere(client: httpx.Client) -> None:
    texts = [client.get(path).text for path in ("/", "/assets/live.js", "/assets/live.css", "/assets/icon.svg")]
    assert "style=" not in texts[0]
    assert " onload" not in texts[0]
    assert texts[0].count("<script") == 1
    for text in texts:
        assert "//" not in text.replace("http://www.w3.org/2000/svg", "").replace("// ", "").replace("//\n", "")


# -- frames -----------------------------------------------------------------------------------------------------------


def test_raw_frame_is_answered_with_its_stored_verdict(client: httpx.Client) -> None:
    response = post(client, BAD, params={"serial": "S-1", "camera": "top", "batch": "B7", "attempt": 2})
    assert response.status_code == 200
    answer = FrameAnswer.model_validate(response.json())
    assert (answer.decision, answer.reason, answer.sequence, answer.repeated) == ("fail", "above_threshold", 1, False)
    assert answer.score is not None
    assert answer.threshold is not None
    assert answer.score >= answer.threshold
    stored = VerdictMessage.model_validate(client.get(f"/verdicts/{answer.verdict_id}").json())
    assert (stored.sequence, stored.part.serial, stored.part.serial_source) == (1, "S-1", "http")
    assert (stored.part.batch, stored.part.attempt, stored.views[0].camera) == ("B7", 2, "top")


def test_form_carries_the_frame_and_all_fields(client: httpx.Client) -> None:
    fields = {
        "serial": "Ünit 1",
        "camera": "left",
        "view": "main",
        "part_type": "cell",
        "order": "O1",
        "batch": "B1",
        "supplier_lot": "L1",
        "carrier": "C1",
        "attempt": "3",
    }
    response = client.post("/frames", data=fields, files={"image": ("a.png", GOOD, "image/png")})
    assert response.json()["decision"] == "pass"
    part = client.get(f"/verdicts/{response.json()['verdict_id']}").json()["part"]
    assert part == {
        "serial": "Ünit 1",
        "serial_source": "http",
        "type": "cell",
        "order": "O1",
        "batch": "B1",
        "supplier_lot": "L1",
        "carrier": "C1",
        "attempt": 3,
    }


def test_form_field_counts_before_the_query(client: httpx.Client) -> None:
    files = {"image": ("a.png", GOOD, "image/png")}
    query = {"serial": "query", "batch": "B2"}
    answer = client.post("/frames", params=query, data={"serial": "form"}, files=files).json()
    assert answer["serial"] == "form"
    assert client.get(f"/verdicts/{answer['verdict_id']}").json()["part"]["batch"] == "B2"


def test_frame_without_a_serial_gets_a_running_one_that_a_restart_does_not_repeat(
    client: httpx.Client, station: Station
) -> None:
    serials = [post(client).json()["serial"] for _ in range(3)]
    assert len(set(serials)) == 3
    assert all(serial.startswith(station.boot_id[:8]) for serial in serials)


def test_idempotency_key_brings_the_first_verdict_again(client: httpx.Client) -> None:
    first = post(client, headers={"Idempotency-Key": "cam1-0001"}).json()
    again = post(client, headers={"Idempotency-Key": "cam1-0001"}).json()
    assert again == first | {"repeated": True}
    assert parts(client) == 1
    assert post(client, BAD, headers={"Idempotency-Key": "cam1-0002"}).json()["decision"] == "fail"


def test_field_given_twice_is_refused_rather_than_chosen(client: httpx.Client) -> None:
    response = client.post("/frames?serial=one&serial=two", content=GOOD, headers={"Content-Type": "image/png"})
    assert response.status_code == 422
    assert "given more than once" in response.json()["error"]
    assert parts(client) == 0


def test_idempotency_key_used_again_for_another_part_does_not_bring_an_old_pass(client: httpx.Client) -> None:
    key = {"Idempotency-Key": "1"}
    assert post(client, headers=key).json()["decision"] == "pass"
    bad = post(client, BAD, headers=key).json()
    assert (bad["decision"], bad["repeated"]) == ("fail", False)
    other = post(client, params={"serial": "B-2"}, headers=key).json()
    assert (other["serial"], other["repeated"]) == ("B-2", False)
    assert parts(client) == 3


def test_view_that_the_recipe_does_not_know_is_undecided(client: httpx.Client) -> None:
    answer = post(client, params={"view": "underside"}).json()
    assert (answer["decision"], answer["reason"]) == ("undecided", "no_view")
    assert "'underside'" in answer["reason_text"]
    assert_goes_on(client)


def test_many_senders_at_once_get_a_gapless_sequence(client: httpx.Client) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda number: post(client, params={"serial": f"S{number}"}).json(), range(80)))
    assert sorted(answer["sequence"] for answer in answers) == list(range(1, 81))
    assert [answer["serial"] for answer in answers] == [f"S{number}" for number in range(80)]


def _jpeg(mode: str = "RGB") -> bytes:
    return encode(Image.fromarray(spot_picture(defect=False, size_wh=(256, 256))).convert(mode), "JPEG")


UNJUDGEABLE: dict[str, tuple[Callable[[], bytes], str]] = {
    "zero bytes": (lambda: b"", "image_empty"),
    "text": (lambda: b"not a picture", "image_unreadable"),
    "truncated JPEG": (lambda: _jpeg()[: len(_jpeg()) // 2], "image_truncated"),
    "truncated PNG": (lambda: GOOD[: len(GOOD) // 2], "image_truncated"),
    "16-bit": (lambda: encode(Image.fromarray(np.zeros((64, 64), np.uint16))), "image_format_not_supported"),
    "palette": (lambda: encode(Image.new("P", (64, 64))), "image_format_not_supported"),
    "alpha": (lambda: encode(Image.new("RGBA", (64, 64))), "image_format_not_supported"),
    "CMYK": (lambda: _jpeg("CMYK"), "image_format_not_supported"),
    "1 × 1": (lambda: encode(Image.new("L", (1, 1))), "image_too_small"),
    "100 megapixels": (lambda: encode(Image.new("L", (10_000, 10_000))), "image_too_large"),
}


@pytest.mark.parametrize("kind", UNJUDGEABLE)
def test_picture_that_cannot_be_judged_is_an_undecided_part(client: httpx.Client, kind: str) -> None:
    make, reason = UNJUDGEABLE[kind]
    picture = make()
    response = post(client, picture, params={"serial": "S-1"})
    assert response.status_code == 200
    answer = response.json()
    assert (answer["decision"], answer["reason"], answer["serial"]) == ("undecided", reason, "S-1")
    assert (answer["score"], answer["threshold"]) == (None, None)
    assert answer["reason_text"]
    assert "\n" not in answer["reason_text"]
    state = client.get("/live/state").json()
    assert (state["undecided"], state["overlay_uri"]) == (1, None)
    assert client.get("/live/last.jpg").status_code == 404
    uri = state["last"]["views"][0]["image_uri"]
    if picture:
        assert client.get(uri).content == picture
    else:
        assert uri is None
    assert_goes_on(client)


def test_empty_image_field_is_an_undecided_part(client: httpx.Client) -> None:
    answer = client.post("/frames", files={"image": ("a.png", b"", "image/png")}).json()
    assert (answer["decision"], answer["reason"]) == ("undecided", "image_empty")


def test_upload_over_the_limit_is_an_undecided_part_answered_with_413(client: httpx.Client) -> None:
    large = b"\xff" * (MAX_UPLOAD_BYTES + 1)
    response = post(client, large, params={"serial": "S-1"})
    assert response.status_code == 413
    answer = FrameAnswer.model_validate(response.json())
    assert (answer.decision, answer.reason, answer.serial) == ("undecided", "image_too_large", "S-1")
    assert "max_upload_mib" in answer.reason_text
    assert_goes_on(client)


def test_upload_over_the_limit_without_a_length_is_answered_with_413(client: httpx.Client) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(24):
            yield b"\xff" * (MAX_UPLOAD_BYTES // 16)

    response = client.post("/frames", content=chunks(), headers=PNG)
    assert (response.status_code, response.json()["reason"]) == (413, "image_too_large")
    assert_goes_on(client)


@pytest.mark.parametrize("excess_bytes", [1, 8 * MAX_UPLOAD_BYTES])
def test_form_over_the_limit_keeps_the_fields_before_the_picture(client: httpx.Client, excess_bytes: int) -> None:
    files = {"image": ("a.png", b"\xff" * (MAX_UPLOAD_BYTES + excess_bytes), "image/png")}
    response = client.post("/frames", data={"serial": "S-1"}, files=files)
    assert response.status_code == 413
    assert (response.json()["serial"], response.json()["reason"]) == ("S-1", "image_too_large")
    assert_goes_on(client)


def test_upload_far_over_the_limit_is_not_read_to_its_end(client: httpx.Client, station: Station) -> None:
    sent = 0
    with socket.create_connection(("127.0.0.1", station.http_port)) as sender:
        sender.settimeout(30)
        head = f"POST /frames HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: {10**12}\r\n\r\n"
        sender.sendall(head.encode())
        with contextlib.suppress(OSError):
            while sent < 64 * MAX_UPLOAD_BYTES:
                sent += sender.send(b"\0" * 65536)
    assert sent < 64 * MAX_UPLOAD_BYTES
    wait_until(lambda: client.get("/live/state").json()["undecided"] == 1)
    assert_goes_on(client)


def _form(*fields: tuple[str, bytes], end: bytes = b"--line--\r\n") -> bytes:
    body = b"".join(
        b"--line\r\nContent-Disposition: form-data; " + head.encode() + b"\r\n\r\n" + value + b"\r\n" for head, value in fields
    )
    return body + end


MALFORMED: dict[str, tuple[bytes, str, int, str]] = {
    "no boundary": (GOOD, "multipart/form-data", 400, "names no boundary"),
    "no form at all": (GOOD, BOUNDARY, 400, "malformed"),
    "no end": (_form(('name="image"', GOOD), end=b""), BOUNDARY, 400, "before its closing boundary"),
    "empty form": (b"", BOUNDARY, 400, "before its closing boundary"),
    "no picture": (_form(('name="serial"', b"S1")), BOUNDARY, 422, "field 'image' is missing"),
    "field without a name": (_form(("", b"S1")), BOUNDARY, 400, "has no name"),
    "two pictures": (_form(('name="image"', GOOD), ('name="image"', BAD)), BOUNDARY, 422, "'image' comes twice"),
    "unknown field": (_form(('name="seriall"', b"S1"), ('name="image"', GOOD)), BOUNDARY, 422, "did you mean 'serial'?"),
    "bad attempt": (_form(('name="attempt"', b"0"), ('name="image"', GOOD)), BOUNDARY, 422, "'attempt'"),
    "attempt of letters": (_form(('name="attempt"', b"two"), ('name="image"', GOOD)), BOUNDARY, 422, "'attempt'"),
    "empty serial": (_form(('name="serial"', b""), ('name="image"', GOOD)), BOUNDARY, 422, "'serial'"),
    "line break in a serial": (_form(('name="serial"', b"a\nb"), ('name="image"', GOOD)), BOUNDARY, 422, "'serial'"),
    "serial of a megabyte": (_form(('name="serial"', b"a" * 10**6), ('name="image"', GOOD)), BOUNDARY, 422, "4096 bytes"),
    "serial not UTF-8": (_form(('name="serial"', b"\xff"), ('name="image"', GOOD)), BOUNDARY, 422, "not UTF-8"),
    "too many fields": (
        _form(*((f'name="f{number}"', b"1") for number in range(40)), ('name="image"', GOOD)),
        BOUNDARY,
        422,
        "more than 32 fields",
    ),
    "too much beside the picture": (
        _form(*((f'name="f{number}"', b"1" * 4096) for number in range(30))),
        BOUNDARY,
        400,
        "more than 65536 bytes beside the picture",
    ),
    "unknown type": (GOOD, "application/x-www-form-urlencoded", 415, "multipart/form-data"),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_malformed_upload_gets_one_clear_line_and_makes_no_part(client: httpx.Client, kind: str) -> None:
    body, content_type, status, text = MALFORMED[kind]
    response = client.post("/frames", content=body, headers={"Content-Type": content_type})
    assert response.status_code == status
    assert text in error_of(response)
    assert parts(client) == 0
    assert_goes_on(client)


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ({"attempt": "0"}, "'attempt'"),
        ({"attempt": "x"}, "'attempt'"),
        ({"serial": ""}, "'serial'"),
        ({"serial": "x" * 129}, "'serial'"),
        ({"seriall": "S1"}, "unknown parameter 'seriall'"),
    ],
)
def test_malformed_query_gets_one_clear_line(client: httpx.Client, query: dict[str, str], text: str) -> None:
    response = post(client, params=query)
    assert response.status_code == 422
    assert text in error_of(response)
    assert_goes_on(client)


@pytest.mark.parametrize("key", ["", "k" * 201, "tab\there"])
def test_malformed_idempotency_key_gets_one_clear_line(client: httpx.Client, key: str) -> None:
    response = post(client, headers={"Idempotency-Key": key})
    assert response.status_code == 422
    assert "idempotency-key" in error_of(response)
    assert parts(client) == 0


def test_sender_that_goes_away_in_the_middle_makes_no_part(client: httpx.Client, station: Station) -> None:
    with socket.create_connection(("127.0.0.1", station.http_port)) as sender:
        head = f"POST /frames HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: {len(GOOD)}\r\n\r\n"
        sender.sendall(head.encode() + GOOD[:1000])
    assert_goes_on(client)
    assert parts(client) == 1


# -- browsers of other sites ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_page_of_another_site_cannot_post_frames(client: httpx.Client, headers: dict[str, str]) -> None:
    response = post(client, headers=headers)
    assert response.status_code == 403
    assert "must not send frames" in error_of(response)
    assert parts(client) == 0


def test_own_page_may_post_frames(client: httpx.Client, station: Station) -> None:
    origin = station.address.rstrip("/")
    assert post(client, headers={"Origin": origin, "Sec-Fetch-Site": "same-origin"}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:80", "a@b", "x/y", "[::1", ""])
def test_name_that_is_not_ours_is_refused(client: httpx.Client, host: str) -> None:
    response = client.get("/live/state", headers={"Host": host})
    assert response.status_code == 421
    assert "[http] names" in error_of(response)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:9", "[::1]:80", "linegate:8080", "station7.local", "LOCALHOST."])
def test_addresses_and_names_that_nobody_can_register_are_ours(client: httpx.Client, host: str) -> None:
    assert client.get("/healthz", headers={"Host": host}).status_code == 200


def test_listed_name_is_ours(idle: Station, tmp_path: Path) -> None:
    with serve(idle, tmp_path, host_names=["Gate.plant.example"]) as (client, _):
        assert client.get("/live/state", headers={"Host": "gate.plant.example:8080"}).status_code == 200


@pytest.mark.parametrize("path", ["/", "/assets/live.js", "/live/state", "/metrics", "/nowhere", "/live/last.jpg", "/frames"])
def test_every_answer_carries_the_security_headers(client: httpx.Client, path: str) -> None:
    for host in (client.base_url.host, "evil.example"):
        headers = client.get(path, headers={"Host": host}).headers
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cross-origin-resource-policy"] == "same-origin"


def test_defect_in_the_station_is_one_line_with_the_security_headers(idle: Station, tmp_path: Path) -> None:
    def broken() -> str | None:
        raise ZeroDivisionError

    with serve(idle, tmp_path, ready=broken) as (client, _):
        response = client.get("/readyz")
        assert response.status_code == 500
        assert error_of(response) == "the station made a mistake; its log says more"
        assert "content-security-policy" in response.headers
        assert client.get("/metrics").status_code == 200


# -- verdicts and evidence --------------------------------------------------------------------------------------------


def test_unknown_verdict_is_one_line(client: httpx.Client) -> None:
    response = client.get("/verdicts/00000000-0000-0000-0000-000000000000")
    assert response.status_code == 404
    assert "has no verdict" in error_of(response)


def test_evidence_is_the_very_bytes_that_were_sent(client: httpx.Client) -> None:
    verdict_id = post(client, BAD).json()["verdict_id"]
    view = client.get(f"/verdicts/{verdict_id}").json()["views"][0]
    response = client.get(view["image_uri"])
    assert response.content == BAD
    assert response.headers["content-type"] == "image/png"
    assert response.headers["content-disposition"].startswith("inline")
    assert "immutable" in response.headers["cache-control"]
    assert view["image_sha256"] in view["image_uri"]


def test_evidence_that_is_no_picture_downloads(client: httpx.Client) -> None:
    verdict_id = post(client, b"<script>alert(1)</script>").json()["verdict_id"]
    response = client.get(client.get(f"/verdicts/{verdict_id}").json()["views"][0]["image_uri"])
    assert response.headers["content-type"] == "application/octet-stream"
    assert response.headers["content-disposition"].startswith("attachment")


def test_pruned_evidence_says_so(client: httpx.Client, tmp_path: Path) -> None:
    verdict_id = post(client, BAD).json()["verdict_id"]
    uri = client.get(f"/verdicts/{verdict_id}").json()["views"][0]["image_uri"]
    (file,) = (tmp_path / "store" / "evidence").rglob("*.png")
    file.unlink()
    response = client.get(uri)
    assert response.status_code == 404
    assert "pruned" in error_of(response)


@pytest.mark.parametrize(
    "name",
    [
        "..",
        "../linegate.sqlite3",
        "..%2f..%2flinegate.sqlite3",
        "%2e%2e%2flinegate.sqlite3",
        "/etc/passwd",
        "%2fetc%2fpasswd",
        "linegate.sqlite3",
        "0" * 64 + ".png",
        "0" * 64 + ".png%00",
        "0" * 64 + ".png%0a",
        "A" * 64 + ".png",
        "0" * 64,
        "0" * 10_000,
    ],
)
def test_no_name_reaches_a_file_that_the_store_does_not_know(client: httpx.Client, station: Station, name: str) -> None:
    # By hand, for an HTTP client mends such paths before it sends them.
    with socket.create_connection(("127.0.0.1", station.http_port)) as asker:
        asker.sendall(f"GET /evidence/{name} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: asker.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b" 404 " in head.splitlines()[0]
    assert list(json.loads(body)) == ["error"]
    assert len(body) < 400


def test_media_type_is_guessed_from_the_first_bytes_where_the_picture_cannot_be_opened() -> None:
    for image_format, media_type in (("PNG", "image/png"), ("JPEG", "image/jpeg"), ("BMP", "image/bmp")):
        assert guess_media_type(encode(spot_picture(defect=False), image_format)[:20]) == media_type
    for image_format, media_type in (("TIFF", "image/tiff"), ("WEBP", "image/webp"), ("PPM", "image/x-portable-anymap")):
        assert guess_media_type(encode(spot_picture(defect=False), image_format)[:20]) == media_type
    assert guess_media_type(b"<html>") == guess_media_type(b"") == UNKNOWN_MEDIA_TYPE


# -- live -------------------------------------------------------------------------------------------------------------


def test_overlay_belongs_to_the_part_that_the_state_tells_of(client: httpx.Client) -> None:
    post(client, BAD, params={"serial": "S-1"})
    state = client.get("/live/state").json()
    response = client.get(state["overlay_uri"])
    assert response.headers["content-type"] == "image/jpeg"
    bgr = cv2.imdecode(np.frombuffer(response.content, np.uint8), cv2.IMREAD_COLOR)
    assert bgr.shape == (480, 480, 3)
    assert bgr[2, 240, 2] > 150 > bgr[2, 240, 0]  # the border: vermillion for fail
    post(client, GOOD)
    assert client.get(state["overlay_uri"]).content == response.content
    assert client.get("/live/last.jpg").content != response.content


def test_overlay_of_a_part_long_gone_is_refused(client: httpx.Client) -> None:
    for _ in range(6):
        post(client)
        client.get("/live/state")
    response = client.get("/live/last.jpg?sequence=1")
    assert response.status_code == 404
    assert error_of(response) == "part 1 is not the last one"


def _events(client: httpx.Client) -> Iterator[tuple[str, dict[str, Any]]]:
    with client.stream("GET", "/live/events") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        event = ""
        for line in response.iter_lines():
            if line.startswith("event: "):
                event = line.removeprefix("event: ")
            elif line.startswith("data: "):
                yield event, json.loads(line.removeprefix("data: "))


def test_event_stream_tells_of_each_change_and_that_it_lives(client: httpx.Client) -> None:
    events = _events(client)
    kind, state = next(events)
    assert (kind, state["parts"]) == ("state", 0)
    post(client, params={"serial": "S-1"})
    kind, state = next(event for event in events if event[1].get("parts") == 1)
    assert kind == "state"
    assert state["last"]["part"]["serial"] == "S-1"
    LiveState.model_validate(state)
    assert next(kind for kind, _ in events if kind == "heartbeat") == "heartbeat"


def test_event_stream_brings_ten_states_a_second_at_most(client: httpx.Client) -> None:
    events = _events(client)
    next(events)
    started = time.monotonic()
    for _ in range(100):
        post(client)
    count = 0
    for _, state in events:
        count += 1
        if state.get("parts") == 100:
            break
    assert count <= (time.monotonic() - started) * 10 + 2


def test_server_stops_at_once_though_pages_follow_it(idle: Station, tmp_path: Path) -> None:
    with serve(idle, tmp_path) as (client, server):
        streams = [_events(client) for _ in range(3)]
        for stream in streams:
            next(stream)
        started = time.monotonic()
        server.stop(10)
        assert time.monotonic() - started < 3
        for stream in streams:
            assert len(list(stream)) <= 1
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{server.port}/healthz")


# -- health -----------------------------------------------------------------------------------------------------------


def test_metrics_count_the_parts(client: httpx.Client) -> None:
    post(client)
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    assert 'linegate_parts_total{decision="pass"} 1.0' in response.text


def test_health_tells_of_a_line_that_does_not_run(idle: Station, tmp_path: Path) -> None:
    with serve(idle, tmp_path, ready=lambda: "camera top: not found") as (client, _):
        alive = client.get("/healthz")
        assert (alive.status_code, alive.json()["ok"]) == (503, False)
        ready = client.get("/readyz")
        assert (ready.status_code, ready.json()) == (503, {"ok": False, "reason": "camera top: not found"})
        assert client.get("/live/state").json()["trouble"] == "camera top: not found"


def test_line_stop_makes_the_station_not_ready(client: httpx.Client, station: Station) -> None:
    assert client.get("/readyz").json() == {"ok": True, "reason": None}
    station.live.set_line_stop("store", "the disk is full")
    assert client.get("/readyz").json() == {"ok": False, "reason": "line stop: the disk is full"}
    assert client.get("/healthz").status_code == 200


# -- a line that does not answer --------------------------------------------------------------------------------------


def test_sender_hears_after_a_while_that_its_verdict_is_still_to_come(idle: Station, tmp_path: Path) -> None:
    with serve(idle, tmp_path, wait_s=0.3) as (client, _):
        response = post(client)
        assert response.status_code == 503
        assert "was taken" in error_of(response)
        response = post(client)
        assert response.status_code == 503
        assert "no room within 0.3 s" in error_of(response)


def test_verdict_given_up_on_is_stored_all_the_same(tmp_path: Path, spot_package: Path) -> None:
    station = Station(settings_of(tmp_path, spot_package))
    with serve(station, tmp_path, wait_s=0.3) as (client, _):
        assert post(client, headers={"Idempotency-Key": "k1"}).status_code == 503
        station.start()
        wait_until(lambda: parts(client) == 1)
        answer = post(client, headers={"Idempotency-Key": "k1"}).json()
        assert (answer["repeated"], answer["sequence"], answer["decision"]) == (True, 1, "pass")
    station.stop()


def test_stop_does_not_wait_for_a_verdict_that_cannot_come(idle: Station, tmp_path: Path) -> None:
    with serve(idle, tmp_path, wait_s=60) as (client, server), ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(post, client)
        wait_until(lambda: "linegate_queue_frames 1.0" in client.get("/metrics").text)
        started = time.monotonic()
        server.stop(10)
        assert time.monotonic() - started < 5
        assert "not stored yet" in error_of(waiting.result())


def test_station_that_stops_takes_no_frame(tmp_path: Path, spot_package: Path) -> None:
    station = Station(settings_of(tmp_path, spot_package))
    station.start()
    with serve(station, tmp_path) as (client, _):
        station.stop()
        response = post(client)
        assert response.status_code == 503
        assert "stopping" in error_of(response)


# -- the server -------------------------------------------------------------------------------------------------------


def _empty_app() -> FastAPI:
    app = FastAPI()
    app.state.stopping = threading.Event()
    return app


def test_port_in_use_is_one_clear_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        with pytest.raises(StationError, match=f"port {port} is in use: stop the program that listens there"):
            HttpServer(_empty_app(), "127.0.0.1", port)


@pytest.mark.parametrize("host", ["no-such-host.invalid", "203.0.113.7", "x" * 70 + ".invalid"])
def test_host_that_is_not_ours_is_one_clear_line(host: str) -> None:
    with pytest.raises(StationError, match=r"is no address of this machine: use 127\.0\.0\.1"):
        HttpServer(_empty_app(), host, 0)


def test_server_that_never_started_gives_its_port_back() -> None:
    server = HttpServer(_empty_app(), "127.0.0.1", 0)
    server.stop(1)
    with socket.create_server(("127.0.0.1", server.port)):
        pass


def test_openapi_describes_every_route_and_the_interactive_pages_are_off(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    routes = {(path, method): route for path, item in document["paths"].items() for method, route in item.items()}
    assert {path for path, _ in routes if not path.startswith("/api/")} == {
        "/commands",
        "/frames",
        "/live/events",
        "/live/state",
        "/live/last.jpg",
        "/verdicts",
        "/verdicts/{verdict_id}",
        "/evidence/{name}",
        "/metrics",
        "/healthz",
        "/readyz",
    }
    assert all(route["summary"] and route["description"] and route["tags"] for route in routes.values())
    body = routes["/frames", "post"]["requestBody"]["content"]
    assert set(body) == {"multipart/form-data", "image/*", "application/octet-stream"}
    assert "serial" in body["multipart/form-data"]["schema"]["properties"]
    assert client.get("/docs").status_code == client.get("/redoc").status_code == 404


def test_wrong_method_and_wrong_path_are_one_line(client: httpx.Client) -> None:
    assert "see /openapi.json" in error_of(client.get("/nowhere"))
    response = client.get("/frames")
    assert (response.status_code, response.headers["allow"]) == (405, "POST")
    assert "GET is not possible" in error_of(response)


def test_large_pictures_go_through(client: httpx.Client) -> None:
    picture = spot_picture(defect=True, size_wh=(1024, 768))
    data = io.BytesIO()
    Image.fromarray(picture).save(data, "JPEG", quality=80)
    answer = post(client, data.getvalue(), headers={"Content-Type": "image/jpeg"}).json()
    assert answer["decision"] == "fail"
