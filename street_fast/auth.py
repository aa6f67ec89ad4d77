"""Who a connection belongs to: the Member that `authenticate` names, and JwtAuth, which finds it in a signed token.

A Member is a value: two with the same fields are equal, and nothing about it changes while the connection lasts. When
its token ends is no part of who it is, and does not count.

JwtAuth checks JSON Web Tokens (RFC 7519, in the compact form of RFC 7515) with the keys of `jwt_keys`. What is here
decides what is believed, in this order:

1. The length, the form (three parts in strict base64url), and the header, of which three fields are looked at: ``alg``
   must be one that was allowed before any token came, and one that the key is for; ``kid`` may only choose among keys
   that are there; an extension (``crit``, ``zip``, ``b64``) is refused. ``jku``, ``jwk``, ``x5u`` and ``x5c`` would be
   keys that the token brings itself: nobody looks at them.
2. The signature.
3. The claims, which are not even decoded before: times, issuer, audience, then whom the token names.

There are two kinds of tokens. One with a claim ``channel`` or ``channels`` is for channels and logs nobody in; one
without is for logging in and opens no channel.

Whatever is wrong raises TokenRefused, whose sentence may be shown: it holds nothing of the token, and no key.
"""

from __future__ import annotations

import base64
import dataclasses
import inspect
import logging
import math
import os
import re
import time
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar, Union

import orjson

from street_fast.errors import ConfigurationError, StreetError
from street_fast.jwks import KeyFile, KeyUrl
from street_fast.jwt_keys import PUBLIC_ALGORITHMS, SECRET_ALGORITHMS, checked_algorithms, given_keys, keys_of_set
from street_fast.limits import checked_limits

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable, Sequence

    from street_fast.jwt_keys import Key
    from street_fast.limits import Limits
    from street_fast.request import Request

__all__ = ["ACTIONS", "Grant", "JwtAuth", "Member", "TokenRefused"]

logger = logging.getLogger("street_fast")

ACTIONS = frozenset(("subscribe", "publish", "presence", "history"))
"""What may be allowed or forbidden in a channel."""


class TokenRefused(StreetError):
    """A token is not good; the sentence says why, and holds nothing of the token.

    `temporary` is true if the same token may be good later: what it is checked against cannot be had at the moment.
    """

    code = "unauthorized"

    def __init__(self, message: str, *, temporary: bool = False) -> None:
        self.temporary = temporary
        super().__init__(message)


@dataclasses.dataclass(frozen=True, slots=True, init=False)
class Member:
    """One person or program, on any number of connections.

    `id` is what channels count and other members see; `roles` what it may do; `info` what it tells the others about
    itself (a dict that can be written as JSON), or None. `expires_at`, in Unix seconds, is when the token that it came
    with ends, or None for never. Raises ConfigurationError for an id that is empty or no string, for roles that are not
    a collection of strings, and for a time that is no number.
    """

    id: str
    roles: frozenset[str]
    info: dict[str, Any] | None = dataclasses.field(hash=False)
    expires_at: float | None = dataclasses.field(compare=False)

    def __init__(
        self,
        id: str,  # noqa: A002
        roles: Iterable[str] = (),
        info: dict[str, Any] | None = None,
        *,
        expires_at: float | None = None,
    ) -> None:
        if not isinstance(id, str) or not id:
            raise ConfigurationError(f"Member(id={id!r}): must be a string that is not empty")
        try:
            names = frozenset(roles)
        except TypeError:
            names = None
        if names is None or isinstance(roles, str) or not all(isinstance(role, str) for role in names):
            raise ConfigurationError(f"Member(roles={roles!r}): must be a collection of strings")
        if expires_at is not None and not (_is_number(expires_at) and -math.inf < expires_at < math.inf):
            raise ConfigurationError(f"Member(expires_at={expires_at!r}): must be a number of Unix seconds, or None")
        object.__setattr__(self, "id", id)
        object.__setattr__(self, "roles", names or _NO_ROLES)  # an empty set takes 216 bytes, and most have one
        object.__setattr__(self, "info", info)
        object.__setattr__(self, "expires_at", expires_at)


class Grant(NamedTuple):
    """What a channel token allows in its channel: `actions`, until `expires_at` (Unix seconds; None: for ever)."""

    actions: frozenset[str]
    expires_at: float | None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


Claims: TypeAlias = dict[str, Any]
MemberOf: TypeAlias = Callable[[Claims], Union[Member, "Awaitable[Member | None]", None]]

_COMPACT = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]*)")
_LAST_CHARACTERS = {2: "AQgw", 3: "AEIMQUYcgkosw048"}
"""Of a base64url text, by its length modulo 4: those without stray bits, so that there is one way to write it."""

_LAST_SECOND = 253_402_300_799  # of the year 9999
_NO_ROLES: frozenset[str] = frozenset()
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class _Token(NamedTuple):
    """A token of which nothing has been believed yet."""

    algorithm: str
    key_id: str | None
    signed: bytes
    payload: str
    signature: bytes


class JwtAuth:
    """Tells members by their JSON Web Tokens: for Realtime(auth=...) or StreetWebSocketServer(authenticate=...).

    Needs PyJWT: ``pip install 'street_fast[jwt]'``. Exactly one of `key` and `jwks` is given.

    Args:
        key: a secret (str or bytes; at least 32 bytes for HS256, 48 for HS384, 64 for HS512) or a public key in PEM
            (RSA of 2048 bits or more, EC P-256/P-384/P-521, Ed25519, Ed448); or a list of either, any of which may
            have signed: put the new one beside the old one to change it.
        jwks: an issuer's JSON Web Key Set: its https:// URL (http:// on localhost), or the path of a file. A URL is
            fetched when the first token comes; later every 5 minutes, and when a token names a key that is not there,
            but never more than once in 30 s; what is known goes on being used while it is down. A file is read at
            once, and again within 30 s of a change. Keys for encryption, secrets and unknown kinds are passed over.
        algorithms: those allowed, of HS256/384/512, RS256/384/512, PS256/384/512, ES256/384/512 and EdDSA. By default
            HS256 for a secret, RS256 for RSA, what fits the curve for the others; a key of a set that says its
            algorithm is for that one. HMAC and public keys do not mix, and ``none`` is none.
        issuer: what ``iss`` must be, or a list of what it may be.
        audience: what ``aud`` must be or have in it, or a list any of which will do. Without it, a token that names an
            audience is refused: it is for somebody else (RFC 7519 section 4.1.3).
        member: ``member(claims) -> Member | None``, plain or coroutine function, instead of the usual: the id from
            ``sub``, the roles from `roles_claim`, the info from ``info``. None refuses the token, and so does an
            exception, which is logged. The member ends when the token does, or earlier if it says so.
        roles_claim: the claim with the roles: a list of strings, or one string with spaces between them, such as
            ``scope``. Without the claim there are no roles.
        require_expiry: refuse tokens without ``exp``.
        limits: `token_bytes`, `token_skew_s` (how far ``exp``, ``nbf`` and ``iat`` may be off), and what bounds a
            member: `channel_name_bytes` for its id, `presence_info_bytes` for its info.

    Raises ConfigurationError for a bad option. With a URL, one JwtAuth serves one event loop.
    """

    def __init__(
        self,
        key: str | bytes | Sequence[str | bytes] | None = None,
        *,
        jwks: str | os.PathLike[str] | None = None,
        algorithms: Sequence[str] | None = None,
        issuer: str | Sequence[str] | None = None,
        audience: str | Sequence[str] | None = None,
        member: MemberOf | None = None,
        roles_claim: str = "roles",
        require_expiry: bool = True,
        limits: Limits | None = None,
    ) -> None:
        if (key is None) == (jwks is None):
            raise ConfigurationError("JwtAuth: needs exactly one of key (a secret or public keys) and jwks")
        if member is not None and not callable(member):
            raise ConfigurationError(f"member={member!r}: must be a function of the claims, or None")
        if not isinstance(roles_claim, str) or not roles_claim:
            raise ConfigurationError(f"roles_claim={roles_claim!r}: must be the name of a claim")
        allowed = checked_algorithms(algorithms)
        self._keys = [] if key is None else given_keys(key, allowed)
        self._source = None if jwks is None else _source(jwks, allowed)
        self._algorithms = (
            frozenset(name for key in self._keys for name in key.algorithms) or allowed or PUBLIC_ALGORITHMS
        )
        self._issuers = _checked_names("issuer", issuer)
        self._audiences = _checked_names("audience", audience)
        self._member = member
        self._roles_claim = roles_claim
        self._require_expiry = require_expiry
        self._limits = checked_limits(limits)
        self.clock = time.time

    # --- where a token is ---

    def token_of(self, request: Request) -> str | None:
        """The token that a request brings, or None.

        It is in the query (``?token=``), in ``Authorization: Bearer``, or behind ``bearer.`` among the subprotocols,
        which is the only place where a browser can put it that is not logged. Raises TokenRefused for two that differ,
        and for one that is empty.
        """
        headers = request.headers
        found = dict.fromkeys(request.query.get_all("token"))
        for credentials in headers.get_all("authorization"):
            scheme, _, token = credentials.partition(" ")
            if scheme.lower() == "bearer":
                found[token.strip(" \t")] = None
        for offers in headers.get_all("sec-websocket-protocol"):
            for offer in offers.split(","):
                offer = offer.strip(" \t")
                if offer.startswith("bearer."):
                    found[offer.removeprefix("bearer.")] = None
        if not found:
            return None
        if len(found) > 1:
            raise TokenRefused("the request brings two tokens that differ")
        (token,) = found
        if not token:
            raise TokenRefused("the token is empty")
        return token

    def __call__(self, request: Request) -> Member | Awaitable[Member | None] | None:
        """The member of a request, or None: what a server wants of `authenticate`."""
        try:
            token = self.token_of(request)
            answer = None if token is None else self.verify(token)
        except TokenRefused as error:
            logger.debug("a token is refused: %s", error)
            return None
        return answer if answer is None or isinstance(answer, Member) else _or_none(answer)

    # --- what it says ---

    def verify(self, token: str) -> Member | Awaitable[Member]:
        """The member that a token logs in; an awaitable if keys must be fetched or `member` is a coroutine function.

        Raises TokenRefused, or the awaitable does.
        """
        claims = self._claims(token)
        return self._log_in(claims) if isinstance(claims, dict) else _later(claims, self._log_in)

    def grant(self, token: str, member: Member, channel: str) -> Grant | Awaitable[Grant]:
        """What a channel token allows `member` in `channel`; an awaitable if keys must be fetched.

        Its claims: ``sub``, the id of the member; ``channel``, the name of one channel, or ``channels``, a list of
        names in which ``*`` stands for any characters, also none; ``actions``, a list of subscribe, publish, presence
        and history (without it: subscribe). Raises TokenRefused, or the awaitable does.
        """

        def open_channel(claims: Claims) -> Grant:
            return _grant(claims, member, channel)

        claims = self._claims(token)
        return open_channel(claims) if isinstance(claims, dict) else _later(claims, open_channel)

    def _claims(self, text: str) -> Claims | Awaitable[Claims]:
        token = self._parse(text)
        source = self._source
        if source is None:
            return self._opened(token, [key for key in self._keys if token.algorithm in key.algorithms])
        asked_at = source.clock()
        keys = _choose(source.keys(), token)
        if keys:
            return self._opened(token, keys)
        newer = source.newer()
        if newer is None:
            raise _no_key(source, asked_at)
        return self._opened_later(token, newer, source, asked_at)

    async def _opened_later(
        self, token: _Token, newer: Awaitable[None], source: KeyFile[Key] | KeyUrl[Key], asked_at: float
    ) -> Claims:
        await newer
        keys = _choose(source.keys(), token)
        if not keys:
            raise _no_key(source, asked_at)
        return self._opened(token, keys)

    def _parse(self, text: str) -> _Token:
        most = self._limits.token_bytes
        if not isinstance(text, str) or len(text) > most:
            raise TokenRefused(
                f"the token is longer than {most} bytes" if isinstance(text, str) else "the token is no string"
            )
        parts = _COMPACT.fullmatch(text)
        if parts is None:
            raise TokenRefused("the token is no JWT: three parts in base64url with dots between them")
        header = _decoded_object(parts[1], "header")
        for name in ("crit", "zip", "b64"):
            if name in header:
                raise TokenRefused(f"the token needs an extension that is not understood ({name})")
        algorithm, key_id = header.get("alg"), header.get("kid")
        if not isinstance(algorithm, str) or algorithm not in self._algorithms:
            raise TokenRefused(f"the token's algorithm is not one of {', '.join(sorted(self._algorithms))}")
        if key_id is not None and not isinstance(key_id, str):
            raise TokenRefused("the name of the token's key (kid) is no string")
        return _Token(algorithm, key_id, text[: parts.end(2)].encode(), parts[2], _decoded(parts[3], "signature"))

    def _opened(self, token: _Token, keys: Sequence[Key]) -> Claims:
        """The claims of a token that one of `keys` has signed and that is good now."""
        if not any(key.has_signed(token.algorithm, token.signed, token.signature) for key in keys):
            raise TokenRefused("the token's signature is not good")
        claims = _decoded_object(token.payload, "payload")
        self._check_times(claims)
        if self._issuers:
            issuer = claims.get("iss")
            if not isinstance(issuer, str) or issuer not in self._issuers:
                raise TokenRefused("the token is of another issuer (iss)")
        if self._audiences or "aud" in claims:
            self._check_audience(claims.get("aud"))
        return claims

    def _check_times(self, claims: Claims) -> None:
        now, skew = self.clock(), self._limits.token_skew_s
        expiry = _time(claims, "exp")
        if expiry is None:
            if self._require_expiry:
                raise TokenRefused("the token does not say when it ends (exp)")
        elif now >= expiry + skew:
            raise TokenRefused("the token has expired")
        not_before = _time(claims, "nbf")
        if not_before is not None and now < not_before - skew:
            raise TokenRefused("the token is not valid yet (nbf)")
        issued_at = _time(claims, "iat")
        if issued_at is not None and now < issued_at - skew:
            raise TokenRefused("the token was issued in the future (iat): the clocks differ")

    def _check_audience(self, audience: object) -> None:
        names = [audience] if isinstance(audience, str) else audience
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise TokenRefused("the token names no audience (aud)")
        if not self._audiences:
            raise TokenRefused("the token is for an audience (aud), and the server has not been told that it is it")
        if self._audiences.isdisjoint(names):
            raise TokenRefused("the token is for another audience (aud)")

    # --- whom it names ---

    def _log_in(self, claims: Claims) -> Member | Awaitable[Member]:
        if "channel" in claims or "channels" in claims:
            raise TokenRefused("the token is for a channel; it cannot log in")
        if self._member is None:
            return self._named_member(claims)
        try:
            answer = self._member(claims)
        except Exception as error:
            raise _member_failed(error) from error
        if inspect.isawaitable(answer):
            return self._asked_member(answer, claims)
        return _until(answer, claims)

    async def _asked_member(self, answer: Awaitable[Member | None], claims: Claims) -> Member:
        try:
            member = await answer
        except Exception as error:
            raise _member_failed(error) from error
        return _until(member, claims)

    def _named_member(self, claims: Claims) -> Member:
        """The member of the usual claims. What could not join a channel does not log in either."""
        name, info, limits = claims.get("sub"), claims.get("info"), self._limits
        if not isinstance(name, str) or not name:
            raise TokenRefused("the token does not say whose it is (sub)")
        if len(name.encode()) > limits.channel_name_bytes or _CONTROL.search(name):
            raise TokenRefused(f"sub is longer than {limits.channel_name_bytes} bytes, or has control characters in it")
        roles = _words(claims, self._roles_claim, ())
        if info is not None and not isinstance(info, dict):
            raise TokenRefused("info is no object")
        try:
            written = orjson.dumps(info)
        except orjson.JSONEncodeError:
            raise TokenRefused("info is nested too deep") from None
        if len(written) > limits.presence_info_bytes:
            raise TokenRefused(f"info is longer than {limits.presence_info_bytes} bytes")
        return Member(name, roles, info, expires_at=claims.get("exp"))


T = TypeVar("T")
R = TypeVar("R")


async def _later(value: Awaitable[T], step: Callable[[T], R | Awaitable[R]]) -> R:
    result = step(await value)
    return await result if inspect.isawaitable(result) else result


async def _or_none(answer: Awaitable[Member]) -> Member | None:
    try:
        return await answer
    except TokenRefused as error:
        logger.debug("a token is refused: %s", error)
        return None


# --- claims ---


def _decoded(segment: str, what: str) -> bytes:
    """The bytes of a part, which is of the base64url alphabet. Refuses what no encoder writes."""
    rest = len(segment) % 4
    if rest == 1 or (rest and segment[-1] not in _LAST_CHARACTERS[rest]):
        raise TokenRefused(f"the token's {what} is not base64url")
    return base64.urlsafe_b64decode(segment + "=" * (-rest % 4))


def _decoded_object(segment: str, what: str) -> Claims:
    try:
        value = orjson.loads(_decoded(segment, what))
    except orjson.JSONDecodeError:
        raise TokenRefused(f"the token's {what} is not JSON") from None
    if not isinstance(value, dict):
        raise TokenRefused(f"the token's {what} is no JSON object")
    return value


def _time(claims: Claims, name: str) -> float | None:
    """A NumericDate (RFC 7519 section 2)."""
    if name not in claims:
        return None
    value = claims[name]
    if not _is_number(value) or not 0 <= value <= _LAST_SECOND:
        raise TokenRefused(f"{name} is no time in seconds since 1970")
    return value  # type: ignore[no-any-return]


def _words(claims: Claims, name: str, default: Collection[str]) -> Collection[str]:
    """The strings of a claim: a list of them, or one with spaces between them."""
    value = claims.get(name)
    if value is None:
        return default
    words = value.split() if isinstance(value, str) else value
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise TokenRefused(f"{name} is no list of strings")
    return words


def _until(member: object, claims: Claims) -> Member:
    """What `member` has answered, with the end of its token."""
    if not isinstance(member, Member):
        if member is not None:
            logger.error("member returned %r, which is no Member: the token is refused", type(member).__name__)
        raise TokenRefused("the token is of nobody who is known here")
    expiry = claims.get("exp")
    if expiry is None or (member.expires_at is not None and member.expires_at <= expiry):
        return member
    return dataclasses.replace(member, expires_at=expiry)


def _member_failed(error: Exception) -> TokenRefused:
    if isinstance(error, TokenRefused):
        return error
    logger.error("member failed, the token is refused", exc_info=error)
    return TokenRefused("it cannot be found out at the moment whose token it is", temporary=True)


def _grant(claims: Claims, member: Member, channel: str) -> Grant:
    if "channel" not in claims and "channels" not in claims:
        raise TokenRefused("the token is for logging in; it opens no channel")
    if claims.get("sub") != member.id:
        raise TokenRefused("the token for the channel is of somebody else (sub)")
    if "channel" in claims and "channels" in claims:
        raise TokenRefused("the token has both channel and channels")
    if "channel" in claims:
        good = claims["channel"] == channel
    else:
        names = claims["channels"]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise TokenRefused("channels is no list of strings")
        good = any(_matches(name, channel) for name in names)
    if not good:
        raise TokenRefused("the token is for another channel")
    actions = frozenset(_words(claims, "actions", ("subscribe",)))
    if not actions or not actions <= ACTIONS:
        raise TokenRefused(f"actions must be some of {', '.join(sorted(ACTIONS))}")
    return Grant(actions, claims.get("exp"))


def _matches(pattern: str, name: str) -> bool:
    """Whether `name` is `pattern`, in which ``*`` stands for any characters."""
    first, *pieces = pattern.split("*")
    if not pieces:
        return name == first
    *between, last = pieces
    end = len(name) - len(last)
    if not name.startswith(first) or not name.endswith(last) or end < len(first):
        return False
    position = len(first)
    for piece in between:  # each where it comes first: if that leaves no room for the next one, nothing does
        position = name.find(piece, position, end)
        if position < 0:
            return False
        position += len(piece)
    return True


# --- keys ---


def _choose(keys: Sequence[Key], token: _Token) -> list[Key]:
    """Those keys of a set that may have signed a token. One that names no key is no reason to try them all."""
    fitting = [key for key in keys if token.algorithm in key.algorithms]
    if token.key_id is not None:
        return [key for key in fitting if key.id == token.key_id]
    if len(fitting) > 1:
        raise TokenRefused("the token does not name its key (kid), and there are several that it may be")
    return fitting


def _no_key(source: KeyFile[Key] | KeyUrl[Key], asked_at: float) -> TokenRefused:
    if source.known_since(asked_at):
        return TokenRefused("the token is signed with a key that is not known")
    return TokenRefused("the token is signed with a key that is not known at the moment", temporary=True)


def _source(jwks: object, allowed: frozenset[str] | None) -> KeyFile[Key] | KeyUrl[Key]:
    if not isinstance(jwks, str | os.PathLike) or not jwks:
        raise ConfigurationError(f"jwks={jwks!r}: must be an https:// URL or the path of a file")
    if allowed and allowed <= SECRET_ALGORITHMS:
        raise ConfigurationError(f"algorithms={sorted(allowed)}: the keys of a set are public, and these want a secret")

    def parse(document: bytes) -> list[Key]:
        return keys_of_set(document, allowed)

    if isinstance(jwks, str) and "://" in jwks:
        return KeyUrl(jwks, parse)
    path = os.fspath(jwks)
    try:
        return KeyFile(path, parse)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"jwks={path!r}: {error}") from error


def _checked_names(option: str, value: object) -> frozenset[str]:
    if value is None:
        return frozenset()
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list | tuple | set | frozenset) or not names:
        raise ConfigurationError(f"{option}={value!r}: must be a string, a list of strings, or None")
    for name in names:
        if not isinstance(name, str) or not name:
            raise ConfigurationError(f"{option}={value!r}: {name!r} is no string with something in it")
    return frozenset(names)
