"""
Places to wait in, of which no address gets more than its share.

Knows addresses; must not know what is waited for.
"""

from __future__ import annotations


class SharedPlaces:
    """
    `most` places, of which one address has at most `most_of_address`.

    None stands for an address without a limit of its own.
    """

    def __init__(self, most: int, most_of_address: int) -> None:
        self._most = most
        self._most_of_address = most_of_address
        self._taken = 0
        self._of_addresses: dict[str, int] = {}

    def __len__(self) -> int:
        return self._taken

    def take(self, address: str | None) -> bool:
        """Take a place; return False if there is none for this address."""
        if self._taken >= self._most:
            return False
        if address is not None:
            taken = self._of_addresses.get(address, 0)
            if taken >= self._most_of_address:
                return False
            self._of_addresses[address] = taken + 1
        self._taken += 1
        return True

    def give_back(self, address: str | None) -> None:
        """Give back a place that this address has taken."""
        self._taken -= 1
        if address is not None:
            left = self._of_addresses[address] - 1
            if left:
                self._of_addresses[address] = left
            else:
                del self._of_addresses[address]
