"""From evidence to a champion: policy, gate, decision, ledger, registry.

What needs MLflow (`stillhouse.promotion.registry`, `stillhouse.promotion.promote`) is imported from its own module.
"""

from stillhouse.promotion.gate import decide
from stillhouse.promotion.ledger import Approval, Ledger, LedgerEntry
from stillhouse.promotion.policy import Policy, load_policy

__all__ = ["Approval", "Ledger", "LedgerEntry", "Policy", "decide", "load_policy"]
