"""Policy files: what ships can be read and means what it should; what is wrong is said in one line."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.contract import ConfigurationError
from stillhouse.promotion.policy import Policy, load_policy

POLICIES = Path(__file__).parents[2] / "mlflow" / "policies"
TERMS = POLICIES / "terms.yaml"
"""What teachers may be learned from, and no policy of promotion."""

GOOD: dict[str, Any] = {
    "name": "tests",
    "description": "Of tests.",
    "rules": [{"kind": "bound", "name": "floor", "metric": "accuracy", "at_least": 0.8}],
}

FLOOR: dict[str, Any] = {"kind": "bound", "name": "floor", "metric": "accuracy"}
BUDGET: dict[str, Any] = {"kind": "budget", "name": "budget"}


def write(folder: Path, document: Any) -> Path:
    path = folder / "policy.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


@pytest.mark.parametrize("path", sorted(set(POLICIES.glob("*.yaml")) - {TERMS}), ids=lambda path: path.stem)
def test_policies_that_ship_protect_service(path: Path) -> None:
    policy = load_policy(path)
    assert policy.name == path.stem
    kinds = {rule.kind for rule in policy.rules}
    assert {"integrity", "minimum-items", "not-worse-than-champion"} <= kinds
    assert kinds & {"beats-start", "beats-control"}
    # A teacher that is a server can't be measured beside the student, so an absolute bound must do.
    assert kinds & {"retention", "teacher-gap", "bound"}
    required = {check for rule in policy.rules if rule.kind == "integrity" for check in rule.checks}
    assert {"terms", "leakage", "contamination"} <= required


def test_the_layout_of_the_file_does_not_change_the_digest(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("# a comment\n" + yaml.safe_dump(GOOD, default_flow_style=True))
    assert load_policy(path).digest == load_policy(write(tmp_path, GOOD)).digest


@given(st.floats(0, 1), st.floats(0, 1))
def test_another_bound_is_another_digest(one: float, other: float) -> None:
    def digest(floor: float) -> str:
        return Policy.model_validate(GOOD | {"rules": [GOOD["rules"][0] | {"at_least": floor}]}).digest

    assert (digest(one) == digest(other)) == (one == other)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (FLOOR, "give at_least or at_most, and not both"),
        (FLOOR | {"at_least": 0.8, "at_most": 0.9}, "give at_least or at_most, and not both"),
        (FLOOR | {"at_most": 0.8}, "accuracy is better when higher: bound it from the other side"),
        (FLOOR | {"metric": "perplexity", "at_least": 20}, "perplexity is better when lower"),
        (FLOOR | {"at_least": 1.5}, "accuracy can't be 1.5"),
        (FLOOR | {"metric": "nll", "at_most": -1}, "nll can't be -1"),
        (FLOOR | {"metric": "vibes", "at_least": 1}, "metric: Input should be 'accuracy'"),
        (FLOOR | {"at_least": 0.8, "celing": 1}, "celing: Extra inputs"),
        (FLOOR | {"at_least": 0.8, "suites": "some"}, "suites: String should match"),
        (FLOOR | {"at_least": 0.8, "when": "never"}, "when: Input should be 'always', 'first' or 'challenger'"),
        (FLOOR | {"kind": "bond"}, "does not match any of the expected tags"),
        (BUDGET | {"measure": "throughput", "at_most": 9}, "throughput needs at_least, every other measure at_most"),
        (BUDGET | {"measure": "num_bytes", "at_least": 9}, "throughput needs at_least, every other measure at_most"),
        (BUDGET | {"measure": "num_bytes", "at_most": 0}, "the bound must be above 0"),
        ({"kind": "integrity", "name": "sound", "checks": []}, "checks: Tuple should have at least 1 item"),
        ({"kind": "integrity", "name": "sound", "checks": ["leakage", "leakage"]}, "checks must be distinct"),
        ({"kind": "retention", "name": "kept", "floor": 0.9, "across": "mean", "suites": "away"}, "leave 'suites' out"),
        ({"kind": "ood-drop", "name": "drop", "margin": 0.1, "suites": "in-domain"}, "suites: String should match"),
        ({"kind": "ood-drop", "name": "drop", "margin": float("nan")}, "finite number"),
        ({"kind": "retention", "name": "Not A Name", "floor": 0.9}, "name: String should match"),
    ],
)
def test_a_wrong_rule_is_explained_in_one_line(tmp_path: Path, rule: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_policy(write(tmp_path, GOOD | {"rules": [rule]}))
    text = str(caught.value)
    assert message in text
    assert "rules.0" in text
    assert "\n" not in text


def test_two_rules_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="distinct names"):
        load_policy(write(tmp_path, GOOD | {"rules": GOOD["rules"] * 2}))


def test_a_policy_without_rules_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="rules"):
        load_policy(write(tmp_path, GOOD | {"rules": []}))


@pytest.mark.parametrize(
    ("rules", "whom"),
    [
        ([FLOOR | {"at_least": 0.8, "when": "challenger"}], "a first model needs a rule"),
        ([{"kind": "not-worse-than-champion", "name": "no-regression", "margin": 0.1}], "a first model needs a rule"),
        ([FLOOR | {"at_least": 0.8, "when": "first"}], "a challenger needs a rule"),
    ],
)
def test_a_policy_that_asks_nothing_of_somebody_is_refused(tmp_path: Path, rules: list[Any], whom: str) -> None:
    with pytest.raises(ConfigurationError, match=whom):
        load_policy(write(tmp_path, GOOD | {"rules": rules}))


def test_a_missing_file_and_bad_yaml_are_explained(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no such file"):
        load_policy(tmp_path / "absent.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("rules: [")
    with pytest.raises(ConfigurationError, match="not valid YAML"):
        load_policy(broken)
