"""From evidence to a champion: policy, gate, decision, ledger, registry, rollback, reconciliation.

What needs MLflow (`stillhouse.promotion.registry` and all that moves aliases: `stillhouse.promotion.promote`,
`stillhouse.promotion.rollback`, `stillhouse.promotion.reconcile`) is imported from its own module.
"""

from stillhouse.promotion.gate import decide
from stillhouse.promotion.ledger import Approval, History, Ledger, LedgerEntry
from stillhouse.promotion.policy import Policy, load_policy

__all__ = ["Approval", "History", "Ledger", "LedgerEntry", "Policy", "decide", "load_policy"]
