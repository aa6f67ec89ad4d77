"""Member is a value; a corpus of tokens, good and bad; where they are found; what they open."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import random
import time
from typing import Any

import jwt
import pytest

from street_fast.auth import Grant, JwtAuth, Member, TokenRefused
from street_fast.errors import ConfigurationError, HandshakeRefused, StreetError
from street_fast.http_server import HttpServer
from street_fast.limits import Limits
from street_fast.request import Request
from street_fast.server import StreetWebSocketServer
from street_fast.testing import memory_client
from tests.tokens import ALGORITHMS, NOW, SECRET, claims, encoded, jwk, key_set, private_key, public_pem, signed, token

OTHER_SECRET = b"another secret of some 32 bytes!"


def auth(key: Any = SECRET, **options: Any) -> JwtAuth:
    made = JwtAuth(key, **options)
    made.clock = lambda: NOW
    return made


# --- Member ---


def test_members_without_roles_share_that():
    assert Member("ada").roles is Member("bob", []).roles


def test_a_member_is_its_fields():
    member = Member("ada", ["admin", "admin", "user"], {"name": "Ada"})
    assert (member.id, member.roles, member.info) == ("ada", frozenset(("admin", "user")), {"name": "Ada"})
    assert member == Member("ada", ("user", "admin"), {"name": "Ada"})
    assert hash(member) == hash(Member("ada", ("user", "admin")))
    assert member != Member("ada")
    assert Member("ada").roles == frozenset()
    assert Member("ada").info is None


def test_nothing_about_it_changes():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Member("ada").id = "bob"  # type: ignore[misc]
    assert not hasattr(Member("ada"), "__dict__")


@pytest.mark.parametrize("identity", ["", None, 5, b"ada", ["ada"]])
def test_an_id_that_is_none(identity):
    with pytest.raises(ConfigurationError, match=r"Member\(id="):
        Member(identity)


@pytest.mark.parametrize("roles", ["admin", [5], [None], [["admin"]], 5, None])
def test_roles_that_are_none(roles):
    with pytest.raises(ConfigurationError, match=r"Member\(roles="):
        Member("ada", roles)


@pytest.mark.parametrize("moment", [True, "1", float("nan"), float("inf"), [1]])
def test_a_time_that_is_none(moment):
    with pytest.raises(ConfigurationError, match=r"Member\(expires_at="):
        Member("ada", expires_at=moment)


def test_when_its_token_ends_is_no_part_of_who_it_is():
    renewed = Member("ada", expires_at=1_700_000_000.5)
    assert renewed.expires_at == 1_700_000_000.5
    assert Member("ada").expires_at is None
    assert renewed == Member("ada")
    assert hash(renewed) == hash(Member("ada"))
    assert dataclasses.replace(renewed, expires_at=None).expires_at is None


# --- tokens that are good ---

GOOD = {
    "the least there is": token(claims()),
    "without typ": token(header=json.dumps({"alg": "HS256"})),
    "of another typ": token(header={"typ": "at+jwt"}),
    "with a kid, which names nothing here": token(header={"kid": "../../../etc/passwd"}),
    "that brings its own keys": token(header={"jwk": jwk("P-256"), "jku": "https://evil.example/", "x5c": ["AAAA"]}),
    "an exp with a fraction": token(claims(exp=NOW + 0.5)),
    "expired, but within the skew": token(claims(exp=NOW - 29.5)),
    "not valid yet, but within the skew": token(claims(nbf=NOW + 29.5)),
    "issued in the future, but within the skew": token(claims(iat=NOW + 29.5)),
    "issued long ago": token(claims(iat=0, nbf=0)),
    "the last second there is": token(claims(exp=253_402_300_799)),
    "white space around its JSON": token(b' {\n"sub":"ada", "exp": %d }\n' % (NOW + 1)),
    "claims that nobody knows": token(claims(jti="1", azp=5, nested={"a": [None, 1e300, True]})),
    "an issuer, when any will do": token(claims(iss="https://evil.example/")),
    "no info": token(claims() | {"info": None, "roles": None}),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_good_token(name):
    assert auth().verify(GOOD[name]) == Member("ada")


def test_what_a_token_says_of_a_member():
    text = token(claims(sub="Ädä 5", roles=["admin", "admin"], info={"name": "Ada"}, exp=NOW + 7.5))
    member = auth().verify(text)
    assert member == Member("Ädä 5", ["admin"], {"name": "Ada"})
    assert member.expires_at == NOW + 7.5
    assert auth().verify(token(claims(roles="a  b"))).roles == {"a", "b"}
    assert auth(roles_claim="scope").verify(token(claims(roles="a", scope="b c"))).roles == {"b", "c"}
    for empty in ([], ""):
        assert auth().verify(token(claims(roles=empty))).roles == frozenset()


def test_what_others_write_is_good():
    """PyJWT encodes it, from the key to the claims."""
    assert auth().verify(jwt.encode(claims(), SECRET)).id == "ada"
    for algorithm, name in (("RS512", "rsa"), ("PS256", "rsa"), ("ES384", "P-384"), ("EdDSA", "Ed25519")):
        text = jwt.encode(claims(), private_key(name), algorithm, headers={"kid": "1"})
        assert auth(public_pem(name), algorithms=[algorithm]).verify(text).id == "ada"


def test_the_example_of_the_rfc():
    """RFC 7515 appendix A.1: HS256, with a CRLF in its JSON; it is of 2011 and names nobody."""
    text = (
        "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxl"
        "LmNvbS9pc19yb290Ijp0cnVlfQ.dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
    )
    secret = ALGORITHMS["HS256"].from_jwk(
        {
            "kty": "oct",
            "k": "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow",
        }
    )
    checker = auth(secret, issuer="joe", member=lambda claims: Member(claims["iss"]))
    with pytest.raises(TokenRefused, match="expired"):
        checker.verify(text)
    checker.clock = lambda: 1_300_819_379
    assert checker.verify(text).expires_at == 1_300_819_380
    with pytest.raises(TokenRefused, match="signature"):
        checker.verify(text[:-1] + "g")


@pytest.mark.parametrize(
    "keys", [[OTHER_SECRET, SECRET], [SECRET, OTHER_SECRET], (SECRET.decode(), OTHER_SECRET.decode())]
)
def test_any_of_several_keys_may_have_signed(keys):
    assert auth(keys).verify(token()).id == "ada"
    assert auth(keys).verify(token(key=OTHER_SECRET)).id == "ada"
    with pytest.raises(TokenRefused, match="signature"):
        auth(keys).verify(token(key=b"x" * 32))


def test_without_exp_if_the_application_says_so():
    text = token(claims(exp=None))
    with pytest.raises(TokenRefused, match="does not say when it ends"):
        auth().verify(text)
    assert auth(require_expiry=False).verify(text).expires_at is None
    with pytest.raises(TokenRefused, match="has expired"):
        auth(require_expiry=False).verify(token(claims(exp=NOW - 31)))


def test_the_time_is_now():
    checker = auth()
    text = token(claims(exp=NOW + 600, nbf=NOW, iat=NOW))
    for moment in (NOW - 30, NOW, NOW + 629.9):
        checker.clock = lambda moment=moment: moment
        assert checker.verify(text).id == "ada"
    for moment in (NOW - 30.1, NOW + 630):
        checker.clock = lambda moment=moment: moment
        with pytest.raises(TokenRefused):
            checker.verify(text)
    assert abs(JwtAuth(SECRET).clock() - time.time()) < 60


# --- tokens that are bad ---

HEADER, PAYLOAD, SIGNATURE = token().split(".")
DEEP = "[" * 1500 + "]" * 1500


def head(algorithm: str) -> str:
    return encoded('{"alg":"' + algorithm + '"}')


def raw(**changed: str) -> str:
    """Claims as JSON that json.dumps does not write."""
    fields = {"sub": '"ada"', "exp": str(NOW + 600), **changed}
    return token("{" + ",".join(f'"{name}":{value}' for name, value in fields.items()) + "}")


def flipped(text: str, position: int) -> str:
    return text[:position] + ("A" if text[position] != "A" else "B") + text[position + 1 :]


BAD = {
    # the form
    "nothing": ("", "no JWT"),
    "a word": ("token", "no JWT"),
    "two parts": (f"{HEADER}.{PAYLOAD}", "no JWT"),
    "four parts": (f"{token()}.{SIGNATURE}", "no JWT"),
    "five parts, as if encrypted": (f"{token()}.{SIGNATURE}.{SIGNATURE}", "no JWT"),
    "no header": (f".{PAYLOAD}.{SIGNATURE}", "no JWT"),
    "no payload": (signed(f"{HEADER}."), "no JWT"),
    "only dots": ("..", "no JWT"),
    "padded": (f"{HEADER}.{PAYLOAD}.{SIGNATURE}=", "no JWT"),
    "padded header": (signed(f"{head('EdDSA')}==.{PAYLOAD}"), "no JWT"),
    "the other base64": (token(claims(sub="~~~???")).replace("_", "/").replace("-", "+"), "no JWT"),
    "a space before": (" " + token(), "no JWT"),
    "a line feed behind": (token() + "\n", "no JWT"),
    "a line feed within": (f"{HEADER}.\n{PAYLOAD}.{SIGNATURE}", "no JWT"),
    "a NUL": (token() + "\0", "no JWT"),
    "letters of another script": (token().replace("e", "е"), "no JWT"),
    "the JSON form": (json.dumps({"protected": HEADER, "payload": PAYLOAD, "signature": SIGNATURE}), "no JWT"),
    "one letter too much": (token() + "AA", "signature is not base64url"),
    "stray bits in the header": (signed(f"{encoded('{}')[:-1]}1.{PAYLOAD}"), "header is not base64url"),
    "stray bits in the payload": (signed(f"{HEADER}.{encoded('{}')[:-1]}1"), "payload is not base64url"),
    "stray bits in the signature": (token()[:-1] + chr(ord(token()[-1]) + 1), "signature is not base64url"),
    "too long": (token(claims(more="x" * 8192)), "longer than 8192 bytes"),
    "ten megabytes": ("A" * 10_000_000, "longer than 8192 bytes"),
    # the header
    "a header that is text": (token(header="HS256"), "header is not JSON"),
    "a header that is a list": (token(header='["HS256"]'), "header is no JSON object"),
    "a header that is null": (token(header="null"), "header is no JSON object"),
    "a header that is not UTF-8": (token(header=b'{"alg":"HS256","x":"\xff"}'), "header is not JSON"),
    "a header with a byte order mark": (token(header=b'\xef\xbb\xbf{"alg":"HS256"}'), "header is not JSON"),
    "a header with a comma too much": (token(header='{"alg":"HS256",}'), "header is not JSON"),
    "a header that is deep": (token(header='{"alg":"HS256","x":' + DEEP + "}"), "header is not JSON"),
    "a compressed header": (token(header=b"\x78\x9c\xabV*)-.Q"), "header is not JSON"),
    "no algorithm": (token(header="{}"), "algorithm is not one of HS256"),
    "crit": (token(header={"crit": ["exp"], "exp": 1}), "extension .*crit"),
    "an empty crit": (token(header={"crit": []}), "extension .*crit"),
    "crit of what PyJWT knows": (token(header={"crit": ["b64"], "b64": True}), "extension .*crit"),
    "a payload that is not encoded": (token(header={"b64": False}), "extension .*b64"),
    "compressed": (token(header={"zip": "DEF"}), "extension .*zip"),
    "a kid that is a list": (token(header={"kid": ["1"]}), "kid.* is no string"),
    "a kid that is a number": (token(header={"kid": 0}), "kid.* is no string"),
    # the algorithm and the signature
    "none": (f"{head('none')}.{PAYLOAD}.", "algorithm is not one of HS256"),
    "none, signed": (signed(f"{head('none')}.{PAYLOAD}"), "algorithm is not one of HS256"),
    "None": (f"{head('None')}.{PAYLOAD}.", "algorithm is not one of HS256"),
    "nOnE": (f"{head('nOnE')}.{PAYLOAD}.", "algorithm is not one of HS256"),
    "an empty algorithm": (token(header={"alg": ""}), "algorithm is not one of HS256"),
    "an algorithm that is null": (token(header={"alg": None}), "algorithm is not one of HS256"),
    "an algorithm that is a list": (token(header={"alg": ["HS256"]}), "algorithm is not one of HS256"),
    "hs256": (token(header={"alg": "hs256"}), "algorithm is not one of HS256"),
    "an algorithm with a space": (token(header={"alg": "HS256 "}), "algorithm is not one of HS256"),
    "an algorithm that is not allowed": (token(key=SECRET * 2, algorithm="HS512"), "algorithm is not one of HS256"),
    "RS256": (token(key=private_key("rsa"), algorithm="RS256"), "algorithm is not one of HS256"),
    "no signature": (f"{HEADER}.{PAYLOAD}.", "signature is not good"),
    "half a signature": (f"{HEADER}.{PAYLOAD}.{SIGNATURE[:20]}", "signature is not good"),
    "another signature": (flipped(token(), -20), "signature is not good"),
    "a signature by another key": (token(key=OTHER_SECRET), "signature is not good"),
    "a signature by no key": (token(key=b""), "signature is not good"),
    "another algorithm than it says": (token(algorithm="HS384", header={"alg": "HS256"}), "signature is not good"),
    "the signature of other claims": (f"{HEADER}.{encoded(json.dumps(claims(sub='bob')))}.{SIGNATURE}", "signature"),
    "the signature of another header": (f"{head('HS256')}.{PAYLOAD}.{SIGNATURE}", "signature"),
    "claims that are no JSON, not signed": (f"{HEADER}.{encoded('{')}.{SIGNATURE}", "signature is not good"),
    # what the claims are written in
    "claims that are text": (token("ada"), "payload is not JSON"),
    "claims that are a list": (token("[]"), "payload is no JSON object"),
    "claims that are a number": (token("5"), "payload is no JSON object"),
    "claims that are null": (token("null"), "payload is no JSON object"),
    "claims that are not UTF-8": (token(b'{"sub":"\xff"}'), "payload is not JSON"),
    "claims with half a character": (raw(sub='"\\ud800"'), "payload is not JSON"),
    "claims that are deep": (raw(x=DEEP), "payload is not JSON"),
    "claims that are a token": (token(token()), "payload is not JSON"),
    # times
    "expired": (token(claims(exp=NOW - 30)), "has expired"),
    "expired in 1970": (token(claims(exp=0)), "has expired"),
    "without an end": (token(claims(exp=None)), "does not say when it ends"),
    "an end that is null": (raw(exp="null"), "exp is no time"),
    "an end that is true": (raw(exp="true"), "exp is no time"),
    "an end that is text": (raw(exp='"1900000000"'), "exp is no time"),
    "an end that is a list": (raw(exp="[1900000000]"), "exp is no time"),
    "an end that is NaN": (raw(exp="NaN"), "payload is not JSON"),
    "an end that is Infinity": (raw(exp="Infinity"), "payload is not JSON"),
    "an end beyond the floats": (raw(exp="1e400"), "payload is not JSON|exp is no time"),
    "an end of many digits": (raw(exp="9" * 1000), "payload is not JSON|exp is no time"),
    "an end in milliseconds": (token(claims(exp=1000 * NOW)), "exp is no time in seconds"),
    "an end before 1970": (token(claims(exp=-1)), "exp is no time"),
    "not valid yet": (token(claims(nbf=NOW + 31)), "not valid yet"),
    "not valid, it does not say when": (token(claims(nbf="now")), "nbf is no time"),
    "issued in the future": (token(claims(iat=NOW + 31)), "issued in the future"),
    "issued false": (token(claims(iat=False)), "iat is no time"),
    # whom it is for
    "for an audience": (token(claims(aud="chat")), "has not been told"),
    "for several": (token(claims(aud=["chat", "mail"])), "has not been told"),
    "for no audience": (token(claims() | {"aud": None}), "names no audience"),
    "for an audience that is a number": (token(claims(aud=5)), "names no audience"),
    "for a channel": (token(claims(channel="room")), "for a channel"),
    "for channels": (token(claims(channels=["room"])), "for a channel"),
    "for a channel that is null": (token(claims() | {"channel": None}), "for a channel"),
    # whom it names
    "of nobody": (token(claims(sub=None)), "does not say whose it is"),
    "of an empty name": (token(claims(sub="")), "does not say whose it is"),
    "of a number": (token(claims(sub=7)), "does not say whose it is"),
    "of an object": (token(claims(sub={"id": "ada"})), "does not say whose it is"),
    "of a name that is too long": (token(claims(sub="ä" * 128)), "sub is longer than 255 bytes"),
    "of a name with a line feed": (token(claims(sub="ada\nbob")), "control characters"),
    "roles that are a number": (token(claims(roles=5)), "roles is no list of strings"),
    "roles that are numbers": (token(claims(roles=["a", 5])), "roles is no list of strings"),
    "roles that are an object": (token(claims(roles={"admin": True})), "roles is no list of strings"),
    "info that is text": (token(claims(info="Ada")), "info is no object"),
    "info that is a list": (token(claims(info=["Ada"])), "info is no object"),
    "info that is too long": (token(claims(info={"name": "x" * 1024})), "info is longer than 1024 bytes"),
    "info that is deep": (raw(info='{"a":' * 300 + "1" + "}" * 300), "info is nested too deep"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_token(name):
    text, why = BAD[name]
    with pytest.raises(TokenRefused, match=why) as caught:
        auth().verify(text)
    assert caught.value.code == "unauthorized"
    assert isinstance(caught.value, StreetError)
    assert not caught.value.temporary
    leaks = [part for part in text.split(".") if len(part) > 5 and part in str(caught.value)]
    assert leaks == []
    assert SECRET.decode() not in str(caught.value)


@pytest.mark.parametrize("value", [None, b"bytes", 5, ["token"]])
def test_a_token_that_is_no_string(value):
    with pytest.raises(TokenRefused, match="no string"):
        auth().verify(value)


def test_a_token_is_as_long_as_it_may_be():
    text = token(claims(more=""))
    for size in (300, 301):  # a payload of 3n bytes takes 4n letters
        text = token(claims(more="x" * size))
        checker = auth(limits=Limits(token_bytes=len(text)))
        assert checker.verify(text).id == "ada"
        with pytest.raises(TokenRefused, match="longer than"):
            auth(limits=Limits(token_bytes=len(text) - 1)).verify(text)


@pytest.mark.parametrize("name", ["rsa", "P-256", "Ed25519"])
def test_a_public_key_is_no_secret(name):
    """The classic: HS256 with the public key, in whatever way it may be written, as the secret."""
    pem = public_pem(name)
    usual = {"rsa": "RS256", "P-256": "ES256", "Ed25519": "EdDSA"}[name]
    hmac = ALGORITHMS["HS256"]
    for secret in (pem, pem.strip(), pem.replace(b"\n", b"\r\n"), json.dumps(jwk(name)).encode()):
        text = f"{HEADER}.{PAYLOAD}"
        text = f"{text}.{encoded(hmac.sign(text.encode(), secret))}"
        for options in ({}, {"algorithms": [usual]}):
            with pytest.raises(TokenRefused, match=f"algorithm is not one of {usual}"):
                auth(pem, **options).verify(text)
        relabelled = f"{encoded(json.dumps({'alg': usual}))}.{PAYLOAD}"
        relabelled = f"{relabelled}.{encoded(hmac.sign(relabelled.encode(), secret))}"
        with pytest.raises(TokenRefused, match="signature is not good"):
            auth(pem).verify(relabelled)


@pytest.mark.parametrize(
    ("name", "algorithm", "other"),
    [("rsa", "RS256", "rsa 2"), ("P-256", "ES256", "P-256 2"), ("rsa", "PS256", "rsa 2")],
)
def test_a_signature_by_another_key_pair(name, algorithm, other):
    checker = auth(public_pem(name), algorithms=[algorithm])
    assert checker.verify(token(key=private_key(name), algorithm=algorithm)).id == "ada"
    with pytest.raises(TokenRefused, match="signature is not good"):
        checker.verify(token(key=private_key(other), algorithm=algorithm))
    with pytest.raises(TokenRefused, match="algorithm is not one of"):
        checker.verify(token(key=private_key(name), algorithm="RS512" if name == "rsa" else "ES512"))


@pytest.mark.parametrize(
    "signature", [b"", bytes(64), bytes(63), b"\xff" * 64, b"\x30\x06\x02\x01\x00\x02\x01\x00", b"x" * 4000]
)
@pytest.mark.parametrize(
    ("name", "algorithm"), [("rsa", "RS256"), ("P-256", "ES256"), ("Ed25519", "EdDSA"), ("Ed448", "EdDSA")]
)
def test_a_signature_that_is_none(name, algorithm, signature):
    text = token(key=private_key(name), algorithm=algorithm).rpartition(".")[0]
    with pytest.raises(TokenRefused, match="signature is not good"):
        auth(public_pem(name)).verify(f"{text}.{encoded(signature)}")


def test_an_ecdsa_signature_is_two_numbers_and_no_der():
    text = f"{head('ES256')}.{PAYLOAD}"
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.hashes import SHA256

    der = private_key("P-256").sign(text.encode(), ec.ECDSA(SHA256()))
    with pytest.raises(TokenRefused, match="signature is not good"):
        auth(public_pem("P-256")).verify(f"{text}.{encoded(der)}")


def test_nothing_is_believed_before_the_signature():
    """Of a token that is not signed, the claims are not even decoded: they may be anything."""
    for payload in ("{", DEEP, "\xff", json.dumps(claims(exp=1))):
        with pytest.raises(TokenRefused, match="signature is not good"):
            auth().verify(token(payload, key=OTHER_SECRET))


def test_whatever_comes_is_refused_in_words():
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_..=+/ \n\0é"
    checkers = [auth(), auth(public_pem("P-256")), auth(public_pem("rsa"))]
    originals = [
        token(claims(roles=["a"], info={"a": 1}, nbf=1)),
        token(key=private_key("P-256"), algorithm="ES256"),
        token(key=private_key("rsa"), algorithm="RS256"),
    ]
    refused = 0
    for _ in range(3000):
        which = chance.randrange(3)
        letters = list(originals[which])
        for _ in range(chance.choice((1, 1, 1, 3, 10))):
            position = chance.randrange(len(letters))
            letters[position : position + chance.choice((0, 1, 1, 5))] = chance.choice(alphabet)
        text = "".join(letters)
        try:
            member = checkers[which].verify(text)
        except TokenRefused:
            refused += 1
        else:
            assert text == originals[which]
            assert member.id == "ada"
    assert refused > 2500
    for _ in range(2000):  # signed, so that the claims are read
        value = chance.choice((None, True, -1, 1e18, "x", [], {}, [["a"]], {"a": None}, NOW, [1], ["a"]))
        name = chance.choice(
            ("sub", "exp", "nbf", "iat", "iss", "aud", "roles", "info", "channel", "channels", "actions")
        )
        for use in (auth().verify, lambda text: auth().grant(text, Member("ada"), "room")):
            try:
                use(token(claims() | {name: value}))
            except TokenRefused:
                continue


# --- issuer and audience ---


@pytest.mark.parametrize("issuer", ["https://a.example/", ["https://b.example/", "https://a.example/"]])
def test_the_issuer(issuer):
    checker = auth(issuer=issuer)
    assert checker.verify(token(claims(iss="https://a.example/"))).id == "ada"
    for other in (None, "https://a.example", "https://A.example/", "", 5, ["https://a.example/"], {}):
        with pytest.raises(TokenRefused, match="another issuer"):
            checker.verify(token(claims(iss=other)))


@pytest.mark.parametrize("audience", ["chat", ["other", "chat"], ("chat",)])
def test_the_audience(audience):
    checker = auth(audience=audience)
    for good in ("chat", ["chat"], ["mail", "chat"]):
        assert checker.verify(token(claims(aud=good))).id == "ada"
    for other in ("mail", "Chat", "chat ", "chatter", [], ["mail"], ""):
        with pytest.raises(TokenRefused, match="another audience"):
            checker.verify(token(claims(aud=other)))
    for none in (None, 5, [5], ["chat", 5], [["chat"]], {"chat": 1}):
        with pytest.raises(TokenRefused, match="names no audience"):
            checker.verify(token(claims(aud=none)))


# --- the member that the application makes ---


def test_the_application_makes_the_member():
    checker = auth(member=lambda claims: Member(claims["email"], claims["groups"]))
    text = token(claims(sub=None, email="ada@example.com", groups=["staff"], info="not looked at", roles=5))
    member = checker.verify(text)
    assert member == Member("ada@example.com", ["staff"])
    assert member.expires_at == NOW + 600


async def test_the_application_looks_it_up():
    async def member(claims):
        await asyncio.sleep(0)
        return Member(claims["sub"], ["looked up"]) if claims["sub"] != "bob" else None

    checker = auth(member=member)
    found = await checker.verify(token())
    assert (found, found.expires_at) == (Member("ada", ["looked up"]), NOW + 600)
    with pytest.raises(TokenRefused, match="nobody who is known"):
        await checker.verify(token(claims(sub="bob")))
    with pytest.raises(TokenRefused, match="has expired"):
        checker.verify(token(claims(exp=1)))


@pytest.mark.parametrize(("own", "ends"), [(None, 600), (NOW + 5, 5), (NOW + 900, 600)])
def test_a_member_ends_with_its_token_or_before(own, ends):
    assert auth(member=lambda _: Member("ada", expires_at=own)).verify(token()).expires_at == NOW + ends


def test_a_member_of_a_token_without_end():
    checker = auth(member=lambda _: Member("ada", expires_at=NOW + 5), require_expiry=False)
    assert checker.verify(token(claims(exp=None))).expires_at == NOW + 5


async def test_a_member_that_fails_is_refused_for_now(caplog):
    async def later(claims):
        raise LookupError("the database is down")

    def at_once(claims):
        raise LookupError("the database is down")

    for member in (at_once, later):
        caplog.clear()
        with pytest.raises(TokenRefused, match="cannot be found out at the moment") as caught:
            await as_coroutine(auth(member=member).verify, token())
        assert caught.value.temporary
        assert "the database" not in str(caught.value)
        assert "LookupError: the database is down" in caplog.text


async def test_a_member_may_refuse_in_its_own_words():
    async def later(claims):
        raise TokenRefused("the account is closed")

    def at_once(claims):
        raise TokenRefused("the account is closed")

    for member in (at_once, later):
        with pytest.raises(TokenRefused, match="the account is closed") as caught:
            await as_coroutine(auth(member=member).verify, token())
        assert not caught.value.temporary


def test_a_member_that_is_none(caplog):
    with pytest.raises(TokenRefused, match="nobody who is known"):
        auth(member=lambda _: None).verify(token())
    assert caplog.text == ""
    for other in ("ada", {"sub": "ada"}, True):
        with pytest.raises(TokenRefused, match="nobody who is known"):
            auth(member=lambda _, other=other: other).verify(token())
    assert "which is no Member" in caplog.text


async def as_coroutine(verify, *arguments):
    answer = verify(*arguments)
    return answer if isinstance(answer, Member | Grant) else await answer


# --- tokens for channels ---

GRANTS = {
    "one channel": ({"channel": "room:1"}, {"subscribe"}),
    "a star that is a star": ({"channel": "room:*"}, None),
    "another channel": ({"channel": "room:2"}, None),
    "the beginning of it": ({"channel": "room:"}, None),
    "another case": ({"channel": "Room:1"}, None),
    "a channel that is a list": ({"channel": ["room:1"]}, None),
    "a channel that is null": ({"channel": None}, None),
    "a list": ({"channels": ["lobby", "room:1"]}, {"subscribe"}),
    "a list without it": ({"channels": ["lobby", "room:11"]}, None),
    "an empty list": ({"channels": []}, None),
    "a list that is text": ({"channels": "room:1"}, None),
    "a list of numbers": ({"channels": ["room:1", 1]}, None),
    "a pattern": ({"channels": ["room:*"]}, {"subscribe"}),
    "every channel": ({"channels": ["*"]}, {"subscribe"}),
    "both": ({"channel": "room:1", "channels": ["room:1"]}, None),
    "for logging in": ({}, None),
    "actions": ({"channel": "room:1", "actions": ["publish", "history"]}, {"publish", "history"}),
    "actions as text": ({"channel": "room:1", "actions": "publish history"}, {"publish", "history"}),
    "every action": (
        {"channel": "room:1", "actions": ["subscribe", "publish", "presence", "history"]},
        {"subscribe", "publish", "presence", "history"},
    ),
    "no action": ({"channel": "room:1", "actions": []}, None),
    "an unknown action": ({"channel": "room:1", "actions": ["subscribe", "admin"]}, None),
    "an action that is a number": ({"channel": "room:1", "actions": [1]}, None),
    "actions that are a star": ({"channel": "room:1", "actions": "*"}, None),
    "of somebody else": ({"channel": "room:1", "sub": "bob"}, None),
    "of an empty name": ({"channel": "room:1", "sub": ""}, None),
    "of a list": ({"channel": "room:1", "sub": ["ada"]}, None),
    "expired": ({"channel": "room:1", "exp": NOW - 30}, None),
    "for an audience": ({"channel": "room:1", "aud": "mail"}, None),
}


@pytest.mark.parametrize("name", GRANTS)
def test_a_token_for_a_channel(name):
    changes, actions = GRANTS[name]
    text = token(claims() | changes)
    if actions is None:
        with pytest.raises(TokenRefused) as caught:
            auth().grant(text, Member("ada"), "room:1")
        assert not caught.value.temporary
    else:
        assert auth().grant(text, Member("ada"), "room:1") == Grant(frozenset(actions), NOW + 600)


def test_a_token_for_a_channel_of_nobody():
    with pytest.raises(TokenRefused, match="somebody else"):
        auth().grant(token(claims(sub=None, channel="room:1")), Member("ada"), "room:1")
    with pytest.raises(TokenRefused, match="signature"):
        auth().grant(token(claims(channel="room:1"), key=OTHER_SECRET), Member("ada"), "room:1")
    checker = auth(require_expiry=False)
    assert checker.grant(token(claims(exp=None, channel="r")), Member("ada"), "r") == Grant(
        frozenset(["subscribe"]), None
    )


@pytest.mark.parametrize(
    ("pattern", "good", "bad"),
    [
        ("room", ["room"], ["", "roo", "rooms", "aroom"]),
        ("room:*", ["room:", "room:1", "room:1:2", "room:*"], ["room", "aroom:1"]),
        ("*:room", [":room", "a:room"], ["room", "a:rooms"]),
        ("a*b", ["ab", "aab", "axb"], ["a", "b", "abc", "ba"]),
        ("ab*bc", ["abbc", "ab-bc"], ["abc"]),
        ("a*b*c", ["abc", "a-b-c", "abbc", "abcbc"], ["ac", "acb", "abcd"]),
        ("a*bc*c", ["abcc", "abc-c"], ["abc", "ac"]),
        ("a*bb*bb*c", ["abbbbc", "a-bb-bb-c"], ["abbbc", "abbc"]),
        ("**", ["", "a"], []),
        ("*", ["", "a", "user:ada"], []),
        ("", [""], ["a"]),
        ("a.c[x]?", ["a.c[x]?"], ["abc", "a.cx"]),
    ],
)
def test_a_pattern(pattern, good, bad):
    text = token(claims(channels=[pattern]))
    for name in good:
        assert auth().grant(text, Member("ada"), name)
    for name in bad:
        with pytest.raises(TokenRefused, match="another channel"):
            auth().grant(text, Member("ada"), name)


# --- where a token is ---

FOUND = [
    ("/", [], None),
    ("/?token=a.b.c", [], "a.b.c"),
    ("/?room=5&token=a.b.c", [], "a.b.c"),
    ("/?Token=a.b.c&tokens=x&t=token", [], None),
    ("/", [("Authorization", "Bearer a.b.c")], "a.b.c"),
    ("/", [("authorization", "bearer   a.b.c ")], "a.b.c"),
    ("/", [("Authorization", "Basic YTpi")], None),
    ("/", [("Authorization", "Bearera.b.c")], None),
    ("/", [("Sec-WebSocket-Protocol", "street-fast, bearer.a.b.c")], "a.b.c"),
    ("/", [("Sec-WebSocket-Protocol", "street-fast"), ("Sec-WebSocket-Protocol", "bearer.a.b.c")], "a.b.c"),
    ("/", [("Sec-WebSocket-Protocol", "street-fast, chat.bearer.x, Bearer.a.b.c")], None),
    ("/?token=a.b.c", [("Authorization", "Bearer a.b.c"), ("Sec-WebSocket-Protocol", "bearer.a.b.c")], "a.b.c"),
    ("/?token=a.b.c&token=a.b.c", [], "a.b.c"),
]


@pytest.mark.parametrize(("target", "headers", "found"), FOUND)
def test_where_a_token_is(target, headers, found):
    assert auth().token_of(request(target, *headers)) == found


@pytest.mark.parametrize(
    ("target", "headers"),
    [
        ("/?token=a.b.c&token=a.b.d", []),
        ("/?token=a.b.c&token=", []),
        ("/?token=a.b.c", [("Authorization", "Bearer a.b.d")]),
        ("/?token=a.b.c", [("Sec-WebSocket-Protocol", "street-fast,bearer.a.b.d")]),
        ("/", [("Sec-WebSocket-Protocol", "bearer.a.b.c, bearer.a.b.d")]),
        ("/", [("Authorization", "Bearer a.b.c"), ("Authorization", "Bearer a.b.d")]),
    ],
)
def test_two_tokens_are_one_too_many(target, headers):
    with pytest.raises(TokenRefused, match="two tokens"):
        auth().token_of(request(target, *headers))


@pytest.mark.parametrize(
    ("target", "headers"),
    [
        ("/?token=", []),
        ("/?token", []),
        ("/", [("Authorization", "Bearer")]),
        ("/", [("Authorization", "Bearer  ")]),
        ("/", [("Sec-WebSocket-Protocol", "street-fast, bearer.")]),
    ],
)
def test_an_empty_token_is_not_the_same_as_none(target, headers):
    with pytest.raises(TokenRefused, match="empty"):
        auth().token_of(request(target, *headers))


def request(target: str, *headers: tuple[str, str]) -> Request:
    return Request.from_pairs("GET", target, [(name.encode(), value.encode()) for name, value in headers])


# --- as the authenticate of a server ---


async def test_as_authenticate_of_a_server():
    members = []

    def handler(socket, request):
        members.append(request.member)

    for options in ({}, {"member": member_later}):
        members.clear()
        server = StreetWebSocketServer(authenticate=auth(**options))
        server.attach(HttpServer(), handler)
        async with memory_client(server, f"/?token={token()}"):
            assert members == [Member("ada")]
            assert members[0].expires_at == NOW + 600
        with pytest.raises(HandshakeRefused) as caught:
            async with memory_client(server, f"/?token={token(claims(sub=None))}"):
                pass
        assert caught.value.status == 401


async def member_later(claims):
    await asyncio.sleep(0)
    return Member("ada") if claims.get("sub") == "ada" else None


async def test_a_request_without_a_good_token_has_no_member(caplog):
    caplog.set_level(logging.DEBUG, "street_fast")
    for options in ({}, {"member": member_later}):
        checker = auth(**options)
        assert checker(request("/")) is None
        assert checker(request("/?token=a.b.c")) is None
        assert checker(request("/?token=a&token=b")) is None
    assert "two tokens" in caplog.text
    assert all(record.levelno == logging.DEBUG for record in caplog.records)
    assert await auth(member=member_later)(request(f"/?token={token(claims(sub='bob'))}")) is None
    assert await auth(member=member_later)(request(f"/?token={token()}")) == Member("ada")


# --- options ---


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({}, "exactly one of key"),
        ({"key": SECRET, "jwks": "https://a.example/"}, "exactly one of key"),
        ({"key": b"short"}, "at least 32 bytes"),
        ({"key": SECRET, "algorithms": ["none"]}, "is no signature"),
        ({"key": SECRET, "algorithms": ["HS512"]}, "at least 64 bytes"),
        ({"key": SECRET, "algorithms": ["RS256"]}, "is a secret"),
        ({"key": public_pem("rsa"), "algorithms": ["HS256"]}, "has none of them"),
        ({"key": SECRET, "algorithms": ["HS256", "RS256"]}, "do not go with"),
        ({"jwks": "https://a.example/", "algorithms": ["HS256"]}, "keys of a set are public"),
        ({"jwks": "http://a.example/"}, "must begin with https"),
        ({"jwks": "ftp://a.example/"}, "must begin with https"),
        ({"jwks": "/no/such/file"}, "No such file"),
        ({"jwks": ""}, "jwks="),
        ({"jwks": 5}, "jwks="),
        ({"key": SECRET, "issuer": 5}, "issuer="),
        ({"key": SECRET, "issuer": ""}, "issuer="),
        ({"key": SECRET, "issuer": []}, "issuer="),
        ({"key": SECRET, "audience": [5]}, "audience="),
        ({"key": SECRET, "audience": {"a": 1}}, "audience="),
        ({"key": SECRET, "member": "ada"}, "member="),
        ({"key": SECRET, "roles_claim": ""}, "roles_claim="),
        ({"key": SECRET, "limits": 5}, "limits="),
    ],
)
def test_options_that_are_none(options, why):
    with pytest.raises(ConfigurationError, match=why) as caught:
        JwtAuth(**options)
    assert SECRET.decode() not in str(caught.value)


def test_nothing_shows_the_secret():
    assert SECRET.decode() not in repr(auth())
    assert SECRET.decode() not in str(vars(auth()).keys())


# --- keys of a set: which of them; how they come is the business of test_jwks ---


@pytest.fixture
def key_file(tmp_path):
    path = tmp_path / "keys.json"
    path.write_bytes(key_set(jwk("rsa", kid="1"), jwk("P-256", kid="2"), jwk("rsa 2", kid="3", alg="RS256")))
    return path


def test_a_token_chooses_its_key(key_file):
    checker = auth(None, jwks=key_file)
    for name, algorithm, key_id in (("rsa", "RS256", "1"), ("P-256", "ES256", "2"), ("rsa 2", "RS256", "3")):
        good = token(key=private_key(name), algorithm=algorithm, header={"kid": key_id})
        assert checker.verify(good).id == "ada"
    with pytest.raises(TokenRefused, match="signature is not good"):
        checker.verify(token(key=private_key("rsa"), algorithm="RS256", header={"kid": "3"}))


def test_a_token_without_kid_needs_only_one_key_that_it_may_be(key_file):
    checker = auth(None, jwks=str(key_file))
    assert checker.verify(token(key=private_key("P-256"), algorithm="ES256")).id == "ada"
    with pytest.raises(TokenRefused, match="does not name its key"):
        checker.verify(token(key=private_key("rsa"), algorithm="RS256"))


@pytest.mark.parametrize(
    "key_id", ["", "4", "../keys.json", "/etc/passwd", "' OR 1=1 --", "http://evil.example/", "1\0", "x" * 4000]
)
def test_a_kid_only_chooses(key_file, key_id):
    checker = auth(None, jwks=key_file)
    with pytest.raises(TokenRefused, match="a key that is not known"):
        checker.verify(token(key=private_key("rsa"), algorithm="RS256", header={"kid": key_id}))


@pytest.mark.parametrize("key_id", ["1", "2", "4", None])
@pytest.mark.parametrize("algorithm", ["HS256", "none", "RS512", "PS256", "ES384", "EdDSA"])
def test_a_key_of_a_set_is_for_its_algorithm(key_file, key_id, algorithm):
    header = {"alg": algorithm, "kid": key_id} if key_id else {"alg": algorithm}
    text = token(header=header)
    checker = auth(None, jwks=key_file, algorithms=["RS256", "ES256"])
    with pytest.raises(TokenRefused, match="algorithm is not one of ES256, RS256"):
        checker.verify(text)
    with pytest.raises(TokenRefused, match=r"algorithm is not one of|a key that is not known"):
        auth(None, jwks=key_file).verify(text)
