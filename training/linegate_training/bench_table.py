"""What `linegate bench accuracy` measured: a JSON file beside the README, and the table in it.

Rules kept here: the table is rendered from the JSON file alone; a row that was not measured this time keeps its numbers and
date; of the README only what stands between the markers is touched; files appear whole or not at all. Measuring is left to
`bench_accuracy`.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from linegate.errors import SettingsError
from linegate_training.bench_rows import Measure, Row

BEGIN: Final = "<!-- bench accuracy: begin -->"
END: Final = "<!-- bench accuracy: end -->"
JSON_NAME: Final = "accuracy.json"
FORMAT: Final = 1
_HEAD: Final = (
    "| row | data, regime | measure | elsewhere | floor | goal | measured | reached | ms an image | minutes | date |",
    "|---|---|---|---|---|---|---|---|---|---|---|",
)


def check_readme(readme: Path) -> None:
    """Find out before hours of training, not after them, that the table cannot be written.

    Raises:
        SettingsError: the file is missing, cannot be written, or lacks the markers; or what lies beside it is damaged.
    """
    _split(readme)
    read_record(readme)
    try:
        tempfile.TemporaryFile(dir=readme.absolute().parent).close()
    except OSError as error:
        raise SettingsError(f"--readme {readme}: cannot be written ({error.strerror}): name another file") from error


def read_record(readme: Path) -> dict[str, Any]:
    """Return the rows measured so far, by name.

    Raises:
        SettingsError: the file is damaged or of another format.
    """
    path = readme.with_name(JSON_NAME)
    try:
        if not path.exists():
            return {}
        values = json.loads(path.read_text(encoding="utf-8"))
        rows = values["rows"] if values["format"] == FORMAT else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SettingsError(f"{path}: is damaged: mend it, or move it away and measure again") from error
    if not isinstance(rows, dict):
        raise SettingsError(f"{path}: is of another format than {FORMAT}: move it away and measure again")
    return rows


def record_of(row: Row, cases: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return what the JSON file keeps of a row that was measured in `cases`."""
    measures = {}
    for measure in row.measures:
        value = row.value(cases, measure)
        measures[measure.key] = {
            "value": value,
            "by_case": row.values(cases, measure),
            "floor": measure.floor,
            "goal": measure.goal,
            "floor_reached": measure.reached(value, measure.floor),
            "goal_reached": measure.reached(value, measure.goal),
        }
    minutes, ms = sum(case["minutes"] for case in cases), sum(case["values"]["ms_per_image"] for case in cases) / len(cases)
    environments: list[Any] = []
    for case in cases:
        if case["environment"] not in environments:
            environments.append(case["environment"])
    return {
        "data": row.data,
        "regime": row.regime,
        "command": command_words(row),
        "measures": measures,
        "cases": [{key: value for key, value in case.items() if key not in ("environment", "stated")} for case in cases],
        "cases_asked": len(row.cases) or len(cases),
        "minutes": round(minutes, 2),
        "ms_per_image": round(ms, 2),
        "date": max(case["measured_at"] for case in cases)[:10],
        "environments": environments,
        "one_code": len({case["code"] for case in cases}) == 1,
    }


def is_whole(entry: Mapping[str, Any]) -> bool:
    """Say whether all cases of a row were measured."""
    return len(entry["cases"]) >= int(entry["cases_asked"])


def write_table(readme: Path, name: str, entry: dict[str, Any], table: Sequence[Row]) -> bool:
    """Put a row into the JSON file, render the README's table, and say whether that was done.

    It is not where fewer cases were measured than stand there already.

    Raises:
        SettingsError: a file cannot be read or written, or lost its markers.
    """
    rows = read_record(readme)
    kept = name in rows and is_whole(rows[name]) and not is_whole(entry)
    if not kept:
        rows[name] = entry
    text = json.dumps({"format": FORMAT, "rows": rows}, ensure_ascii=False, allow_nan=False, indent=1, sort_keys=True)
    before, after = _split(readme)
    _write(readme.with_name(JSON_NAME), text + "\n")
    _write(readme, f"{before}{BEGIN}\n{render(rows, table)}\n{END}{after}")
    return not kept


def render(rows: Mapping[str, Any], table: Sequence[Row]) -> str:
    """Return the table in Markdown, one line for each measure, then how and with what each row was made."""
    lines = [*_HEAD]
    for row in table:
        for number, measure in enumerate(row.measures):
            lines.append(_line(row, measure, rows.get(row.name), first=number == 0))
    measured = [row for row in table if row.name in rows]
    if measured:
        lines += [
            "",
            "Made by:",
            "",
            *(f"- {row.name}: `{rows[row.name]['command']}`{_notes(rows[row.name])}" for row in measured),
        ]
        lines += ["", "Made with:", "", *_environments([(row.name, rows[row.name]) for row in measured])]
    return "\n".join(lines)


def command_words(row: Row) -> str:
    """Return the command that trains a row's package, N in place of fold or seed."""
    if row.data is None:
        return "linegate bench accuracy " + row.name
    words = ["linegate", "train", row.data, "--out", "PACKAGE", *row.options(None)[0]]
    return " ".join([*words, *([row.case_option, "N"] if row.cases else [])])


def shown(measure: Measure, value: float) -> str:
    """Return a value with so many digits that it lies on the same side of floor and goal as the unrounded one."""
    digits = measure.digits
    while digits < 6 and any(
        measure.reached(value, limit) != measure.reached(float(f"{value:.{digits}f}"), limit)
        for limit in (measure.floor, measure.goal)
    ):
        digits += 1
    return f"{value:.{digits}f}"


def standing(measure: Measure, value: float) -> str:
    """Say in words whether floor and goal are reached, and how far the goal is."""
    if measure.reached(value, measure.goal):
        return "goal"
    distance = f"goal {abs(measure.goal - value):.{max(measure.digits, 1)}f} away"
    return f"floor; {distance}" if measure.reached(value, measure.floor) else f"**below floor**; {distance}"


def _line(row: Row, measure: Measure, entry: Mapping[str, Any] | None, first: bool) -> str:
    head = [row.name, f"{row.data or 'models/'}, {row.regime}"] if first else ["", ""]
    head += [measure.words, measure.elsewhere, f"{measure.floor:g}", f"{measure.goal:g}"]
    if entry is None or any(measure.key not in case["values"] for case in entry["cases"]):
        return _joined([*head, "not measured", "–", "–", "–", "–"])
    value = row.value(entry["cases"], measure)
    cells = [_measured(row, measure, entry, value), standing(measure, value)]
    minutes = f"{entry['minutes']:.1f}" if row.data is not None else "–"
    last = [f"{entry['ms_per_image']:.1f}", minutes, entry["date"]] if first else ["", "", ""]
    return _joined([*head, *cells, *last])


def _measured(row: Row, measure: Measure, entry: Mapping[str, Any], value: float) -> str:
    cases = entry["cases"]
    if row.data is None:
        each = ", ".join(f"{case['label']} {shown(measure, case['values'][measure.key])}" for case in cases)
        return f"**{shown(measure, value)}** ({each})"
    if len(cases) == 1 and not row.cases:
        return f"**{shown(measure, value)}**"
    each = ", ".join(f"{one:.{measure.digits}f}" for one in row.values(cases, measure))
    kind = row.case_option.removeprefix("--") + "s"
    count = f"{len(cases)}" if is_whole(entry) else f"only {len(cases)} of {entry['cases_asked']}"
    return f"**{shown(measure, value)}** ({each}; mean of {count} {kind})"


def _notes(entry: Mapping[str, Any]) -> str:
    cases = entry["cases"]
    notes = [f"{case['label']}: {case['note']}" for case in cases if case.get("note")]
    if not is_whole(entry):
        notes.append("only " + ", ".join(case["label"] for case in cases))
    if any(case.get("resumed") for case in cases):
        notes.append("minutes since the training was last resumed")
    if not entry["one_code"]:
        notes.append("not all by the same code")
    if any(case["values"].get("seen_in_training") for case in cases):
        notes.append("some test parts were learned from")
    return f" ({'; '.join(notes)})" if notes else ""


def _environments(entries: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """Return one line for each set of versions and machine, with the rows made there."""
    made: dict[str, list[str]] = {}
    for name, entry in entries:
        for environment in entry["environments"]:
            versions = ", ".join(f"{library} {version}" for library, version in environment["versions"].items())
            made.setdefault(f"{versions}; {environment['cpu']}, {environment['cores']} cores", []).append(name)
    return [f"- {words}: {', '.join(names) if len(made) > 1 else 'all rows'}" for words, names in made.items()]


def _joined(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _split(readme: Path) -> tuple[str, str]:
    """Return what stands before and after the markers."""
    try:
        text = readme.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise SettingsError(f"--readme {readme}: no such file: name one that holds the lines {BEGIN} and {END}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"--readme {readme}: cannot be read as text: name another file") from error
    before, begun, rest = text.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not begun or not ended or BEGIN in rest:
        raise SettingsError(f"--readme {readme}: put the lines {BEGIN} and {END}, once each, where the table shall stand")
    return before, after


def _write(path: Path, text: str) -> None:
    staging = path.with_name(f".{path.name}.new")
    try:
        with staging.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        staging.replace(path)
    except OSError as error:
        staging.unlink(missing_ok=True)
        raise SettingsError(f"{path}: cannot be written ({error.strerror}): name another --readme") from error
