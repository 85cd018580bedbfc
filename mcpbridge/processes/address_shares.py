"""
How much of a shared resource each client address has, and may have.

Knows numbers and addresses; must not know the resource.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from mcpbridge.errors import TooManyOfAddress
from mcpbridge.rate_limited_log import RateLimitedLog

#: Tolerance for sums of fractions: 1/3 taken three times is not exactly 1.
_NOTHING = 1e-6


class Fullest:
    """Addresses sorted by how much each has, in whole numbers; a change takes constant time."""

    def __init__(self) -> None:
        # For each amount the addresses that have it, in the order in which they reached it.
        self._by_count: dict[int, dict[str, None]] = {}

    def changed(self, address: str, before: int, after: int) -> None:
        """Note that the amount of an address has changed; 0 stands for an address without any."""
        if before:
            same = self._by_count[before]
            del same[address]
            if not same:
                del self._by_count[before]
        if after:
            self._by_count.setdefault(after, {})[address] = None

    def first(self, most: int) -> list[str]:
        """Return at most so many addresses, those with most first."""
        # Of ten thousand things there are at most 141 different numbers.
        counts = sorted(self._by_count, reverse=True)
        found = (address for count in counts for address in self._by_count[count])
        return list(islice(found, most))


class Shares:
    """
    Counts how much each address has, and lets none have more than `limit`.

    `what` and `setting` name the resource and its limit in the log
    (`RateLimitedLog`).  The address None is neither counted nor limited.  Where callers are
    known, these are names of identities, and `of_identities` is True.
    """

    log = Logger()

    def __init__(
        self,
        limit: int,
        clock: IReactorTime,
        *,
        what: str,
        setting: str,
        of_identities: bool = False,
    ) -> None:
        self.limit = limit
        self.setting = setting
        self.whose = "your identity" if of_identities else "your address"
        self._all = "identities" if of_identities else "addresses"
        self._what = what
        self._taken: dict[str, float] = {}
        self._refusals = RateLimitedLog(clock)

    def __len__(self) -> int:
        return len(self._taken)

    def taken(self, address: str | None) -> float:
        """Return how much an address has."""
        return 0 if address is None else self._taken.get(address, 0)

    def is_over(self, address: str | None, amount: float = 1) -> bool:
        """Return whether an address may not have so much more."""
        return address is not None and self._taken.get(address, 0) + amount > self.limit + _NOTHING

    def take(self, address: str | None, amount: float = 1) -> bool:
        """Take some for an address; return False, and log it, where it may not have so much."""
        if self.is_over(address, amount):
            self.refused(address)
            return False
        if address is not None:
            self.add(address, amount)
        return True

    def add(self, address: str, amount: float = 1) -> None:
        """Take some for an address, even beyond the limit."""
        self._taken[address] = self._taken.get(address, 0) + amount

    def give_back(self, address: str | None, amount: float = 1) -> None:
        """Return what was taken; must be called only once for it."""
        if address is not None:
            left = self._taken.get(address, 0) - amount
            if left > _NOTHING:
                self._taken[address] = left
            else:
                self._taken.pop(address, None)

    def refused(self, address: str | None) -> None:
        """Note that an address was refused; this is logged now and then."""
        self._refusals.add()
        count = self._refusals.due()
        if count is not None:
            self.log.warn(
                "{address} has reached its share of {what}: {limit} ({setting}); refused since the"
                " last such line, of all {all}: {count}",
                address=address if address is None or address.isprintable() else ascii(address),
                all=self._all,
                what=self._what,
                limit=self.limit,
                setting=self.setting,
                count=count,
            )


class Claim:
    """An amount that an address has of several shares; it counts once, however many hold it."""

    __slots__ = ("_address", "_amount", "_holders", "_shares")

    def __init__(self, shares: Sequence[Shares], address: str, amount: float) -> None:
        self._shares = shares
        self._address = address
        self._amount = amount
        self._holders = 1
        for each in shares:
            each.add(address, amount)

    def hold(self) -> None:
        """Hold it once more; where nobody did, it is taken again, even beyond the limit."""
        if not self._holders:
            for each in self._shares:
                each.add(self._address, self._amount)
        self._holders += 1

    def release(self) -> None:
        """Hold it once less; the last holder returns it to the shares."""
        if not self._holders:
            return
        self._holders -= 1
        if not self._holders:
            for each in self._shares:
                each.give_back(self._address, self._amount)


class Hold:
    """Holds the claim of the client that a process works for, until it is free or gone."""

    __slots__ = ("_claim", "_held")

    def __init__(self, claim: Claim | None = None) -> None:
        self._claim: Claim | None = None
        self._held = False
        self.take(claim)

    def take(self, claim: Claim | None) -> None:
        """Let the process count for the client of this claim; None: for nobody."""
        if claim is not None:
            claim.hold()
        self.release()
        self._claim, self._held = claim, claim is not None

    def release(self) -> None:
        """The process is free or gone: it counts for nobody."""
        if self._held and self._claim is not None:
            self._held = False
            self._claim.release()

    def renew(self) -> None:
        """The process works for the same client again."""
        if self._claim is not None and not self._held:
            self._held = True
            self._claim.hold()


class Claims:
    """The shares that the processes of one server count against: its own first, then others."""

    def __init__(self, *shares: Shares) -> None:
        self._shares = shares

    def replace(self, *shares: Shares) -> None:
        """Count against these from now on; what is held stays with those it was taken of."""
        self._shares = shares

    def over(self, address: str | None, amount: float = 1) -> Shares | None:
        """Return the first shares that so much would exceed; the server's own come first."""
        # Called for each request: a generator would take as long as all of this.
        for each in self._shares:
            if each.is_over(address, amount):
                return each
        return None

    def are_the_bridges(self, shares: Shares) -> bool:
        """Return whether these shares are for all servers, and not the server's own."""
        return shares is not self._shares[0]

    def above(
        self, addresses: Iterable[str], newcomer: str | None, limit: int, *, of_bridge: bool
    ) -> list[str]:
        """
        Return those of these addresses that have more than an equal part of
        `limit`, divided among all that have something and the newcomer, and
        more than the newcomer has; those with most come first.  `of_bridge`
        tells whether `limit` is that of the bridge, and not the server's own.
        """
        if not self._shares:
            return []
        shares = self._shares[-1 if of_bridge else 0]
        part = max(1.0, limit / (len(shares) + (not shares.taken(newcomer))))
        least = max(part, shares.taken(newcomer)) + _NOTHING
        found = [each for each in addresses if shares.taken(each) > least]
        return sorted(found, key=shares.taken, reverse=True)

    def take_if_free(
        self, address: str | None, amount: float = 1, *, always: bool = False
    ) -> Claim | None:
        """
        Take so many processes for an address, of all shares or of none.
        Returns None for the address None, and if its share is used up; not so
        with `always`, which is for work that has its process already.
        """
        if address is None or (not always and self.over(address, amount) is not None):
            return None
        return Claim(self._shares, address, amount)

    def take(self, address: str | None, amount: float = 1) -> Claim | None:
        """
        Take so many processes for an address, of all shares or of none.
        Returns None for the address None.  Raises `TooManyOfAddress`.
        """
        if address is None:
            return None
        for each in self._shares:
            if each.is_over(address, amount):
                each.refused(address)
                raise TooManyOfAddress(
                    f"{each.whose} has reached its limit of sessions: {each.limit} ({each.setting})"
                )
        return Claim(self._shares, address, amount)
