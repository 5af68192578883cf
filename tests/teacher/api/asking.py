"""Asks a server in a process of its own, to be killed. Arguments: address, store, ``single`` or ``batch``, prompts."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from teacher_server import GREEDY, MODEL, prompts

from stillhouse.recipe import ApiConfig
from stillhouse.store import open_store
from stillhouse.teacher.api import ApiWriter, Spending
from stillhouse.teacher.ledger import Ledger, ask


def main() -> None:
    url, root, by_batch, count = sys.argv[1:]
    store = open_store(root)
    config = ApiConfig(base_url=url, model=MODEL, concurrency=3, batch=by_batch == "batch")
    spending = Spending(store, run_id="run", ceiling=config.ceiling, prices=config.prices)
    ask(prompts(int(count)), ApiWriter(config, GREEDY, spending=spending, store=store), Ledger(store))


main()
