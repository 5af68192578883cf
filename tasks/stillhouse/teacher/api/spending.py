"""A hard ceiling on requests, tokens and cost of a whole run, over its shards, tries and machines.

The store holds one sum for each run: what was spent and what is reserved. A process reserves before it sends, at the
most that a request can cost, in small blocks; it gives back what was not needed. What a killed process had reserved
stays counted, so that the sum is never too small. Whatever happens, the ceiling is not passed, unless a server counts
more tokens than a prompt has bytes.
"""

import logging
import threading
from collections.abc import Callable

from pydantic import ValidationError

from stillhouse.contract import Conflict, IntegrityError, NotPermitted, StillhouseError, TryAgain, pretty_json
from stillhouse.recipe import CeilingConfig, Config, PricesConfig
from stillhouse.store import ObjectStore

logger = logging.getLogger(__name__)

_BLOCK = 16  # requests that are reserved at once
_TRIES = 1000  # of a compare-and-swap that others keep winning


class Amount(Config):
    """Requests, tokens read and written, and their cost. Negative where something is given back."""

    requests: int = 0
    tokens: int = 0
    cost: float = 0.0

    def plus(self, other: "Amount", times: int = 1) -> "Amount":
        """Return the sum of this and ``times`` the other."""
        return Amount(
            requests=self.requests + times * other.requests,
            tokens=self.tokens + times * other.tokens,
            cost=self.cost + times * other.cost,
        )

    def beyond(self, other: "Amount") -> "Amount":
        """Return what ``other`` lacks to be this, part by part."""
        return Amount(
            requests=max(0, self.requests - other.requests),
            tokens=max(0, self.tokens - other.tokens),
            cost=max(0.0, self.cost - other.cost),
        )

    def fits(self, limit: "Amount") -> bool:
        """Tell whether no part exceeds that of ``limit``."""
        slack = 1e-9  # of sums of floating-point numbers
        return self.requests <= limit.requests and self.tokens <= limit.tokens and self.cost <= limit.cost + slack


class Spending:
    """What a run spends, with the ceiling that it can't pass. Safe for threads.

    Args:
        store: Shared by all tasks of the run.
        run_id: Of the workflow's run.
        ceiling: Of the run.
        prices: For the cost.
    """

    def __init__(self, store: ObjectStore, *, run_id: str, ceiling: CeilingConfig, prices: PricesConfig) -> None:
        self._store, self._key = store, f"runs/{run_id}/spending.json"
        self._prices = prices
        self._ceiling = ceiling
        # Without a ceiling of the cost, any cost fits.
        self._limit = Amount(requests=ceiling.requests, tokens=ceiling.tokens, cost=ceiling.cost or 0.0)
        self._changed = threading.Condition()
        self._available = Amount()
        self._under_way = 0

    def amount(self, *, prompt_tokens: int, answer_tokens: int, requests: int = 1) -> Amount:
        """Return what so many tokens are."""
        bounded = self._ceiling.cost is not None
        cost = self._prices.cost(prompt_tokens=prompt_tokens, answer_tokens=answer_tokens) if bounded else 0.0
        return Amount(requests=requests, tokens=prompt_tokens + answer_tokens, cost=cost)

    def reserve(self, most: Amount) -> None:
        """Reserve ``most``. Waits while what other requests of this process give back may make room for it.

        Raises:
            NotPermitted: The ceiling is reached.
            TryAgain: The store is away.
        """
        with self._changed:
            while not most.fits(self._available):
                total = self._draw(most)
                if total is None:
                    continue
                if self._under_way == 0:
                    raise NotPermitted(self._reached(total))
                self._changed.wait()
            self._available = self._available.plus(most, -1)
            self._under_way += most.requests

    def settle(self, most: Amount, spent: Amount) -> None:
        """Replace a reservation by what was spent."""
        with self._changed:
            self._under_way -= most.requests
            self._available = self._available.plus(most).plus(spent, -1)
            self._changed.notify_all()

    def take_over(self, most: Amount) -> None:
        """Make a reservation that an ended process left behind this one's own, to be settled here."""
        with self._changed:
            self._under_way += most.requests

    def close(self) -> None:
        """Give back what was reserved and is not under way. A store that is away keeps it counted."""
        with self._changed:
            try:
                self._swap(lambda total: Amount().plus(self._available, -1))
            except StillhouseError as error:
                logger.warning("what was reserved and not spent stays counted: %s", error)
            self._available = Amount()

    def total(self) -> Amount:
        """Return what the run has spent or reserved.

        Raises:
            IntegrityError: The record is damaged.
            TryAgain: The store is away.
        """
        return self._read()[0]

    def _draw(self, most: Amount) -> Amount | None:
        """Reserve a block, or just ``most``. Returns the run's sum if neither fits, else None."""

        def block(total: Amount) -> Amount | None:
            sizes = (_BLOCK, 1) if most.requests == 1 else (1,)
            blocks = (Amount().plus(most, size).beyond(self._available) for size in sizes)
            return next((block for block in blocks if total.plus(block).fits(self._limit)), None)

        total, drawn = self._swap(block)
        if drawn is None:
            return total
        self._available = self._available.plus(drawn)
        return None

    def _swap(self, choose: Callable[[Amount], Amount | None]) -> tuple[Amount, Amount | None]:
        """Add what ``choose`` makes of the run's sum, unless it is None. Returns the sum before, and what was added."""
        for _ in range(_TRIES):
            total, version = self._read()
            change = choose(total)
            if change is None:
                return total, None
            try:
                self._store.put_if(self._key, pretty_json(total.plus(change)), version=version)
            except Conflict:
                continue
            return total, change
        raise TryAgain(f"{self._store.uri(self._key)}: others write all the time; run again")

    def _read(self) -> tuple[Amount, str | None]:
        try:
            data, version = self._store.get_versioned(self._key)
            return Amount.model_validate_json(data), version
        except FileNotFoundError:
            return Amount(), None
        except ValidationError:
            raise IntegrityError(
                f"{self._store.uri(self._key)} is damaged, so what was spent is unknown; write what the provider says"
            ) from None

    def _reached(self, total: Amount) -> str:
        cost = "" if self._ceiling.cost is None else f", {total.cost:.2f} of {self._ceiling.cost:.2f} in money"
        return (
            f"the next request could pass this run's ceiling: {total.requests:,} of {self._limit.requests:,} requests, "
            f"{total.tokens:,} of {self._limit.tokens:,} tokens{cost}; raise teacher.api.ceiling (answers are kept)"
        )
