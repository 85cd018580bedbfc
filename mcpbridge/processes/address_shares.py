"""
What one client address may have of what all share.

Knows numbers and addresses; must not know what is shared.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from mcpbridge.errors import TooManyOfAddress
from mcpbridge.rate_limited_log import RateLimitedLog

#: What is left of a sum of fractions that came and went.
_NOTHING = 1e-6


class Fullest:
    """Addresses by how much each of them has, in whole numbers; a change costs the same always."""

    def __init__(self) -> None:
        # The addresses that have so much, in the order in which they came to it.
        self._by_count: dict[int, dict[str, None]] = {}

    def changed(self, address: str, before: int, after: int) -> None:
        """An address had so much, and has so much now; 0: it is, or was, not counted."""
        if before:
            same = self._by_count[before]
            del same[address]
            if not same:
                del self._by_count[before]
        if after:
            self._by_count.setdefault(after, {})[address] = None

    def first(self, most: int) -> list[str]:
        """So many addresses at most, those with most first."""
        # Of ten thousand things there are at most 141 different numbers.
        counts = sorted(self._by_count, reverse=True)
        found = (address for count in counts for address in self._by_count[count])
        return list(islice(found, most))


class Shares:
    """
    How much each address has, and that none has more than `limit`.

    `what` and `setting` are for the log, which is told now and then
    (`RateLimitedLog`).  The address None has no share, and is not counted.
    """

    log = Logger()

    def __init__(self, limit: int, clock: IReactorTime, *, what: str, setting: str) -> None:
        self.limit = limit
        self.setting = setting
        self._what = what
        self._taken: dict[str, float] = {}
        self._refusals = RateLimitedLog(clock)

    def __len__(self) -> int:
        return len(self._taken)

    def taken(self, address: str | None) -> float:
        """How much an address has."""
        return 0 if address is None else self._taken.get(address, 0)

    def is_over(self, address: str | None, amount: float = 1) -> bool:
        """Whether so much more would be more than an address may have."""
        return address is not None and self.taken(address) + amount > self.limit + _NOTHING

    def take(self, address: str | None, amount: float = 1) -> bool:
        """Take some for an address; False, and the log is told, where it has its share."""
        if self.is_over(address, amount):
            self.refused(address)
            return False
        if address is not None:
            self.add(address, amount)
        return True

    def add(self, address: str, amount: float = 1) -> None:
        """Take some, whether or not there is room."""
        self._taken[address] = self._taken.get(address, 0) + amount

    def give_back(self, address: str | None, amount: float = 1) -> None:
        """Return what was taken; must not be called twice for it."""
        if address is not None:
            left = self._taken.get(address, 0) - amount
            if left > _NOTHING:
                self._taken[address] = left
            else:
                self._taken.pop(address, None)

    def refused(self, address: str | None) -> None:
        """An address was refused; the log is told now and then."""
        self._refusals.add()
        count = self._refusals.due()
        if count is not None:
            self.log.warn(
                "{address} has its share of {what}: {limit} ({setting}); refused since this was"
                " said last, of all addresses: {count}",
                address=address,
                what=self._what,
                limit=self.limit,
                setting=self.setting,
                count=count,
            )


class Claim:
    """What an address has of several shares, once, however many hold it."""

    __slots__ = ("_address", "_amount", "_holders", "_shares")

    def __init__(self, shares: Sequence[Shares], address: str, amount: float) -> None:
        self._shares = shares
        self._address = address
        self._amount = amount
        self._holders = 0
        self.hold()

    def hold(self) -> None:
        """Hold it once more; if nobody did any more, it is taken again, room or not."""
        if not self._holders:
            for each in self._shares:
                each.add(self._address, self._amount)
        self._holders += 1

    def release(self) -> None:
        """One of those who hold it lets go; the last one gives it back."""
        if not self._holders:
            return
        self._holders -= 1
        if not self._holders:
            for each in self._shares:
                each.give_back(self._address, self._amount)


class Hold:
    """What a process counts as, from when it is started for a client until it is free or gone."""

    __slots__ = ("_claim", "_held")

    def __init__(self, claim: Claim | None = None) -> None:
        self._claim: Claim | None = None
        self._held = False
        self.take(claim)

    def take(self, claim: Claim | None) -> None:
        """It is there for who has this claim; None: it does not count."""
        if claim is not None:
            claim.hold()
        self.release()
        self._claim, self._held = claim, claim is not None

    def release(self) -> None:
        """It is free, or gone."""
        if self._held and self._claim is not None:
            self._held = False
            self._claim.release()

    def again(self) -> None:
        """It is free no more, and nobody else has it."""
        if self._claim is not None and not self._held:
            self._held = True
            self._claim.hold()


class Claims:
    """The shares of one server's processes: its own, and those over all servers."""

    def __init__(self, *shares: Shares) -> None:
        self._shares = shares

    def over(self, address: str | None, amount: float = 1) -> Shares | None:
        """The shares that `take` would refuse for; the server's own come first."""
        return next((each for each in self._shares if each.is_over(address, amount)), None)

    def is_over_all(self, shares: Shares) -> bool:
        """Whether these are not the server's own."""
        return shares is not self._shares[0]

    def above(
        self, addresses: Iterable[str], newcomer: str | None, limit: int, *, over_all: bool
    ) -> list[str]:
        """
        Those of these addresses that have more than an equal part of `limit`,
        if it were divided among all that have something and the newcomer, and
        more than that has; those with most come first.
        """
        if not self._shares:
            return []
        shares = self._shares[-1 if over_all else 0]
        part = max(1.0, limit / (len(shares) + (not shares.taken(newcomer))))
        least = max(part, shares.taken(newcomer)) + _NOTHING
        found = [each for each in addresses if shares.taken(each) > least]
        return sorted(found, key=shares.taken, reverse=True)

    def take(self, address: str | None, amount: float = 1, *, always: bool = False) -> Claim | None:
        """
        Take so many processes for an address, of all shares or of none; None
        where the address has no share.  Raises `TooManyOfAddress`, but with
        `always`: for what has its process already.
        """
        if address is None:
            return None
        for each in self._shares if not always else ():
            if each.is_over(address, amount):
                each.refused(address)
                raise TooManyOfAddress(
                    f"your address has as many sessions as it may: {each.limit} ({each.setting})"
                )
        return Claim(self._shares, address, amount)
