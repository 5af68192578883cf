"""The ceiling of a run holds over threads, shards, tries and killed processes."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from teacher_server import Teacher, prompts, teacher_proxy

from stillhouse.contract import IntegrityError, NotPermitted
from stillhouse.recipe import CeilingConfig, PricesConfig
from stillhouse.store import FileStore
from stillhouse.teacher.api import ApiWriter, Spending
from stillhouse.teacher.api.spending import Amount
from stillhouse.teacher.ledger import Ledger, ask

ONE = Amount(requests=1, tokens=10)


def spending(store: FileStore, *, prices: PricesConfig | None = None, **ceiling: float) -> Spending:
    limits = CeilingConfig.model_validate(ceiling)
    return Spending(store, run_id="run", ceiling=limits, prices=prices or PricesConfig())


def test_no_request_more_than_the_ceiling_is_sent(
    teacher: Teacher, store: FileStore, writer_of: Callable[..., ApiWriter]
) -> None:
    ceiling = {"requests": 10}
    with pytest.raises(NotPermitted, match="10 of 10 requests"):
        ask(prompts(25), writer_of(teacher.url, ceiling=ceiling, concurrency=4), Ledger(store))
    assert len(teacher.bodies) == 10
    assert len(store.keys("answers/")) == 10
    with pytest.raises(NotPermitted):  # another shard or try of the run
        ask(prompts(25), writer_of(teacher.url, ceiling=ceiling), Ledger(store))
    assert len(teacher.bodies) == 10
    # Another run has a ceiling of its own, and takes what was answered as given.
    _, counts = ask(prompts(20), writer_of(teacher.url, ceiling=ceiling, run="next"), Ledger(store))
    assert counts.from_ledger == counts.requests == 10


def test_failed_tries_count(teacher: Teacher, store: FileStore, writer_of: Callable[..., ApiWriter]) -> None:
    with teacher_proxy(teacher.url, *[{"status": 500}] * 3) as proxy, pytest.raises(NotPermitted):
        ask(prompts(9), writer_of(proxy.url, ceiling={"requests": 5}), Ledger(store))
    assert proxy.seen == 5


def test_tokens_are_those_that_the_server_counted(
    teacher: Teacher, store: FileStore, writer_of: Callable[..., ApiWriter]
) -> None:
    _, counts = ask(prompts(6), writer_of(teacher.url), Ledger(store))
    total = spending(store).total()
    assert total == Amount(requests=6, tokens=counts.prompt_tokens + counts.answer_tokens)


def test_the_ceiling_of_tokens_and_of_money_is_never_passed(
    teacher: Teacher, store: FileStore, writer_of: Callable[..., ApiWriter]
) -> None:
    prices = {"prompt": 1e6, "answer": 2e6}
    for run, ceiling in (("tokens", {"tokens": 400}), ("money", {"cost": 450.0})):
        writer = writer_of(teacher.url, ceiling=ceiling, prices=prices, run=run)
        with pytest.raises(NotPermitted, match="ceiling"):
            ask(prompts(80, word=run), writer, Ledger(store))
    tokens = [body for body in teacher.bodies if "tokens" in body["messages"][0]["content"]]
    assert 0 < len(tokens) < 80
    counts = ask(prompts(80, word="money")[:1], writer_of(teacher.url, prices=prices), Ledger(store))[1]
    account = Spending(
        store, run_id="money", ceiling=CeilingConfig(cost=450.0), prices=PricesConfig.model_validate(prices)
    )
    assert 0 < account.total().cost <= 450.0
    assert counts.from_ledger == 1


def test_processes_that_reserve_at_once_share_one_ceiling(store: FileStore) -> None:
    def shard(number: int) -> int:
        account, sent = spending(store, requests=100), 0
        try:
            while True:
                account.reserve(ONE)
                sent += 1
                account.settle(ONE, ONE)
        except NotPermitted:
            account.close()
            return sent

    with ThreadPoolExecutor(4) as pool:
        sent = list(pool.map(shard, range(4)))
    total = spending(store).total()
    assert sum(sent) == total.requests <= 100
    assert sum(sent) > 100 - 4 * 16  # no more is left than the blocks of the others


def test_what_a_killed_process_had_reserved_stays_counted(store: FileStore) -> None:
    killed = spending(store, requests=100)
    killed.reserve(ONE)
    assert spending(store).total().requests >= 1


def test_closing_gives_back_what_was_not_needed(store: FileStore) -> None:
    account = spending(store)
    account.reserve(ONE)
    account.settle(ONE, Amount(requests=1, tokens=3))
    account.close()
    assert account.total() == Amount(requests=1, tokens=3)


@settings(max_examples=30)
@given(spent=st.lists(st.integers(0, 30), max_size=15), ceiling=st.integers(1, 150))
def test_the_sum_is_what_was_spent(tmp_path_factory: pytest.TempPathFactory, spent: list[int], ceiling: int) -> None:
    account = spending(FileStore(tmp_path_factory.mktemp("store")), tokens=ceiling)
    most, sent = Amount(requests=1, tokens=30), []
    try:
        for tokens in spent:
            account.reserve(most)
            sent.append(Amount(requests=1, tokens=tokens))
            account.settle(most, sent[-1])
    except NotPermitted:
        assert sum(amount.tokens for amount in sent) + 30 > ceiling
    account.close()
    assert account.total() == Amount(requests=len(sent), tokens=sum(amount.tokens for amount in sent))
    assert account.total().tokens <= ceiling


def test_a_damaged_account_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    store.put("runs/run/spending.json", b'{"requests": ')
    with pytest.raises(IntegrityError, match="damaged"):
        spending(store).reserve(ONE)
