"""A small OpenID Connect provider on loopback, with real signing keys: what a plant's identity provider does, and its faults.

`fault` changes the next ID token, or how it comes; everything else is as OpenID Connect Core 1.0 wants it, PKCE (S256) and the
client's secret checked.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa

CLIENT_ID, CLIENT_SECRET = "linegate-station", "s3cret+with/signs"


class OidcProvider:
    """The provider; `claims` are those of whoever logs in next."""

    def __init__(self) -> None:
        self.claims: dict[str, Any] = {"sub": "u-1", "preferred_username": "Anna.Berg", "roles": ["plant-quality"]}
        self.fault = ""
        self.algorithm = "RS256"
        self.asked: list[str] = []
        self.metadata_changes: dict[str, Any] = {}
        self._codes: dict[str, dict[str, str]] = {}
        self._keys = {
            "RS256": rsa.generate_private_key(public_exponent=65537, key_size=2048),
            "ES256": ec.generate_private_key(ec.SECP256R1()),
        }
        self._other_key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self._generation = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.issuer = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """End the server."""
        self._server.shutdown()
        self._server.server_close()

    def change_keys(self) -> None:
        """Sign by a new key from now on, as providers do now and then."""
        self._keys["RS256"] = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self._generation += 1

    def _kid(self, algorithm: str) -> str:
        return f"{algorithm}-{self._generation}"

    def authorize(self, address: str) -> str:
        """Do what a browser and its user do at the provider: return the address that the browser is sent back to."""
        query = {name: values[0] for name, values in parse_qs(urlsplit(address).query).items()}
        assert query["response_type"] == "code"
        assert query["client_id"] == CLIENT_ID
        assert query["code_challenge_method"] == "S256"
        code = secrets.token_urlsafe(16)
        self._codes[code] = query
        return f"{query['redirect_uri']}?{urlencode({'code': code, 'state': query['state']})}"

    def _id_token(self, asked: dict[str, str]) -> str:
        now = int(time.time())
        claims = {
            "iss": self.issuer,
            "aud": CLIENT_ID,
            "iat": now,
            "exp": now + 300,
            "nonce": asked["nonce"],
            **self.claims,
        }
        changes: dict[str, dict[str, Any]] = {
            "wrong audience": {"aud": "somebody-else"},
            "two audiences without azp": {"aud": [CLIENT_ID, "somebody-else"]},
            "wrong nonce": {"nonce": "of another login"},
            "expired": {"iat": now - 1000, "exp": now - 500},
            "wrong issuer": {"iss": "https://evil.example"},
            "from the future": {"iat": now + 5000, "nbf": now + 5000, "exp": now + 9000},
        }
        claims |= changes.get(self.fault, {})
        if self.fault in ("without nonce", "without exp", "without sub"):
            claims.pop(self.fault.removeprefix("without "))
        if self.fault == "not signed":
            return jwt.encode(claims, "", algorithm="none", headers={"kid": self._kid("RS256")})
        if self.fault == "signed by the secret":
            return jwt.encode(claims, CLIENT_SECRET * 3, algorithm="HS256", headers={"kid": self._kid("RS256")})
        if self.fault == "unknown key":
            return jwt.encode(claims, self._other_key, algorithm="RS256", headers={"kid": "nobody-knows"})
        if self.fault == "forged":
            return jwt.encode(claims, self._other_key, algorithm="RS256", headers={"kid": self._kid("RS256")})
        key: Any = self._keys[self.algorithm]
        return jwt.encode(claims, key, algorithm=self.algorithm, headers={"kid": self._kid(self.algorithm)})

    def _answer(self, path: str, form: dict[str, str], authorization: str) -> tuple[int, dict[str, Any]]:
        self.asked.append(path)
        if path == "/.well-known/openid-configuration":
            return 200, {
                "issuer": self.issuer,
                "authorization_endpoint": f"{self.issuer}/authorize",
                "token_endpoint": f"{self.issuer}/token",
                "jwks_uri": f"{self.issuer}/keys",
            } | self.metadata_changes
        if path == "/keys":
            keys = []
            for algorithm, kind in (("RS256", jwt.algorithms.RSAAlgorithm), ("ES256", jwt.algorithms.ECAlgorithm)):
                key: Any = self._keys[algorithm]
                public = json.loads(kind.to_jwk(key.public_key()))
                keys.append({**public, "kid": self._kid(algorithm), "use": "sig", "alg": algorithm})
            return 200, {"keys": [{"kty": "unheard of"}, *keys]}
        if path == "/token":
            asked = self._codes.pop(form.get("code", ""), None)
            pair = base64.b64decode(authorization.removeprefix("Basic ")).decode()
            client, _, secret = pair.partition(":")
            challenge = base64.urlsafe_b64encode(hashlib.sha256(form.get("code_verifier", "").encode()).digest())
            good = (unquote(client), unquote(secret)) == (CLIENT_ID, CLIENT_SECRET)
            if asked is None or not good or challenge.decode().rstrip("=") != asked["code_challenge"]:
                return 400, {"error": "invalid_grant"}
            if form.get("redirect_uri") != asked["redirect_uri"]:
                return 400, {"error": "invalid_grant"}
            return 200, {"access_token": "x", "token_type": "Bearer", "id_token": self._id_token(asked)}
        return 404, {"error": "not found"}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                to = f"{provider.issuer}/elsewhere" if provider.fault == "redirects" and self.path == "/keys" else None
                if self.path.startswith("/authorize?"):
                    to = provider.authorize(self.path)
                if to is not None:
                    self.send_response(302)
                    self.send_header("Location", to)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self._send({})

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
                self._send({name: values[0] for name, values in parse_qs(body).items()})

            def _send(self, form: dict[str, str]) -> None:
                status, answer = provider._answer(self.path, form, self.headers.get("Authorization", ""))
                body = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        return Handler


@contextmanager
def running_provider() -> Iterator[OidcProvider]:
    """Run a provider."""
    provider = OidcProvider()
    try:
        yield provider
    finally:
        provider.close()
