"""The documents of the contract: made from the code, true of what a real station says, and valid by their own standards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from conftest import TOPIC, MakeStation, Mosquitto, submit, wait_until
from linegate.cli import main
from linegate_edge.commands import COMMANDS, parse_ack, parse_command
from linegate_edge.contract import ASYNCAPI_FILE, documents
from linegate_edge.contract_examples import EXAMPLES
from linegate_edge.message import topics
from simulators.mes import CommandingMes

ROOT = Path(__file__).parents[1]
COPIES = ROOT / "edge" / "contract"
SCHEMAS = sorted(name for name in documents() if name != ASYNCAPI_FILE)


def validator(name: str) -> jsonschema.Draft202012Validator:
    schema = json.loads(documents()[f"{name}.schema.json"])
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def schema_name(example: str) -> str:
    return "command" if example in COMMANDS else example


@pytest.mark.parametrize("name", sorted(documents()))
def test_the_committed_documents_are_what_the_code_says(name: str) -> None:
    committed = (COPIES / name).read_text(encoding="utf-8")
    assert committed == documents()[name], "write them anew: linegate station contract --out edge/contract"


def test_no_document_is_left_over() -> None:
    assert {path.name for path in COPIES.iterdir()} == set(documents())


def test_the_command_writes_the_documents_and_prints_the_topics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["station", "contract", "--out", str(tmp_path / "new" / "folder")]) == 0
    assert {path.name: path.read_text() for path in (tmp_path / "new" / "folder").iterdir()} == dict(documents())
    capsys.readouterr()
    assert main(["station", "contract"]) == 0
    assert json.loads(capsys.readouterr().out)["asyncapi"] == "3.0.0"
    (tmp_path / "file").touch()
    assert main(["station", "contract", "--out", str(tmp_path / "file")]) == 2
    assert "cannot be written here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "example"), [(name, example) for name, examples in EXAMPLES.items() for example in examples], ids=str
)
def test_every_example_is_valid_by_its_schema_and_is_taken_by_the_code(name: str, example: dict[str, Any]) -> None:
    validator(schema_name(name)).validate(example)
    if name in COMMANDS:
        assert parse_command(json.dumps(example).encode()).command == name
    if name == "confirmation":
        assert parse_ack(json.dumps(example).encode()) is not None


def test_every_message_has_an_example() -> None:
    assert set(EXAMPLES) == {*COMMANDS, "verdict", "state", "answer", "confirmation"}


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_schema_refuses_what_is_missing(name: str) -> None:
    with pytest.raises(jsonschema.ValidationError):
        validator(name.partition(".")[0]).validate({})


def test_what_the_station_says_may_grow_and_what_it_takes_may_not() -> None:
    validator("verdict").validate(EXAMPLES["verdict"][0] | {"a_field_of_version_1_7": 1})
    inner = json.loads(json.dumps(EXAMPLES["verdict"][0]))
    inner["views"][0]["a_field_of_version_1_7"] = 1
    validator("verdict").validate(inner)
    for name in ("trigger", "confirmation"):
        with pytest.raises(jsonschema.ValidationError):
            validator(schema_name(name)).validate(EXAMPLES[name][0] | {"a_field_nobody_heeds": 1})


def test_the_asyncapi_document_has_what_asyncapi_3_asks_for_and_no_key_that_it_does_not_know() -> None:
    document = json.loads(documents()[ASYNCAPI_FILE])
    assert document["asyncapi"] == "3.0.0"
    assert {"title", "version"} <= document["info"].keys()
    # The fixed fields of the specification, 3.0.0, by object.
    known = {
        "": "asyncapi id info servers defaultContentType channels operations components",
        "channels": "address messages title summary description servers parameters tags externalDocs bindings",
        "operations": "action channel title summary description security tags externalDocs bindings traits messages reply",
        "messages": "headers payload correlationId contentType name title summary description tags externalDocs bindings "
        "examples traits",
    }
    assert document.keys() <= set(known[""].split())
    for kind, objects in (
        ("channels", document["channels"]),
        ("operations", document["operations"]),
        ("messages", document["components"]["messages"]),
    ):
        assert objects
        for name, item in objects.items():
            assert item.keys() <= set(known[kind].split()), f"{kind}.{name}"
    for name, operation in document["operations"].items():
        assert operation["action"] in ("send", "receive"), name
        channel = operation["channel"]["$ref"]
        for message in operation.get("messages", []):
            assert message["$ref"].startswith(f"{channel}/messages/"), f"{name}: a message of another channel"


def references(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
        return own + [found for value in node.values() for found in references(value)]
    return [found for value in node for found in references(value)] if isinstance(node, list) else []


def test_every_reference_of_the_asyncapi_document_leads_somewhere() -> None:
    document = json.loads(documents()[ASYNCAPI_FILE])
    found = set(references(document))
    assert found
    for reference in found:
        node = document
        for step in reference.removeprefix("#/").split("/"):
            node = node[step]


def test_the_asyncapi_document_names_the_topics_of_the_code() -> None:
    document = json.loads(documents()[ASYNCAPI_FILE])
    levels = dict(zip(("enterprise", "site", "area", "line", "station"), TOPIC.split("/"), strict=True))
    assert {channel["address"].format(**levels) for channel in document["channels"].values()} == set(topics(TOPIC).values())


def test_what_a_real_station_says_is_valid_by_the_contract(mosquitto: Mosquitto, make_station: MakeStation) -> None:
    mes = CommandingMes(mosquitto.port, TOPIC, confirm_after_s=0.0)
    station = make_station(mosquitto.port, more='confirm = "mes"\n[evidence]\nmin_free_mib = 0\npassed_share = 1\n')
    for future in submit(station, 30):
        future.result(30)
    for name in ("start", "stop", "replay"):
        fields = {key: value for key, value in EXAMPLES[name][0].items() if key not in ("schema_version", "command")}
        mes.command(name, **fields)
    mes.say("cmd", b"nonsense")
    mes.wait(lambda: mes.answers_to(None))
    wait_until(lambda: len(mes.verdicts) >= 30 and mes.states)
    for verdict in mes.verdicts:
        validator("verdict").validate(verdict)
    assert {verdict["decision"] for verdict in mes.verdicts} == {"pass", "fail"}
    for state in mes.states:
        validator("state").validate(state)
    assert len(mes.answers) == 4
    for _, answer, _ in mes.answers:
        validator("answer").validate(answer)
    mes.close()


def test_the_verdict_that_the_readme_shows_is_valid_by_the_schema() -> None:
    shown = (ROOT / "README.md").read_text(encoding="utf-8").split("```json\n")[1].split("```")[0]
    validator("verdict").validate(json.loads(shown))
    assert json.loads(shown).keys() == EXAMPLES["verdict"][0].keys()
