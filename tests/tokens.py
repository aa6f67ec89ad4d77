"""Tokens for tests, good and bad: put together from their parts, and signed with keys that are made here once."""

from __future__ import annotations

import base64
import functools
import json
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from jwt.algorithms import get_default_algorithms

if TYPE_CHECKING:
    from collections.abc import Mapping

NOW = 1_800_000_000.0
SECRET = b"a secret of thirty-two bytes, ok"
ALGORITHMS = get_default_algorithms()

_MAKERS = {
    "rsa": lambda: rsa.generate_private_key(65_537, 2048),
    "rsa 2": lambda: rsa.generate_private_key(65_537, 2048),
    "rsa 1024": lambda: rsa.generate_private_key(65_537, 1024),
    "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "P-256 2": lambda: ec.generate_private_key(ec.SECP256R1()),
    "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "P-521": lambda: ec.generate_private_key(ec.SECP521R1()),
    "secp256k1": lambda: ec.generate_private_key(ec.SECP256K1()),
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
    "Ed448": ed448.Ed448PrivateKey.generate,
}


@functools.cache
def private_key(name: str) -> Any:
    return _MAKERS[name]()


def public_pem(name: str) -> bytes:
    return private_key(name).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def private_pem(name: str) -> bytes:
    return private_key(name).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def jwk(name: str, **more: Any) -> dict[str, Any]:
    """The public key as an entry of a key set; a member that is None is left out."""
    algorithm = ALGORITHMS["RS256" if name.startswith("rsa") else "EdDSA" if name.startswith("Ed") else "ES256"]
    entry = {**algorithm.to_jwk(private_key(name).public_key(), as_dict=True), **more}
    return {member: value for member, value in entry.items() if value is not None}


def key_set(*entries: Any) -> bytes:
    return json.dumps({"keys": entries}).encode()


def encoded(data: bytes | str) -> str:
    """base64url without padding."""
    return base64.urlsafe_b64encode(data.encode() if isinstance(data, str) else data).rstrip(b"=").decode()


def claims(**changes: Any) -> dict[str, Any]:
    """Good ones, changed; a claim that is None is left out."""
    all_of_them = {"sub": "ada", "exp": NOW + 600, **changes}
    return {name: value for name, value in all_of_them.items() if value is not None}


def token(
    payload: Mapping[str, Any] | bytes | str | None = None,
    *,
    key: Any = SECRET,
    algorithm: str = "HS256",
    header: Mapping[str, Any] | bytes | str | None = None,
) -> str:
    """A token with a good signature by `algorithm`, whatever it says. Bytes and str are taken as they are."""
    if payload is None or not isinstance(payload, bytes | str):
        payload = json.dumps(claims() if payload is None else payload)
    if header is None or not isinstance(header, bytes | str):
        header = json.dumps({"alg": algorithm, "typ": "JWT", **(header or {})})
    return signed(f"{encoded(header)}.{encoded(payload)}", key, algorithm)


def signed(text: str, key: Any = SECRET, algorithm: str = "HS256") -> str:
    return f"{text}.{encoded(ALGORITHMS[algorithm].sign(text.encode(), key))}"
