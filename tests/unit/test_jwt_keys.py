"""Keys are bound to what they are for; what is no key says so, without showing any of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from street_fast import jwt_keys
from street_fast.errors import ConfigurationError
from street_fast.jwt_keys import PUBLIC_ALGORITHMS, SECRET_ALGORITHMS, checked_algorithms, given_keys, keys_of_set
from tests.tokens import ALGORITHMS, SECRET, jwk, key_set, private_key, private_pem, public_pem

ROOT = Path(__file__).resolve().parents[2]

KINDS = {
    "rsa": {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"},
    "P-256": {"ES256"},
    "P-384": {"ES384"},
    "P-521": {"ES512"},
    "Ed25519": {"EdDSA"},
    "Ed448": {"EdDSA"},
}
USUAL = {"rsa": "RS256", "P-256": "ES256", "P-384": "ES384", "P-521": "ES512", "Ed25519": "EdDSA", "Ed448": "EdDSA"}
EVERY_PUBLIC = frozenset(PUBLIC_ALGORITHMS)


def algorithms_of(keys) -> list[set[str]]:
    return [set(key.algorithms) for key in keys]


# --- the option algorithms ---


def test_the_algorithms_are_those_of_the_two_families():
    assert {"HS256", "HS384", "HS512"} == SECRET_ALGORITHMS
    assert set().union(*KINDS.values()) == PUBLIC_ALGORITHMS
    assert checked_algorithms(None) is None
    assert checked_algorithms(["HS256", "HS512"]) == {"HS256", "HS512"}
    assert checked_algorithms(("RS256", "ES256", "EdDSA")) == {"RS256", "ES256", "EdDSA"}


@pytest.mark.parametrize("names", ["RS256", [], 5, ["rs256"], ["ES256K"], ["ES521"], [None], [["RS256"]]])
def test_algorithms_that_are_none(names):
    with pytest.raises(ConfigurationError, match="algorithms"):
        checked_algorithms(names)


@pytest.mark.parametrize("name", ["none", "None", "NONE", "nOnE"])
def test_none_is_no_signature(name):
    with pytest.raises(ConfigurationError, match="is no signature"):
        checked_algorithms(["RS256", name])


def test_secrets_and_public_keys_do_not_go_together():
    with pytest.raises(ConfigurationError, match="do not go with the others"):
        checked_algorithms(["HS256", "RS256"])


@pytest.mark.parametrize("modules", [{"jwt.algorithms": None}, {"jwt": None, "jwt.algorithms": None}])
def test_without_pyjwt_it_says_what_to_install(monkeypatch, modules):
    jwt_keys._pyjwt.cache_clear()
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    with pytest.raises(ConfigurationError, match=r"pip install 'street_fast\[jwt\]'"):
        checked_algorithms(None)


def test_without_cryptography_it_says_what_to_install(monkeypatch):
    jwt_keys._pyjwt.cache_clear()
    monkeypatch.setattr("jwt.algorithms.get_default_algorithms", lambda: {"HS256": ALGORITHMS["HS256"]})
    with pytest.raises(ConfigurationError, match=r"cryptography.*pip install 'street_fast\[jwt\]'"):
        checked_algorithms(None)
    jwt_keys._pyjwt.cache_clear()


# --- keys that the application has ---


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("as_text", [False, True])
def test_a_public_key_is_for_the_algorithms_of_its_kind(name, as_text):
    pem = public_pem(name).decode() if as_text else public_pem(name)
    assert algorithms_of(given_keys(pem, None)) == [{USUAL[name]}]
    assert algorithms_of(given_keys(pem, EVERY_PUBLIC)) == [KINDS[name]]
    (key,) = given_keys(pem, EVERY_PUBLIC)
    for algorithm in KINDS[name]:
        signature = ALGORITHMS[algorithm].sign(b"message", private_key(name))
        assert key.has_signed(algorithm, b"message", signature)
        assert not key.has_signed(algorithm, b"massage", signature)
        assert not key.has_signed(algorithm, b"message", signature[:-1])


@pytest.mark.parametrize("name", KINDS)
def test_a_public_key_is_for_no_other_algorithm(name):
    with pytest.raises(ConfigurationError, match="has none of them"):
        given_keys(public_pem(name), EVERY_PUBLIC - KINDS[name])
    with pytest.raises(ConfigurationError, match="has none of them"):
        given_keys(public_pem(name), frozenset(["HS256"]))


def test_a_secret():
    assert algorithms_of(given_keys(SECRET, None)) == [{"HS256"}]
    assert algorithms_of(given_keys(SECRET.decode(), frozenset(["HS256"]))) == [{"HS256"}]
    (key,) = given_keys(SECRET * 2, SECRET_ALGORITHMS)
    for algorithm in SECRET_ALGORITHMS:
        assert key.has_signed(algorithm, b"message", ALGORITHMS[algorithm].sign(b"message", SECRET * 2))
        assert not key.has_signed(algorithm, b"message", ALGORITHMS[algorithm].sign(b"message", SECRET))


@pytest.mark.parametrize(
    "secret",
    ["0" * 50, b"\x30" * 50, b"\x30\x82\x01\x00" + b"\x06" * 40, b"\x30\xff" + b"\x06" * 40, b"\x30" + bytes(40)],
)
def test_a_secret_may_look_odd(secret):
    assert given_keys(secret, None)


@pytest.mark.parametrize(("algorithm", "least"), [("HS256", 32), ("HS384", 48), ("HS512", 64)])
def test_a_secret_is_as_long_as_the_digest(algorithm, least):
    allowed = frozenset([algorithm])
    assert given_keys(b"x" * least, allowed)
    with pytest.raises(ConfigurationError, match=f"at least {least} bytes, and this one has {least - 1}"):
        given_keys(b"x" * (least - 1), allowed)


def test_several_keys():
    assert len(given_keys([SECRET, b"another secret of some 32 bytes!"], None)) == 2
    keys = given_keys((public_pem("rsa"), public_pem("P-256").decode()), None)
    assert algorithms_of(keys) == [{"RS256"}, {"ES256"}]
    with pytest.raises(ConfigurationError, match="do not mix"):
        given_keys([SECRET, public_pem("rsa")], None)
    with pytest.raises(ConfigurationError, match="several in one PEM"):
        given_keys(public_pem("rsa") + public_pem("rsa 2"), None)


def der(name: str) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return private_key(name).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


BAD_KEYS = {
    "no key": None,
    "a number": 5,
    "an empty list": [],
    "a list of numbers": [5],
    "nothing": b"",
    "a private key": private_pem("rsa"),
    "a private key of a curve": private_pem("P-256"),
    "a private Ed25519 key": private_pem("Ed25519"),
    "a short RSA key": public_pem("rsa 1024"),
    "an unusual curve": public_pem("secp256k1"),
    "a PEM with nothing in it": b"-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----\n",
    "half a PEM": public_pem("rsa")[:200],
    "a certificate": b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n",
    "a public key as DER": der("P-256"),
    "a long public key as DER": der("rsa"),
    "a short public key as DER": der("Ed25519"),
    "a public key of OpenSSH": b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ8v7 ada@example.com",
    "a secret for public keys": (SECRET, frozenset(["RS256"])),
    "a public key for secrets": (public_pem("rsa"), frozenset(["HS256"])),
}


@pytest.mark.parametrize("name", BAD_KEYS)
def test_keys_that_are_none(name):
    key = BAD_KEYS[name]
    key, allowed = key if isinstance(key, tuple) else (key, None)
    with pytest.raises(ConfigurationError, match=r"^key: ") as caught:
        given_keys(key, allowed)
    if isinstance(key, bytes):
        middle = key.strip().split(b"\n")[len(key.strip().split(b"\n")) // 2][:40].decode("latin-1")
        assert not middle or middle not in str(caught.value)


@pytest.mark.parametrize("name", ["P-256", "rsa", "Ed25519"])
def test_a_public_key_as_der_is_no_secret_whatever_pyjwt_says(name, monkeypatch):
    monkeypatch.setattr("jwt.algorithms.HMACAlgorithm.prepare_key", lambda _, key: key)
    with pytest.raises(ConfigurationError, match="must be PEM"):
        given_keys(der(name), None)


# --- keys that an issuer publishes ---


def test_a_set_of_every_kind():
    document = key_set(*(jwk(name, kid=name) for name in KINDS))
    keys = keys_of_set(document, None)
    assert [key.id for key in keys] == list(KINDS)
    assert algorithms_of(keys) == [{USUAL[name]} for name in KINDS]
    assert algorithms_of(keys_of_set(document, EVERY_PUBLIC)) == list(KINDS.values())
    assert algorithms_of(keys_of_set(document, frozenset(["PS256"]))) == [{"PS256"}]
    for key, name in zip(keys, KINDS, strict=True):
        signature = ALGORITHMS[USUAL[name]].sign(b"message", private_key(name))
        assert key.has_signed(USUAL[name], b"message", signature)


def test_a_key_that_says_its_algorithm_is_for_that_one():
    document = key_set(jwk("rsa", alg="PS512"))
    assert algorithms_of(keys_of_set(document, None)) == [{"PS512"}]
    assert algorithms_of(keys_of_set(document, EVERY_PUBLIC)) == [{"PS512"}]
    with pytest.raises(ValueError, match="none of its 1 keys"):
        keys_of_set(document, frozenset(["RS256"]))


def test_a_private_half_is_left_where_it_is():
    entry = json.loads(ALGORITHMS["ES256"].to_jwk(private_key("P-256")))
    assert "d" in entry
    (key,) = keys_of_set(key_set(entry), None)
    assert not hasattr(key.value, "sign")
    assert key.has_signed("ES256", b"message", ALGORITHMS["ES256"].sign(b"message", private_key("P-256")))


BAD_ENTRIES = {
    "no object": "key",
    "nothing in it": {},
    "for encryption": jwk("rsa", use="enc"),
    "for something odd": jwk("rsa", use=["sig"]),
    "for signing only": jwk("rsa", key_ops=["sign"]),
    "operations that are none": jwk("rsa", key_ops=5),
    "a secret": {"kty": "oct", "k": "YSBzZWNyZXQgb2YgdGhpcnR5LXR3byBieXRlcywgb2s", "alg": "HS256"},
    "a secret that says RSA": {"kty": "RSA", "k": "YSBzZWNyZXQ", "alg": "RS256"},
    "a public key for a secret's algorithm": jwk("rsa", alg="HS256"),
    "for no signature": jwk("rsa", alg="none"),
    "an algorithm of another kind": jwk("rsa", alg="ES256"),
    "an algorithm of another curve": jwk("P-256", alg="ES384"),
    "an algorithm that is none": jwk("rsa", alg=["RS256"]),
    "an algorithm of key wrapping": jwk("rsa", alg="RSA-OAEP"),
    "an unknown kind": jwk("rsa", kty="AKP"),
    "a kind that is none": jwk("rsa", kty=["RSA"]),
    "a kind that is an object": jwk("rsa", kty={"RSA": 1}),
    "another kind": jwk("P-256", kty="OKP"),
    "an unusual curve": jwk("secp256k1"),
    "another curve": jwk("P-256", crv="P-384"),
    "a curve that is none": jwk("P-256", crv=["P-256"]),
    "a curve of RSA": jwk("P-256", crv="RSA"),
    "a short RSA key": jwk("rsa 1024"),
    "without its modulus": jwk("rsa", n=None),
    "a modulus that is none": jwk("rsa", n=5),
    "a modulus of zero": jwk("rsa", n="AA"),
    "a point that is not on the curve": jwk("P-256", x=jwk("P-256 2")["x"]),
    "a point without y": jwk("P-256", y=None),
    "a short Ed25519 key": jwk("Ed25519", x="AAAA"),
}


@pytest.mark.parametrize("name", BAD_ENTRIES)
def test_what_is_no_key_is_passed_over(name):
    for allowed in (None, EVERY_PUBLIC):
        with pytest.raises(ValueError, match="none of its 1 keys can be used"):
            keys_of_set(key_set(BAD_ENTRIES[name]), allowed)
        (key,) = keys_of_set(key_set(BAD_ENTRIES[name], jwk("Ed25519", kid="good")), allowed)
        assert key.id == "good"


@pytest.mark.parametrize(
    "document",
    [b"", b"{", b"[]", b"null", b"{}", b'{"keys":{}}', b'{"keys":[]}', b"[" * 100_000, b"\xff", b'{"keys":null}'],
)
def test_what_is_no_set(document):
    with pytest.raises(ValueError, match=r"it is not JSON|it is no JSON Web Key Set|none of its 0 keys"):
        keys_of_set(document, None)


@pytest.mark.parametrize("key_id", [5, None, ["a"], {}])
def test_a_name_that_is_none(key_id):
    (key,) = keys_of_set(key_set(jwk("Ed25519") | {"kid": key_id}), None)
    assert key.id is None


def test_street_fast_is_there_without_pyjwt():
    """And without what only a fetch needs."""
    program = (
        "import sys; sys.modules['jwt'] = sys.modules['cryptography'] = None\n"
        "import street_fast, street_fast.auth as auth\n"
        "assert 'http.client' not in sys.modules\n"
        "assert auth.Member('ada').id == 'ada'\n"
        "try: auth.JwtAuth('x' * 32)\n"
        "except street_fast.ConfigurationError as error: print(error)\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT)
    assert ran.stdout == "JwtAuth needs PyJWT: pip install 'street_fast[jwt]'\n", ran.stderr
