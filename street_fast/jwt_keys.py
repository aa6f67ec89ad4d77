"""The keys that a JSON Web Token may be signed with, and what each of them is good for.

A Key is bound to its algorithms when it is made: by its type and curve, by what its issuer says of it, and by what the
application allows. A token can only choose among the keys that are for the algorithm it names, so that no token turns
a public key into the secret of an HMAC, or one curve into another (RFC 8725 sections 2.1 and 3.1).

PyJWT, and cryptography behind it, make and use the keys. They are imported here and nowhere else, when the first key is
wanted. No message of this module holds any part of a key.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from street_fast.errors import ConfigurationError

if TYPE_CHECKING:
    from jwt.algorithms import Algorithm

__all__ = ["PUBLIC_ALGORITHMS", "SECRET_ALGORITHMS", "Key", "checked_algorithms", "given_keys", "keys_of_set"]

_FAMILIES = {
    "oct": ("HS256", "HS384", "HS512"),
    "RSA": ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    "P-256": ("ES256",),
    "P-384": ("ES384",),
    "P-521": ("ES512",),
    "Ed25519": ("EdDSA",),
    "Ed448": ("EdDSA",),
}
"""The algorithms of a key by its type, or its curve where it has one; the first is the usual one."""

SECRET_ALGORITHMS = frozenset(_FAMILIES["oct"])
PUBLIC_ALGORITHMS = frozenset(name for names in _FAMILIES.values() for name in names) - SECRET_ALGORITHMS

_SECRET_BYTES = {"HS256": 32, "HS384": 48, "HS512": 64}
"""As long as the digest (RFC 7518 section 3.2)."""

_RSA_BITS = 2048  # RFC 7518 section 3.3

_PUBLIC_MEMBERS = {"RSA": ("kty", "n", "e"), "EC": ("kty", "crv", "x", "y"), "OKP": ("kty", "crv", "x")}
"""What makes a public key of a JWK (RFC 7518 section 6). A private half beside it is left where it is."""


class Key(NamedTuple):
    """A key that signatures are checked with; `id` is its ``kid`` in a set, or None."""

    id: str | None
    algorithms: Mapping[str, Algorithm]
    value: Any  # what PyJWT has prepared of it

    def has_signed(self, algorithm: str, message: bytes, signature: bytes) -> bool:
        """Whether the signature of `message` is good. `algorithm` is one of the key's."""
        return self.algorithms[algorithm].verify(message, self.value, signature)


@functools.cache
def _pyjwt() -> dict[str, Algorithm]:
    """The algorithms of PyJWT by name."""
    try:
        from jwt.algorithms import get_default_algorithms
    except ImportError as error:
        raise ConfigurationError("JwtAuth needs PyJWT: pip install 'street_fast[jwt]'") from error
    algorithms = get_default_algorithms()
    if not algorithms.keys() >= PUBLIC_ALGORITHMS:
        raise ConfigurationError("JwtAuth needs cryptography beside PyJWT: pip install 'street_fast[jwt]'")
    return algorithms


def _key(key_id: str | None, algorithms: Collection[str], value: Any) -> Key:
    return Key(key_id, {name: _pyjwt()[name] for name in sorted(algorithms)}, value)


def checked_algorithms(names: object) -> frozenset[str] | None:
    """The option `algorithms`: None leaves it to the keys.

    Raises ConfigurationError for a bad one, and if PyJWT is not there.
    """
    _pyjwt()
    if names is None:
        return None
    if isinstance(names, str) or not isinstance(names, Collection) or not names:
        raise ConfigurationError(f"algorithms={names!r}: must be a list of names, such as ['RS256'], or None")
    known = SECRET_ALGORITHMS | PUBLIC_ALGORITHMS
    for name in names:
        if not isinstance(name, str) or name not in known:
            why = "is no signature" if isinstance(name, str) and name.lower() == "none" else "is not known"
            raise ConfigurationError(f"algorithms: {name!r} {why}; choose from {', '.join(sorted(known))}")
    allowed = frozenset(names)
    if not (allowed <= SECRET_ALGORITHMS or allowed <= PUBLIC_ALGORITHMS):
        raise ConfigurationError(
            f"algorithms={sorted(allowed)}: HS256, HS384 and HS512 do not go with the others, because a public key "
            f"could then be taken for the secret"
        )
    return allowed


# --- keys that the application has ---


def given_keys(given: object, allowed: frozenset[str] | None) -> list[Key]:
    """The option `key`: secrets or public keys. `allowed` is of `checked_algorithms`. Raises ConfigurationError."""
    documents: list[bytes] = []
    for text in given if isinstance(given, list | tuple) else [given]:
        if not isinstance(text, str | bytes):
            raise ConfigurationError(f"key: must be a str or bytes, or a list of them, not {type(text).__name__}")
        documents.append(text.encode() if isinstance(text, str) else text)
    if not documents:
        raise ConfigurationError("key: there is none in the list")
    public = [b"-----BEGIN " in document for document in documents]
    if any(public) and not all(public):
        raise ConfigurationError("key: secrets and public keys do not mix")
    make = _public_key if public[0] else _secret
    return [make(document, allowed) for document in documents]


def _secret(secret: bytes, allowed: frozenset[str] | None) -> Key:
    algorithms = sorted(allowed or {"HS256"})
    if not SECRET_ALGORITHMS.issuperset(algorithms):
        raise ConfigurationError(
            f"key: is a secret, and algorithms={algorithms} want a public key (-----BEGIN PUBLIC KEY-----)"
        )
    least = max(_SECRET_BYTES[name] for name in algorithms)
    if len(secret) < least:
        raise ConfigurationError(
            f"key: a secret for {', '.join(algorithms)} must have at least {least} bytes, and this one has "
            f"{len(secret)}; make one with: python -c 'import secrets; print(secrets.token_hex({least}))'"
        )
    try:
        value = _pyjwt()["HS256"].prepare_key(secret)
    except Exception:  # PyJWT knows it: OpenSSH, a JWK
        value = None
    if value is None or _is_der(secret):
        raise ConfigurationError("key: is no secret but a key of another kind; a public key must be PEM")
    return _key(None, algorithms, value)


def _is_der(data: bytes) -> bool:
    """Whether it is a public key or a certificate in DER: one SEQUENCE, an OBJECT IDENTIFIER near its beginning.

    Older PyJWTs take it for a secret, and everybody may know it.
    """
    size, start = data[1], 2
    if size > 0x80:
        start += size - 0x80
        size = int.from_bytes(data[2:start], "big")
    return data[0] == 0x30 and start + size == len(data) and 0x06 in data[:64]


def _public_key(pem: bytes, allowed: frozenset[str] | None) -> Key:
    if pem.count(b"-----BEGIN ") > 1:
        raise ConfigurationError("key: there are several in one PEM; give a list with each of them")
    for name in ("RS256", "ES256", "ES384", "ES512", "EdDSA"):
        algorithm = _pyjwt()[name]
        try:
            value = algorithm.prepare_key(pem)
            described = algorithm.to_jwk(value, as_dict=True)
        except Exception:  # noqa: S112 - it is of another kind
            continue
        return _described_key(described, value, allowed)
    raise ConfigurationError(
        "key: is no public key that is understood: a PEM that begins with -----BEGIN PUBLIC KEY-----, of RSA, "
        "EC P-256/P-384/P-521, Ed25519 or Ed448 (no certificate)"
    )


def _described_key(described: Mapping[str, Any], value: Any, allowed: frozenset[str] | None) -> Key:
    kind = described.get("crv", described["kty"])
    if "d" in described:
        raise ConfigurationError("key: is a private key; to check signatures, the public half of it is enough")
    if kind not in _FAMILIES:
        raise ConfigurationError(f"key: is on the curve {kind}; use P-256, P-384, P-521, Ed25519 or Ed448")
    if kind == "RSA" and value.key_size < _RSA_BITS:
        raise ConfigurationError(f"key: is an RSA key of {value.key_size} bits; it must have at least {_RSA_BITS}")
    family = _FAMILIES[kind]
    algorithms = allowed.intersection(family) if allowed else frozenset(family[:1])
    if not algorithms:
        raise ConfigurationError(
            f"key: is for {', '.join(family)}, and algorithms={sorted(allowed or ())} has none of them"
        )
    return _key(None, algorithms, value)


# --- keys that an issuer publishes ---


def keys_of_set(document: bytes, allowed: frozenset[str] | None) -> list[Key]:
    """The keys of a JSON Web Key Set that can be used (RFC 7517 section 5). Raises ValueError if there are none.

    Those are passed over that are for encryption, secret, broken, of an unknown kind, or for no `allowed` algorithm.
    """
    try:
        content = orjson.loads(document)
    except orjson.JSONDecodeError:
        raise ValueError("it is not JSON") from None
    entries = content.get("keys") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise ValueError('it is no JSON Web Key Set, which is {"keys": [...]}')
    keys = [key for entry in entries if isinstance(entry, dict) and (key := _published_key(entry, allowed))]
    if not keys:
        raise ValueError(f"none of its {len(entries)} keys can be used")
    return keys


def _published_key(entry: Mapping[str, Any], allowed: frozenset[str] | None) -> Key | None:
    kind, named, operations = entry.get("kty"), entry.get("alg"), entry.get("key_ops", ["verify"])
    if entry.get("use", "sig") != "sig" or not isinstance(operations, list) or "verify" not in operations:
        return None
    if not isinstance(kind, str) or kind not in _PUBLIC_MEMBERS:
        return None
    family = _FAMILIES.get(str(kind if kind == "RSA" else entry.get("crv")), ())
    if named is not None:
        family = tuple(name for name in family if name == named)
    elif not allowed:
        family = family[:1]
    algorithms = [name for name in family if not allowed or name in allowed]
    if not algorithms:
        return None
    try:
        value: Any = _pyjwt()[algorithms[0]].from_jwk({name: entry[name] for name in _PUBLIC_MEMBERS[kind]})
    except Exception:  # whatever a broken key makes of it
        return None
    if kind == "RSA" and value.key_size < _RSA_BITS:
        return None
    key_id = entry.get("kid")
    return _key(key_id if isinstance(key_id, str) else None, algorithms, value)
