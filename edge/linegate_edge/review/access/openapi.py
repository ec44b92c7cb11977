"""What access adds to `/openapi.json`: how to show who asks, and that any route may refuse.

Rules kept here: it is made from `policy.ROUTES`, so that the document cannot say otherwise than the gate does.
"""

from __future__ import annotations

from typing import Any, Final

from fastapi import FastAPI

from linegate_edge.review.access.client import COOKIE
from linegate_edge.review.access.policy import ROUTES
from linegate_edge.review.access.roles import LOOPBACK, Permission
from linegate_edge.review.answers import ERROR_SCHEMA

_SCHEMES: Final = {
    "session": {"type": "apiKey", "in": "cookie", "name": COOKIE, "description": "Changes need X-CSRF-Token as well."},
    "token": {"type": "http", "scheme": "bearer", "description": "A machine's token, made by an admin."},
}
_REFUSALS: Final = {
    "401": "Nobody is logged in, or the session or token is over",
    "403": "The role may not, or the X-CSRF-Token is missing",
    "421": "The Host is no name of this station",
}
_OF_BODIES: Final = {"400": "The body cannot be read", "413": "The body is too large"}
_ERROR: Final = {"application/json": {"schema": {"$ref": ERROR_SCHEMA}}}


def describe_access(app: FastAPI) -> None:
    """Have the application's OpenAPI document tell of permissions, logins and refusals."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = made()
            document["components"]["securitySchemes"] = _SCHEMES
            for address, item in document["paths"].items():
                for method, operation in item.items():
                    _describe(operation, ROUTES.get((method.upper(), address)))
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _describe(operation: dict[str, Any], permission: Permission | None) -> None:
    responses = operation["responses"]
    for status, text in _REFUSALS.items():
        if status == "421" or permission is not Permission.PUBLIC:
            responses.setdefault(status, {"description": text, "content": _ERROR})
    if "requestBody" in operation:
        for status, text in _OF_BODIES.items():
            responses.setdefault(status, {"description": text, "content": _ERROR})
    if permission is None:
        return
    operation["x-permission"] = str(permission)
    if permission is not Permission.PUBLIC:
        operation["security"] = [{"session": []}, {"token": []}, *([{}] if permission in LOOPBACK else [])]
