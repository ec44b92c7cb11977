"""`linegate user` and `linegate audit`: users, tokens and the audit trail of a store, whether its station runs or not.

Rules kept here: a password is asked for or read from a file, never an argument, which everybody on the machine could read; each
change is a line of the trail, by the name of who is logged in to the machine; nothing heavy is imported before a command runs.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import getpass
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from linegate.errors import SettingsError

if TYPE_CHECKING:
    from linegate_edge.review.access.access import Access
    from linegate_edge.review.audit import Actor

_ROLES: Final = ("operator", "quality", "ml", "auditor", "admin")
_SHOWN: Final = 50


def register_people(commands: Any) -> None:
    """Add both commands to the `linegate` command line."""
    user = commands.add_parser("user", help="add and change users and tokens of a station")
    what = user.add_subparsers(metavar="WHAT", required=True)

    add = _command(what, "add", "add a user, who has to choose another password at the first login", _add)
    add.add_argument("name", help="letters, digits and . _ - @ +")
    add.add_argument("role", choices=_ROLES)
    add.add_argument("--password-file", type=Path, metavar="FILE", help="the password (default: a one-time password is made)")

    password = _command(what, "password", "give a user a password, to be changed at the next login", _password)
    password.add_argument("name")
    password.add_argument("--password-file", type=Path, metavar="FILE", help="the password (default: it is asked for)")

    role = _command(what, "role", "give a user another role", _role)
    role.add_argument("name")
    role.add_argument("role", choices=_ROLES)

    disable = _command(what, "disable", "let a user in no more, and end all sessions", _disable)
    disable.add_argument("name")
    disable.add_argument("--undo", action="store_true", help="let the user in again")

    listing = _command(what, "list", "all users", _list)
    listing.add_argument("--json", action="store_true", help="print one JSON object a line")

    token = _command(what, "token", "make a token for a machine, print it once; or revoke one", _token)
    token.add_argument("name", help="of the machine")
    token.add_argument("--role", choices=("machine", *_ROLES), default="machine", help="(default: %(default)s)")
    token.add_argument("--days", type=int, default=365, metavar="N", help="how long it is good (default: %(default)s)")
    token.add_argument("--revoke", action="store_true", help="end the token of this name")

    audit = commands.add_parser("audit", help="read and verify the audit trail of a station")
    what = audit.add_subparsers(metavar="WHAT", required=True)
    check = _command(
        what, "verify", "go through the trail from the first line to the last. Exit status 1: it does not hold", _verify
    )
    check.add_argument("--noted", metavar="DIGEST", help="a digest noted earlier, which the trail must contain")
    check.add_argument("--json", action="store_true", help="print one JSON object")
    _command(what, "head", "number and digest of the last line, to note elsewhere", _head)
    show = _command(what, "show", "the lines of the trail, oldest first", _show)
    show.add_argument("--last", type=int, default=_SHOWN, metavar="N", help="so many of the newest (default: %(default)s)")
    show.add_argument("--json", action="store_true", help="print one JSON object a line")


def _command(commands: Any, name: str, text: str, run: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=f"{text[:1].upper()}{text[1:]}.")
    parser.add_argument("store", type=Path, metavar="STORE", help="folder of the station's store, [station] store")
    parser.set_defaults(run=run)
    return parser


@contextlib.contextmanager
def _access(store: Path, *, look: bool = False) -> Iterator[tuple[Access, Actor]]:
    from linegate_edge.review.access.access import Access
    from linegate_edge.review.access.users import open_store
    from linegate_edge.review.audit import Actor, AuditTrail

    database = open_store(store, look=look)
    try:
        name = f"{_login()} on the command line"
        yield Access(database, AuditTrail(database)), Actor(name, "machine owner")
    finally:
        database.close()


def _login() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return "somebody"


def _add(arguments: argparse.Namespace) -> int:
    given = None if arguments.password_file is None else _read_password(arguments.password_file)
    with _access(arguments.store) as (access, actor):
        made = access.users.add(actor, arguments.name, arguments.role, given)
    print(f"user {arguments.name}: {arguments.role}")
    if made is not None:
        print(f"one-time password: {made}")
    return 0


def _password(arguments: argparse.Namespace) -> int:
    new = _ask_password() if arguments.password_file is None else _read_password(arguments.password_file)
    with _access(arguments.store) as (access, actor):
        access.users.change_password(actor, _plain(arguments.name), new)
    print(f"user {arguments.name}: has to choose another password at the next login; all sessions have ended")
    return 0


def _role(arguments: argparse.Namespace) -> int:
    with _access(arguments.store) as (access, actor):
        access.users.change_role(actor, _plain(arguments.name), arguments.role)
    print(f"user {arguments.name}: {arguments.role}; all sessions have ended")
    return 0


def _disable(arguments: argparse.Namespace) -> int:
    with _access(arguments.store) as (access, actor):
        access.users.disable(actor, _plain(arguments.name), not arguments.undo)
    print(f"user {arguments.name}: {'enabled' if arguments.undo else 'disabled; all sessions have ended'}")
    return 0


def _list(arguments: argparse.Namespace) -> int:
    with _access(arguments.store, look=True) as (access, _):
        found = access.users.list()
    for user, sessions in found:
        shown = {key: value for key, value in dataclasses.asdict(user).items() if key != "password"} | {"sessions": sessions}
        if arguments.json:
            print(json.dumps(shown, ensure_ascii=False))
        else:
            state = "disabled" if user.disabled_at else "one-time password" if user.must_change else "active"
            print(f"{user.name:<24} {user.role:<10} {state:<18} {sessions:>3} sessions  since {user.created_at[:10]}")
    return 0


def _token(arguments: argparse.Namespace) -> int:
    with _access(arguments.store) as (access, actor):
        if arguments.revoke:
            access.tokens.revoke(actor, _plain(arguments.name))
            print(f"token {arguments.name}: revoked")
            return 0
        secret, token = access.tokens.add(actor, arguments.name, arguments.role, arguments.days)
    print(f"token {token.name}: {token.role}, good until {token.expires_at[:10]}", file=sys.stderr)
    print(secret)
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from linegate_edge.review.audit import verify

    report = verify(arguments.store, arguments.noted)
    holds = report.problem is None
    if arguments.json:
        print(json.dumps({"holds": holds, **dataclasses.asdict(report)}, ensure_ascii=False))
    elif holds:
        print(f"the audit trail holds: {report.lines} lines, head {report.head}")
    else:
        print(f"the audit trail does not hold: {report.problem}")
    return 0 if holds else 1


def _head(arguments: argparse.Namespace) -> int:
    with _access(arguments.store, look=True) as (access, _):
        number, digest = access.trail.head()
    print(f"{number} {digest}")
    return 0


def _show(arguments: argparse.Namespace) -> int:
    with _access(arguments.store, look=True) as (access, _):
        lines = access.trail.lines(limit=max(0, arguments.last))
    for line in reversed(lines):
        if arguments.json:
            print(json.dumps(dataclasses.asdict(line), ensure_ascii=False))
        else:
            detail = json.dumps(dict(line.detail), ensure_ascii=False) if line.detail else ""
            who = f"{line.actor} ({line.role})"
            print(f"{line.number:>6} {line.at[:19]}Z  {who}  {line.action}  {line.subject}  {detail}".rstrip())
    return 0


def _plain(name: str) -> str:
    from linegate_edge.review.access.users import plain_name

    return plain_name(name)


def _read_password(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"--password-file {path}: cannot be read: {error}") from error


def _ask_password() -> str:
    if not sys.stdin.isatty():
        raise SettingsError("there is no terminal to ask for the password: give --password-file FILE")
    first = getpass.getpass("new password: ")
    if getpass.getpass("again: ") != first:
        raise SettingsError("the password was not the same both times: nothing was changed")
    return first
