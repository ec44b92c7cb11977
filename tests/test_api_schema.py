"""Whatever is sent to a route: no answer is a mistake of the station's, and none is other than its OpenAPI says.

Every route of the table of permissions is asked by Schemathesis, with what fits its description and with what does not, as an
admin. `LINEGATE_SCHEMA_EXAMPLES=500` asks more often than a build has time for.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from conftest import free_port, signed_in, station_toml, submit
from linegate_edge.review.access.policy import ROUTES
from linegate_edge.review.access.roles import Permission
from linegate_edge.review.audit import SYSTEM
from linegate_edge.review.static import PAGES
from linegate_edge.settings import load_station
from linegate_edge.station import Station

EXAMPLES = int(os.environ.get("LINEGATE_SCHEMA_EXAMPLES", "12"))
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
NOT_ASKED = {
    ("GET", "/live/events"): "it never ends: test_http_api.py follows it",
    ("GET", "/openapi.json"): "the description itself",
    ("GET", "/assets/{name}"): "files of pages",
    **{("GET", address): "a page" for address in PAGES},
}
# Commands come last: one of them stops the line.
ASKED = sorted(set(ROUTES) - set(NOT_ASKED), key=lambda route: (route[1] == "/commands", route[1], route[0]))


@dataclass(frozen=True)
class Served:
    """A station that has judged parts, its description, and what an admin shows to be let in."""

    station: Station
    schema: Any
    token: dict[str, str]
    known: dict[str, list[str]]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, spot_package: Path) -> Iterator[Served]:
    """A station with parts, some of them decided, with a box and a mask drawn."""
    folder = tmp_path_factory.mktemp("station")
    more = "[evidence]\nmin_free_mib = 0\npassed_share = 1.0\n"
    station = Station(load_station(station_toml(folder, spot_package, broker_port=free_port(), more=more)))
    station.start()
    try:
        for done in submit(station, 20, defect_every=4):
            done.result(30)
        station.reviews.index.catch_up()
        secret, _ = station.access.tokens.add(SYSTEM, "schemathesis", "admin", 1)
        token = {"Authorization": f"Bearer {secret}"}
        with signed_in(station) as client:
            parts = client.get("/api/v1/parts").json()["items"]
            rejects = [part["verdict_id"] for part in parts if part["decision"] == "fail"]
            look = client.get(f"/api/v1/parts/{rejects[0]}").json()["looks"][0]
            region = {"view": look["view"], "defect_class": "scratch", "box_xyxy": [1, 2, 10, 12]}
            body = {"disposition": "confirmed", "defect_class": "scratch", "regions": [region]}
            assert client.post(f"/api/v1/parts/{rejects[0]}/decision", json=body).status_code == 200
        known = {
            "verdict_id": [part["verdict_id"] for part in parts],
            "view": [look["view"]],
            "name": [look["evidence_uri"].rpartition("/")[2], "anna"],
            "serial": [part["serial"] for part in parts],
            "recipe": [parts[0]["recipe"]],
            "package": [parts[0]["package"]],
        }
        document = requests.get(f"{station.address}openapi.json", timeout=30).json()
        yield Served(station, schemathesis.openapi.from_dict(document), token, known)
    finally:
        station.stop()


def with_known(case: Any, known: dict[str, list[str]], data: st.DataObject) -> None:
    """Put names of things that are there into some of the places for names: by chance nobody would find one."""
    for place in (case.path_parameters, case.query, case.body):
        if isinstance(place, dict):
            for name in sorted(set(place) & set(known)):
                if data.draw(st.booleans(), label=f"{name} is there"):
                    place[name] = data.draw(st.sampled_from(known[name]), label=name)


@pytest.mark.parametrize(("method", "address"), ASKED, ids=lambda value: str(value))
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["fits", "does-not-fit"])
def test_a_route_answers_as_it_is_described(served: Served, method: str, address: str, mode: GenerationMode) -> None:
    operation = served.schema[address][method]
    session = requests.Session()
    headers = dict(served.token)
    if ROUTES[method, address] is Permission.SELF:  # about the session of a browser, which a token has not
        client = signed_in(served.station, "otto", "admin")  # nobody the other routes know
        headers = {name: client.headers[name] for name in ("User-Agent", "X-CSRF-Token")}
        session.cookies.update(dict(client.cookies))
        client.close()

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=EXAMPLES < 100,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(data=st.data())
    def ask(data: st.DataObject) -> None:
        case = data.draw(operation.as_strategy(generation_mode=mode))
        if mode is GenerationMode.POSITIVE:
            with_known(case, served.known, data)
        case.call_and_validate(
            base_url=served.station.address.rstrip("/"), session=session, headers=headers, checks=CHECKS, timeout=30
        )

    try:
        ask()
    except Unsatisfiable:
        assert mode is GenerationMode.NEGATIVE
        pytest.skip("nothing can be wrong with what it is asked")
    finally:
        session.close()


def test_every_route_is_described_and_asked(served: Served) -> None:
    paths = served.schema.raw_schema["paths"]
    described = {(method.upper(), address) for address, item in paths.items() for method in item}
    assert described - {("GET", "/live/events")} == set(ASKED)
