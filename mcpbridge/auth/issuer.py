"""
An authorization server, as the bridge asks it: its metadata, its keys, its view of tokens.

One `Issuer` is shared by all servers whose settings of `oauth` are equal.  What it was told
is kept, and asked for again before it gets old.  While the issuer is away, keys that are
known serve for another hour.

Nobody can make the bridge fetch keys often with keys that do not exist.  Opaque tokens that
do not exist are asked about, each once in a while, since nothing else tells them from good
ones: a few at a time.  One address takes only its share of that, and of the places to wait;
many addresses together can take all of it, and then a token that is not known yet gets an
`AuthenticationUnavailable`.

Knows RFC 8414, OpenID Connect Discovery, RFC 7517 and RFC 7662; must not know HTTP, nor
what a token must say.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable, Mapping
from functools import partial
from hashlib import sha256
from math import ceil, inf
from typing import Any
from urllib.parse import quote_plus, urlsplit

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as Timeout
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from mcpbridge.auth.keys import Keys, VerificationKey, read_keys
from mcpbridge.auth.outbound import Answer, Fetcher, OutboundError
from mcpbridge.auth.question_queue import QuestionQueue
from mcpbridge.auth.shared_places import SharedPlaces
from mcpbridge.config.auth import OAuth
from mcpbridge.config.oauth import origin_of
from mcpbridge.errors import AuthenticationUnavailable, InvalidToken
from mcpbridge.rate_limited_log import RateLimitedLog, times
from mcpbridge.shared_work import SharedWork
from mcpbridge.timers import Timer

#: How long keys are used, unless the issuer says so within these bounds (`max-age`).
KEYS_SECONDS = 300.0
MIN_KEYS_SECONDS = 60.0
MAX_KEYS_SECONDS = 3600.0
#: The part of that time after which they are fetched anew while they still serve.
KEYS_REFRESH_SHARE = 0.75
#: How much longer they are used while the issuer is away.
KEYS_STALE_SECONDS = 3600.0
#: Keys are fetched once in this time, whatever tokens come.
KEYS_REFETCH_SECONDS = 30.0
#: What has never succeeded is tried again after this time.
RETRY_SECONDS = 5.0
#: So many requests wait for keys at a time, so many of them of one address, and so many
#: ids of keys that are not published are remembered until the next fetch.
MAX_KEY_WAITERS = 1024
MAX_KEY_WAITERS_OF_ADDRESS = 64
MAX_MISSING_KIDS = 1024
MAX_KID_CHARS = 256

#: How long the metadata is used before it is fetched anew.
METADATA_SECONDS = 3600.0

#: How long an answer about an opaque token is used: that it is good, and that it is not.
ACTIVE_SECONDS = 60.0
INACTIVE_SECONDS = 10.0
#: So many answers of either kind are kept, in all so many bytes of JSON.
MAX_ANSWERS = 4096
MAX_ANSWERS_BYTES = 16 * 1024 * 1024
#: So many tokens are asked about at a time, and so many of them for one address.
MAX_INTROSPECTIONS = 16
MAX_INTROSPECTIONS_OF_ADDRESS = 4
#: So many requests wait for an answer, and so many of them of one address.
MAX_INTROSPECTION_WAITERS = 512
MAX_INTROSPECTION_WAITERS_OF_ADDRESS = 64
#: How long a token waits until it is asked about, and then for the answer.
INTROSPECTION_SECONDS = 10.0

_MAX_AGE = re.compile(r"(?:^|[\s,])max-age=(\d{1,9})(?:$|[\s,;])")
_AWAY = "the authorization server cannot be asked now; try again"
_UNKNOWN_KEY = "the token names no key that the issuer publishes"


class _Metadata(msgspec.Struct):
    """The members of the metadata that are read (RFC 8414, section 2)."""

    issuer: str
    jwks_uri: str | None = None
    introspection_endpoint: str | None = None


_metadata_decoder = msgspec.json.Decoder(_Metadata)
_answer_decoder = msgspec.json.Decoder(dict[str, Any])


def metadata_urls(issuer: str) -> list[str]:
    """
    Return where the metadata may be, in the order of MCP (2026-07-28, basic/authorization,
    "Authorization Server Metadata Discovery").
    """
    origin, path = issuer[: _path_start(issuer)], issuer[_path_start(issuer) :].rstrip("/")
    urls = [
        f"{origin}/.well-known/oauth-authorization-server{path}",
        f"{origin}/.well-known/openid-configuration{path}",
    ]
    return [*urls, f"{origin}{path}/.well-known/openid-configuration"] if path else urls


def _path_start(url: str) -> int:
    parts = urlsplit(url)
    return len(parts.scheme) + len("://") + len(parts.netloc)


class Issuer:
    """
    The issuer of tokens of some settings.

    `client` fetches; `secret` is that of the client as which the bridge introspects.
    `withdrawn` is called when the issuer no longer publishes a key that it has published.
    """

    log = Logger()

    def __init__(
        self,
        settings: OAuth,
        clock: IReactorTime,
        client: Fetcher,
        secret: str = "",
        withdrawn: Callable[[], object] = lambda: None,
    ) -> None:
        self.settings = settings
        self._clock = clock
        self._client = client
        self._withdrawn = withdrawn
        self._trusted = frozenset(map(origin_of, _configured_urls(settings)))
        self._log = RateLimitedLog(clock)
        self._stopped = False

        self._metadata: _Metadata | None = None
        self._metadata_until = self._metadata_retry = -inf
        self._metadata_work = SharedWork(self._fetch_metadata)

        self._keys = Keys(())
        self._refresh_at = self._fresh_until = self._usable_until = -inf
        self._tried_at = -inf
        self._failing = False
        self._missing: set[str | None] = set()
        self._keys_work = SharedWork(self._fetch_keys)
        self._keys_timer = Timer(clock)
        self._key_waiters = SharedPlaces(MAX_KEY_WAITERS, MAX_KEY_WAITERS_OF_ADDRESS)

        self._secret = secret
        # Apart, so that tokens that anybody makes up drop no answer about a good one.
        self._active, self._inactive = _Answers(), _Answers()
        self._questions: QuestionQueue[Introspected] = QuestionQueue(
            clock,
            SharedPlaces(MAX_INTROSPECTION_WAITERS, MAX_INTROSPECTION_WAITERS_OF_ADDRESS),
            SharedPlaces(MAX_INTROSPECTIONS, MAX_INTROSPECTIONS_OF_ADDRESS),
            INTROSPECTION_SECONDS,
        )

    def stop(self) -> None:
        """Give up what is being fetched, and whoever waits for it."""
        self._stopped = True
        self._failing = True
        self._keys_timer.stop()
        self._questions.stop()
        self._keys_work.stop(None)
        self._metadata_work.stop(None)

    # Keys.

    def keys_for(
        self, kid: str | None, algorithm: str, address: str | None = None
    ) -> tuple[VerificationKey, ...] | Deferred[tuple[VerificationKey, ...]]:
        """
        Return the keys that a token may be signed with, which are never none.

        Returns them at once if they are known, else a Deferred.  A key that is unknown is
        looked for when keys may be fetched again, and the request waits until then: the
        issuer may have published it a moment ago.  `address` is the one whose share of the
        places to wait the request takes; None for none.

        Raises, or fails with, `InvalidToken` if the issuer has no such key,
        `AuthenticationUnavailable` if it cannot be asked, or too many wait.
        """
        now = self._clock.seconds()
        wait = self._next_fetch() - now
        if now >= self._usable_until:
            if self._failing and wait > 0:
                raise _away(wait)
            return self._after_fetch(kid, algorithm, address)
        if now >= self._fresh_until and not self._failing:
            # Most often they were fetched anew before, unless nobody has asked.
            return self._after_fetch(kid, algorithm, address)
        if now >= self._refresh_at and wait <= 0:
            self._keys_work.run()
        found = self._keys.fitting(kid, algorithm)
        if found:
            return found
        if wait > 0:
            if self._failing:
                raise _away(wait)
            if kid in self._missing:
                raise InvalidToken(_UNKNOWN_KEY)
        return self._after_fetch(kid, algorithm, address)

    def _next_fetch(self) -> float:
        """Return when keys may be fetched again."""
        known = self._clock.seconds() < self._usable_until
        return self._tried_at + (KEYS_REFETCH_SECONDS if known else RETRY_SECONDS)

    def _after_fetch(
        self, kid: str | None, algorithm: str, address: str | None
    ) -> Deferred[tuple[VerificationKey, ...]]:
        """Fetch the keys when that is allowed, and then look again."""
        if self._stopped or not self._key_waiters.take(address):
            raise _away(RETRY_SECONDS)
        waiting = self._keys_work.wait()
        waiting.addBoth(self._waited_for_keys, address)
        found = waiting.addCallback(lambda _: self._look_again(kid, algorithm))
        if not self._keys_work.is_running and not self._keys_timer.is_running:
            wait = self._next_fetch() - self._clock.seconds()
            if wait > 0:
                self._keys_timer.start(wait, self._keys_work.run)
            else:
                self._keys_work.run()
        return found

    def _waited_for_keys(self, result: Any, address: str | None) -> Any:
        self._key_waiters.give_back(address)
        # A failure if the request was cancelled.
        return result

    def _look_again(self, kid: str | None, algorithm: str) -> tuple[VerificationKey, ...]:
        now = self._clock.seconds()
        found = self._keys.fitting(kid, algorithm) if now < self._usable_until else ()
        if found:
            return found
        if self._failing:
            raise _away(self._next_fetch() - now)
        if len(self._missing) < MAX_MISSING_KIDS and len(kid or "") <= MAX_KID_CHARS:
            self._missing.add(kid)
        raise InvalidToken(_UNKNOWN_KEY)

    def _fetch_keys(self) -> Deferred[None]:
        self._keys_timer.stop()
        self._tried_at = self._clock.seconds()
        fetching = Deferred.fromCoroutine(self._read_keys())
        return fetching.addErrback(self._keys_failed)

    async def _read_keys(self) -> None:
        url = self.settings.jwks_uri or (await self._endpoint("jwks_uri"))
        answer = await self._fetch(url)
        try:
            keys = read_keys(_content(answer, url), self.settings.algorithms)
        except ValueError as error:
            raise OutboundError(f"{url}: {error}") from None
        if not len(keys):
            self.log.warn(
                "issuer {issuer}: there is no key to verify tokens with at {url}",
                issuer=self.settings.issuer,
                url=url,
            )
        now = self._clock.seconds()
        lifetime = _lifetime(answer.cache_control)
        former, self._keys = self._keys, keys
        self._refresh_at = now + KEYS_REFRESH_SHARE * lifetime
        self._fresh_until = now + lifetime
        self._usable_until = self._fresh_until + KEYS_STALE_SECONDS
        self._failing = False
        self._missing.clear()
        if keys.lacks_any_of(former):
            self._withdrawn()

    def _keys_failed(self, failure: Failure) -> None:
        self._failing = True
        # It may have moved its keys.
        self._metadata_until = -inf
        self._complain("its keys cannot be fetched", failure)

    # Metadata.

    async def _endpoint(self, name: str) -> str:
        """Return a URL of the metadata.  Raises `OutboundError` if it is not there."""
        metadata = self._metadata
        now = self._clock.seconds()
        if now >= self._metadata_until and now >= self._metadata_retry:
            waiting = self._metadata_work.wait()
            self._metadata_work.run()
            await waiting
            metadata = self._metadata
        if metadata is None:
            raise OutboundError("its metadata is not known")
        url: str | None = getattr(metadata, name)
        if url is None:
            raise OutboundError(f"its metadata has no {name!r}")
        return url

    def _fetch_metadata(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self._read_metadata()).addErrback(self._metadata_failed)

    async def _read_metadata(self) -> None:
        """Read the first document that is one; what was known is kept if there is none."""
        problems = []
        for url in metadata_urls(self.settings.issuer):
            answer = await self._fetch(url)
            try:
                metadata = _metadata_decoder.decode(_content(answer, url))
            except OutboundError as error:
                problems.append(str(error))
            except (msgspec.MsgspecError, ValueError, RecursionError):
                problems.append(f"{url}: it is no metadata")
            else:
                # RFC 8414, section 3.3: otherwise it must not be used.
                if metadata.issuer == self.settings.issuer:
                    self._metadata = metadata
                    self._metadata_until = self._clock.seconds() + METADATA_SECONDS
                    return
                problems.append(f"{url}: it is that of another issuer, {metadata.issuer[:200]!r}")
        raise OutboundError("; ".join(problems))

    def _metadata_failed(self, failure: Failure) -> None:
        self._metadata_retry = self._clock.seconds() + RETRY_SECONDS
        self._complain("its metadata cannot be fetched", failure)

    # Opaque tokens.

    def introspect(
        self, token: str, address: str | None = None
    ) -> Introspected | Deferred[Introspected]:
        """
        Return what the issuer says of an opaque token: at once if that is known.

        `address` is the one whose share of the questions this is; None for none.
        Raises, or fails with, `AuthenticationUnavailable` if the issuer cannot be asked, or
        too many wait.
        """
        digest = sha256(token.encode("utf-8")).digest()
        now = self._clock.seconds()
        known = self._active.get(digest, now) or self._inactive.get(digest, now)
        if known is not None:
            return known
        waiting = self._questions.ask(digest, partial(self._ask, token, digest), address)
        if waiting is None:
            raise _away(RETRY_SECONDS)
        return waiting.addCallback(_answered)

    def seconds_left(self, answer: Introspected) -> float:
        """Return how much longer an answer may be used."""
        return answer.until - self._clock.seconds()

    def _ask(self, token: str, digest: bytes) -> Deferred[Any]:
        """Return a Deferred of the answer, or of None without one."""
        asking: Deferred[Any] = Deferred.fromCoroutine(self._read_answer(token, digest))
        asking.addTimeout(INTROSPECTION_SECONDS, self._clock)
        return asking.addErrback(self._ask_failed)

    async def _read_answer(self, token: str, digest: bytes) -> Introspected:
        settings = self.settings.introspection
        assert settings is not None, "opaque tokens are refused without it"
        url = settings.endpoint or (await self._endpoint("introspection_endpoint"))
        answer = await self._fetch(
            url,
            form={"token": token, "token_type_hint": "access_token"},
            authorization=_basic(settings.client_id, self._secret),
        )
        content = _content(answer, url)
        try:
            claims = _answer_decoder.decode(content)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            raise OutboundError(f"{url}: the answer is no object of JSON") from None
        now = self._clock.seconds()
        if claims.get("active") is True:
            result, kept = Introspected(claims, now + ACTIVE_SECONDS), self._active
        elif claims.get("active") is False:
            result, kept = Introspected(None, now + INACTIVE_SECONDS), self._inactive
        else:
            raise OutboundError(f"{url}: the answer does not say whether the token is active")
        kept.put(digest, result, len(content), now)
        return result

    def _ask_failed(self, failure: Failure) -> None:
        self._complain("a token cannot be introspected", failure)

    # Requests.

    def _fetch(self, url: str, **named: Any) -> Deferred[Answer]:
        """Fetch a URL, from the public Internet alone unless it is configured."""
        try:
            origin = origin_of(url)
        except ValueError as error:
            raise OutboundError(f"what its metadata names is {error}") from None
        trusted = origin in self._trusted or origin.is_in(self.settings.trusted_hosts)
        if not trusted and origin.scheme != "https":
            raise OutboundError(f"{url[:200]}, which its metadata names, is not https")
        fetching = self._client.fetch(url, public_only=not trusted, **named)
        return fetching.addErrback(_add_url, url)

    def _complain(self, what: str, failure: Failure) -> None:
        if self._stopped:
            return
        self._log.add()
        count = self._log.due()
        if count is None:
            return
        error = failure.value
        if isinstance(error, (OutboundError, Timeout)):
            why = str(error) or type(error).__name__
            self.log.warn(
                "issuer {issuer}: {what}: {reason}{times}",
                issuer=self.settings.issuer,
                what=what,
                reason=why,
                times=times(count),
            )
        else:
            self.log.failure(
                "issuer {issuer}: {what}{times}",
                failure,
                issuer=self.settings.issuer,
                what=what,
                times=times(count),
            )


class Introspected:
    """What the issuer said of a token: its claims, None if it is not active; and until when."""

    __slots__ = ("claims", "until")

    def __init__(self, claims: Mapping[str, Any] | None, until: float) -> None:
        self.claims = claims
        self.until = until


class _Answers:
    """The answers about opaque tokens, by a digest of each; the oldest give way."""

    def __init__(self) -> None:
        self._by_digest: dict[bytes, tuple[Introspected, int]] = {}
        self._size = 0

    def get(self, digest: bytes, now: float) -> Introspected | None:
        """Return an answer that still holds."""
        found = self._by_digest.get(digest)
        if found is not None and now < found[0].until:
            return found[0]
        return None

    def put(self, digest: bytes, answer: Introspected, size: int, now: float) -> None:
        """Keep an answer, and drop those that do not hold or are too many."""
        self._drop(digest)
        self._by_digest[digest] = (answer, size)
        self._size += size
        while True:
            oldest = next(iter(self._by_digest))
            too_many = len(self._by_digest) > MAX_ANSWERS or self._size > MAX_ANSWERS_BYTES
            if not too_many and now < self._by_digest[oldest][0].until:
                return
            self._drop(oldest)
            if not self._by_digest:
                return

    def _drop(self, digest: bytes) -> None:
        found = self._by_digest.pop(digest, None)
        if found is not None:
            self._size -= found[1]


def _configured_urls(settings: OAuth) -> list[str]:
    asked = settings.introspection
    urls = [settings.issuer, settings.jwks_uri, asked.endpoint if asked else None]
    return [url for url in urls if url is not None]


def _content(answer: Answer, url: str) -> bytes:
    """Return the body of a successful answer; raises `OutboundError` for any other."""
    if answer.status != 200:
        hint = ": it refuses the bridge's own credentials" if answer.status == 401 else ""
        raise OutboundError(f"{url}: status {answer.status}{hint}")
    return answer.body


def _lifetime(cache_control: str) -> float:
    """Return how long keys may be used before they are fetched anew."""
    found = _MAX_AGE.search(cache_control)
    seconds = float(found[1]) if found else KEYS_SECONDS
    if "no-store" in cache_control or "no-cache" in cache_control:
        seconds = 0.0
    return min(max(seconds, MIN_KEYS_SECONDS), MAX_KEYS_SECONDS)


def _basic(client: str, secret: str) -> bytes:
    """Return the credentials of a client (RFC 6749, section 2.3.1)."""
    pair = f"{quote_plus(client)}:{quote_plus(secret)}"
    return b"Basic " + b64encode(pair.encode("ascii"))


def _add_url(failure: Failure, url: str) -> Failure:
    if failure.check(OutboundError):
        return Failure(OutboundError(f"{url}: {failure.value}"))
    return failure


def _answered(answer: Introspected | None) -> Introspected:
    if answer is None:
        raise _away(RETRY_SECONDS)
    return answer


def _away(seconds: float) -> AuthenticationUnavailable:
    error = AuthenticationUnavailable(_AWAY)
    error.retry_after = max(1, ceil(seconds))
    return error
