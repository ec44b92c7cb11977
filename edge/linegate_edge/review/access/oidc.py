"""The plant's identity provider: OpenID Connect, authorization code with PKCE.

Rules kept here: nothing is asked of any host but the issuer's own, without redirects and proxies; an answer to a login that
nobody here began, or that comes twice, or to another browser, is refused; an ID token counts only with a signature by a key of
the issuer (RS256 or ES256), for this client, of this login (nonce), and not over (OpenID Connect Core 1.0, 3.1.3.7). The role
comes from a claim through `[access] oidc_roles`; who has none of them does not come in. Users and sessions are left to others.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import secrets
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote, urlencode, urlsplit

from linegate.errors import AccessError, SettingsError
from linegate_edge.access_settings import AccessSection, is_safe_address

log = logging.getLogger("linegate.access")
ALGORITHMS: Final = ("RS256", "ES256")
_TIMEOUT_S: Final = 5.0
_MAX_ANSWER: Final = 1 << 20
_LEEWAY_S: Final = 60
_LOGIN_S: Final = 600.0
_LOGINS_IN_HAND: Final = 256
_DISCOVER_EVERY_S: Final = 3600.0
_KEYS_EVERY_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Begun:
    """A login that was begun: where it comes back to, and what proves that it is this one."""

    nonce: str
    verifier: str
    redirect_uri: str
    next: str
    browser: str
    until: float


@dataclass(frozen=True, slots=True)
class Identity:
    """Who the provider says it is."""

    issuer: str
    subject: str
    name: str
    role: str


class Provider:
    """The provider of the settings; all methods may be called from any thread, and ask the network while they do.

    Raises:
        SettingsError: a file that the settings name cannot be used, or PyJWT is not there.
    """

    def __init__(self, settings: AccessSection, clock: Callable[[], float] = time.monotonic) -> None:
        try:
            import jwt  # only a station with a provider needs it
        except ImportError as error:  # pragma: no cover
            raise SettingsError("[access] oidc_issuer needs PyJWT: pip install 'pyjwt[crypto]'") from error
        assert settings.oidc_issuer is not None
        self._jwt, self._settings, self._clock = jwt, settings, clock
        self.issuer = settings.oidc_issuer
        self._client_id = settings.oidc_client_id or ""
        self._lock = threading.Lock()
        self._begun: OrderedDict[str, Begun] = OrderedDict()
        self._metadata: tuple[float, Mapping[str, Any]] | None = None
        self._keys: dict[str, Any] = {}
        self._keys_at = -_KEYS_EVERY_S
        self._opener = self._make_opener()
        self._secret()

    def begin(self, redirect_uri: str, next_path: str) -> tuple[str, str]:
        """Begin a login: return the provider's address to go to, and the secret that the browser keeps meanwhile.

        Raises:
            AccessError: the provider cannot be reached.
        """
        metadata = self._discover()
        state, browser = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
        nonce, verifier = secrets.token_urlsafe(32), secrets.token_urlsafe(48)
        now = self._clock()
        with self._lock:
            while self._begun and (next(iter(self._begun.values())).until <= now or len(self._begun) >= _LOGINS_IN_HAND):
                self._begun.popitem(last=False)
            self._begun[state] = Begun(nonce, verifier, redirect_uri, next_path, _digest(browser), now + _LOGIN_S)
        challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).decode().rstrip("=")
        query = {
            "response_type": "code",
            "client_id": self._client_id,
            "redirect_uri": redirect_uri,
            "scope": " ".join(self._settings.oidc_scopes),
            "state": state,
            "nonce": nonce,
            "code_challenge": challenge,
            "code_challenge_method": "S256",
        }
        endpoint = metadata["authorization_endpoint"]
        return f"{endpoint}{'&' if urlsplit(endpoint).query else '?'}{urlencode(query)}", browser

    def finish(self, state: str, code: str, browser: str) -> tuple[Identity, str]:
        """End a login with what the provider's redirect brought; return who it is, and where to go.

        Raises:
            AccessError: it is not a login that was begun here, or what the provider says does not hold.
        """
        with self._lock:
            begun = self._begun.pop(state, None)  # used up, whatever comes of it
        if begun is None or begun.until <= self._clock():
            raise AccessError("this login was not begun here, is over, or was used already: begin again", 401)
        if not hmac.compare_digest(begun.browser, _digest(browser)):
            raise AccessError("this login was begun in another browser: begin again", 401)
        claims = self._verify(self._redeem(code, begun), begun.nonce)
        name = claims.get(self._settings.oidc_name_claim) or claims.get("email") or claims["sub"]
        return Identity(self.issuer, str(claims["sub"]), str(name), self._role(claims)), begun.next

    def probe(self) -> int:
        """Ask the provider for what every login needs, and return how many of its keys could sign one.

        Raises:
            AccessError: it cannot be reached, or is not the provider of the settings.
        """
        return sum(key.algorithm_name in ALGORITHMS for key in self._ask_for_keys().values())

    # -- what the provider says --------------------------------------------------------------------------------------

    def _role(self, claims: Mapping[str, Any]) -> str:
        value: Any = claims
        for step in [self._settings.oidc_role_claim] if self._settings.oidc_role_claim in claims else self._steps:
            value = value.get(step) if isinstance(value, Mapping) else None
        has = (
            {value}
            if isinstance(value, str)
            else {item for item in value if isinstance(item, str)}
            if isinstance(value, list)
            else set()
        )
        for group, role in self._settings.oidc_roles.items():
            if group in has:
                return role
        claim = self._settings.oidc_role_claim
        raise AccessError(f"the provider's claim '{claim}' names no role of this station: [access] oidc_roles", 403)

    @property
    def _steps(self) -> list[str]:
        return self._settings.oidc_role_claim.split(".")

    def _verify(self, id_token: str, nonce: str) -> Mapping[str, Any]:
        jwt = self._jwt
        try:
            header = jwt.get_unverified_header(id_token)
            if header.get("alg") not in ALGORITHMS:
                raise AccessError(
                    f"the ID token is signed by {header.get('alg')!r:.20}, expected {' or '.join(ALGORITHMS)}", 401
                )
            key = self._key(header.get("kid"), str(header["alg"]))
            claims: Mapping[str, Any] = jwt.decode(
                id_token,
                key,
                algorithms=[header["alg"]],
                audience=self._client_id,
                issuer=self.issuer,
                leeway=_LEEWAY_S,
                options={"require": ["exp", "iat", "aud", "iss", "sub"]},
            )
        except jwt.PyJWTError as error:
            raise AccessError(f"the ID token does not hold: {error}", 401) from error
        if not hmac.compare_digest(str(claims.get("nonce", "")).encode(), nonce.encode()):
            raise AccessError("the ID token does not hold: it is of another login (nonce)", 401)
        parties = claims["aud"] if isinstance(claims["aud"], list) else [claims["aud"]]
        if (len(parties) > 1 or "azp" in claims) and claims.get("azp") != self._client_id:
            raise AccessError("the ID token does not hold: it was made for another client (azp)", 401)
        return claims

    def _key(self, kid: object, algorithm: str) -> Any:
        """Return the issuer's key of this name; its keys are asked for anew where it has changed them."""
        with self._lock:
            key, asked_at = self._find_key(kid, algorithm), self._keys_at
        if key is None and self._clock() - asked_at >= _KEYS_EVERY_S:
            keys = self._ask_for_keys()
            with self._lock:
                self._keys, self._keys_at = keys, self._clock()
                key = self._find_key(kid, algorithm)
        if key is None:
            raise AccessError("the ID token does not hold: it is signed by a key that the provider does not name", 401)
        return key

    def _ask_for_keys(self) -> dict[str, Any]:
        found = self._ask("jwks_uri", self._discover()["jwks_uri"])
        keys = {}
        for position, item in enumerate(found.get("keys", [])):
            try:
                made = self._jwt.PyJWK(item)
            except (self._jwt.PyJWTError, AttributeError, TypeError, KeyError, ValueError):
                continue  # of a kind that is not for us
            if item.get("use", "sig") == "sig":
                keys[str(item.get("kid", f"#{position}"))] = made
        return keys

    def _find_key(self, kid: object, algorithm: str) -> Any | None:
        fitting = {name: key for name, key in self._keys.items() if key.algorithm_name == algorithm}
        if kid is None:
            return next(iter(fitting.values())) if len(fitting) == 1 else None
        return fitting.get(str(kid))

    # -- the network ---------------------------------------------------------------------------------------------------

    def _discover(self) -> Mapping[str, Any]:
        now = self._clock()
        if self._metadata is not None and now - self._metadata[0] < _DISCOVER_EVERY_S:
            return self._metadata[1]
        found = self._ask("discovery", f"{self.issuer.rstrip('/')}/.well-known/openid-configuration")
        if found.get("issuer") != self.issuer:
            raise AccessError(
                f"the provider calls itself {found.get('issuer')!r:.128}, not {self.issuer}: [access] oidc_issuer", 502
            )
        for name in ("authorization_endpoint", "token_endpoint", "jwks_uri"):
            address = found.get(name)
            if not isinstance(address, str) or not is_safe_address(address.partition("?")[0]):
                raise AccessError(f"the provider's {name} is no https address: {address!r:.128}", 502)
            if urlsplit(address).netloc.lower() != urlsplit(self.issuer).netloc.lower():
                raise AccessError(f"the provider's {name} is on another host than [access] oidc_issuer: {address[:128]}", 502)
        self._metadata = (now, found)
        return found

    def _redeem(self, code: str, begun: Begun) -> str:
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": begun.redirect_uri,
            "client_id": self._client_id,
            "code_verifier": begun.verifier,
        }
        metadata, headers, secret = self._discover(), {}, self._secret()
        if secret is not None:
            methods = metadata.get("token_endpoint_auth_methods_supported", ["client_secret_basic"])
            if "client_secret_basic" in methods:
                # Both are form-encoded before they are joined (RFC 6749, 2.3.1).
                pair = f"{quote(self._client_id, safe='')}:{quote(secret, safe='')}"
                headers["Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
            else:
                form["client_secret"] = secret
        answer = self._ask("token endpoint", metadata["token_endpoint"], urlencode(form).encode(), headers)
        if not isinstance(answer.get("id_token"), str):
            raise AccessError("the provider's token endpoint gave no ID token", 502)
        return str(answer["id_token"])

    def _ask(
        self, what: str, address: str, data: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Mapping[str, Any]:
        request = urllib.request.Request(address, data, {"Accept": "application/json", **(headers or {})})
        try:
            with self._opener.open(request, timeout=_TIMEOUT_S) as response:
                body = response.read(_MAX_ANSWER + 1)
            found = json.loads(body) if len(body) <= _MAX_ANSWER else None
        except urllib.error.HTTPError as error:
            error.close()
            refused = error.code in (400, 401, 403) and data is not None
            raise AccessError(f"the provider's {what} answers {error.code}", 401 if refused else 502) from error
        except (OSError, ValueError) as error:
            raise AccessError(f"the provider's {what} at {address[:128]} cannot be asked: {error}", 502) from error
        if not isinstance(found, dict):
            raise AccessError(f"the provider's {what} at {address[:128]} gives no JSON object", 502)
        return found

    def _make_opener(self) -> urllib.request.OpenerDirector:
        ca_file = self._settings.oidc_ca_file
        try:
            context = ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
        except (OSError, ssl.SSLError) as error:
            raise SettingsError(f"[access] oidc_ca_file {ca_file}: {error}: give the CA's certificate, in PEM") from error
        handlers = (urllib.request.ProxyHandler({}), _NoRedirects(), urllib.request.HTTPSHandler(context=context))
        return urllib.request.build_opener(*handlers)

    def _secret(self) -> str | None:
        """Return the client's secret, read anew each time: it may have been changed meanwhile."""
        path = self._settings.oidc_client_secret_file
        if path is None:
            return None
        try:
            return path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"[access] oidc_client_secret_file {path}: cannot be read: {error}") from error


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None  # the answer stays the redirect, which is an error here


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
