"""The terms policy: what it allows, what it leaves to a person, and that it permits nothing that it doesn't know."""

import re
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

import stillhouse.teacher
from stillhouse.contract import ConfigurationError, NotPermitted, TermsFinding, TermsReport, pretty_json
from stillhouse.recipe import Recipe, parse_recipe
from stillhouse.teacher.terms import (
    SHIPPED,
    TERMS_FILE,
    Terms,
    TermsPolicy,
    describe,
    insist,
    load_terms,
    rule_on,
    terms_report,
    words_of,
)

ROOT = Path(__file__).parents[2]
TABLE = {"source": {"kind": "path", "path": "/rows.csv"}, "format": "csv", "licence": "MIT", "origin": "made up"}
SIGN_OFF = {"by": "Ada", "reference": "LEGAL-7", "on": "2026-11-01"}
POLICY = load_terms()


def recipe(teacher: dict[str, Any], **sections: Any) -> Recipe:
    weights = {} if "api" in teacher else {"source": {"kind": "path", "path": "/models/big"}}
    document = {
        "name": "toy",
        "description": "A toy.",
        "task": "causal-lm",
        "data": {"domain": "toys", "train": TABLE | {"prompt_column": "prompt"}, "splits": {"validation": 0.1}},
        "teacher": weights | teacher,
        "student": {"source": {"kind": "path", "path": "/student"}},
        "gate": {"policy": "/policy.yaml"},
        "promotion": {"model": "toy"},
    }
    return parse_recipe(document | sections, base=Path("/"))


def api(licence: str, provider: str, **terms: Any) -> Recipe:
    server = {"base_url": "https://models.test/v1", "model": "writer-1"}
    return recipe(
        {"api": server, "licence": licence, "terms": {"provider": provider, **terms}},
        synthesis={"kind": "answers"},
        distillation={"alpha": 1},
    )


def judged(the_recipe: Recipe, **options: Any) -> TermsReport:
    return terms_report(the_recipe, policy=POLICY, **options)


def only(the_recipe: Recipe) -> TermsFinding:
    (finding,) = judged(the_recipe).findings
    return finding


@pytest.mark.parametrize(
    ("licence", "use", "ruling"),
    [
        ("Apache-2.0", "commercial", "allowed"),
        ("MIT", "commercial", "allowed"),
        ("CC0-1.0", "commercial", "allowed"),
        ("llama2", "research", "denied"),
        ("llama3", "research", "denied"),
        ("llama3.1", "research", "allowed"),
        ("llama3.1", "commercial", "needs-sign-off"),
        ("llama4", "commercial", "needs-sign-off"),
        ("gemma", "commercial", "needs-sign-off"),
        ("CC-BY-NC-4.0", "commercial", "denied"),
        ("CC-BY-NC-4.0", "research", "needs-sign-off"),
        ("proprietary", "internal", "needs-sign-off"),
        ("Someone's own terms", "research", "unknown"),
        ("", "research", "unknown"),
        ("license agreement, version v", "research", "unknown"),
        ("MIT OR Apache-2.0", "research", "unknown"),
    ],
)
def test_the_licence_of_weights_decides(licence: str, use: str, ruling: str) -> None:
    finding = only(recipe({"licence": licence, "terms": {"use": use}}))
    assert finding.ruling == ruling
    assert finding.permitted == (ruling == "allowed")
    assert bool(finding.rule) == (ruling != "unknown")
    if ruling == "allowed":
        assert finding.read_on is not None
        assert finding.citation.startswith("https://")


@pytest.mark.parametrize(
    "spelling",
    [
        "apache-2.0",
        "APACHE 2.0",
        "Apache License 2.0",
        "the Apache Licence, Version 2.0",
        " Apache-2.0\n",
        "apache_2.0",
    ],
)
def test_case_and_spelling_of_a_licence_do_not_count(spelling: str) -> None:
    assert POLICY.licence(spelling) is POLICY.licence("Apache-2.0") is not None


@pytest.mark.parametrize(
    "spelling", ["llama-3.1", "Llama 3.1 Community License Agreement", "LLAMA3.1", "Meta Llama 3.1"]
)
def test_a_llama_of_another_number_is_another_licence(spelling: str) -> None:
    assert POLICY.licence(spelling) is POLICY.licence("llama3.1")
    assert POLICY.licence("llama3") is not POLICY.licence("llama3.1")
    assert POLICY.licence("llama 31") is None


@pytest.mark.parametrize("lookalike", ["Apache-20", "not MIT", "MIT*", "~MIT", "MIТ", "MIT 許可なし", "mit-2.0"])
def test_what_only_resembles_a_licence_is_unknown(lookalike: str) -> None:
    assert POLICY.licence(lookalike) is None


@given(st.one_of(st.text(), st.text(alphabet="MITAPCHEmitapche -.,0123/~¬许"), st.sampled_from(["MIT", "gemma"])))
def test_no_text_crashes_the_policy_and_an_unknown_one_is_never_permitted(text: str) -> None:
    listed = {
        re.sub(r"[\W_]+", "", name).casefold() for terms in POLICY.licences for name in (terms.name, *terms.aliases)
    }
    listed |= {
        re.sub(r"[\W_]+", "", name).casefold() for terms in POLICY.providers for name in (terms.name, *terms.aliases)
    }
    bare = re.sub(r"the|licen[sc]e|agreement|community|version|v|[\W_]+", "", text.casefold())
    finding = only(recipe({"licence": text, "terms": {"use": "research"}}))
    if bare not in {re.sub(r"the|licen[sc]e|agreement|community|version|v", "", name) for name in listed}:
        assert finding.ruling == "unknown"
        assert not finding.permitted
        with pytest.raises(NotPermitted, match="unknown to the terms policy"):
            insist(judged(recipe({"licence": text})))


def test_a_sign_off_opens_what_is_left_to_a_person_and_nothing_else() -> None:
    signed = {"sign_off": SIGN_OFF}
    insist(judged(recipe({"licence": "gemma", "terms": signed})))
    assert "Ada (LEGAL-7)" in describe(only(recipe({"licence": "gemma", "terms": signed})))
    for licence in ("llama2", "nobody's"):
        with pytest.raises(NotPermitted):
            insist(judged(recipe({"licence": licence, "terms": signed})))


def test_a_refusal_says_who_why_and_what_to_do() -> None:
    with pytest.raises(NotPermitted) as refused:
        insist(judged(recipe({"licence": "llama2"})))
    message = str(refused.value)
    rule = POLICY.licence("llama2")
    assert rule is not None
    assert "\n" not in message
    for part in ("teacher big", "denied", rule.rule, rule.citation, "not read as a whole", TERMS_FILE):
        assert part in message
    assert refused.value.exit_code == 77


@pytest.mark.parametrize(
    ("licence", "provider", "use", "ruling"),
    [
        ("Apache-2.0", "self-hosted", "commercial", "allowed"),
        ("gemma", "self-hosted", "commercial", "needs-sign-off"),
        ("openai", "openai", "commercial", "denied"),
        ("openai", "openai", "internal", "needs-sign-off"),
        ("Apache-2.0", "openai", "commercial", "denied"),  # the service forbids what the licence allows
        ("llama2", "openrouter", "research", "denied"),  # and the other way round
        ("Apache-2.0", "somebody-new", "research", "unknown"),
        ("somebody's", "deepseek", "research", "unknown"),
        ("anthropic", "anthropic", "commercial", "denied"),
        ("self-hosted", "self-hosted", "research", "unknown"),
    ],
)
def test_provider_and_licence_must_both_permit(licence: str, provider: str, use: str, ruling: str) -> None:
    finding = only(api(licence, provider, use=use))
    assert finding.ruling == ruling
    assert finding.teacher == "writer-1 at models.test"
    assert finding.provider == provider


def test_weights_under_a_services_terms_are_judged_by_them() -> None:
    assert only(recipe({"licence": "openai"})).ruling == "denied"


def test_of_two_rulings_the_stricter_ones_words_are_told_and_of_equals_both() -> None:
    strict = only(api("Apache-2.0", "openai"))
    openai = POLICY.provider("openai")
    assert openai is not None
    assert strict.rule == openai.rule
    both = only(api("gemma", "deepseek"))
    assert "Model Derivative" in both.rule
    assert "DeepSeek announced" in both.rule
    assert both.read_on is None  # one of them was not read


def test_candidates_are_judged_where_they_are_asked_for_and_no_sign_off_counts_for_them() -> None:
    other = {"name": "other", "source": {"kind": "path", "path": "/other"}, "licence": "gemma"}
    asked = recipe({"licence": "gemma", "terms": {"sign_off": SIGN_OFF}}, preflight={"teachers": [other]})
    assert [finding.role for finding in judged(asked).findings] == ["teacher"]
    own, further = judged(asked, candidates=True).findings
    assert (own.permitted, further.permitted) == (True, False)
    assert judged(asked, candidates=True).teachers == ("big",)


def test_inherited_teachers_are_judged_anew_for_this_use_and_become_teachers() -> None:
    past = TermsFinding(
        teacher="gpt-9",
        role="inherited",
        licence="openai",
        provider="openai",
        use="internal",
        ruling="allowed",
        rule="",
    )
    report = judged(recipe({"licence": "MIT"}), inherited=[past])
    assert [finding.ruling for finding in report.findings] == ["allowed", "denied"]
    assert report.teachers == ("big", "gpt-9")
    assert report.integrity.outcome == "fail"
    with pytest.raises(NotPermitted, match="inherited gpt-9"):
        insist(report)


def test_equal_recipes_give_equal_bytes() -> None:
    assert pretty_json(judged(recipe({"licence": "MIT"}))) == pretty_json(judged(recipe({"licence": "MIT"})))


def test_the_shipped_policy_is_the_one_in_the_folder_of_policies_and_knows_how_it_knows() -> None:
    assert (ROOT / "mlflow" / "policies" / "terms.yaml").resolve() == SHIPPED.resolve()
    for terms in (*POLICY.licences, *POLICY.providers):
        assert terms.read_on is None or terms.read_on <= date(2026, 11, 24)
        assert terms.citation.startswith("https://") or terms.basis in ("house-rule", "memory")


def test_shipped_recipes_and_the_template_stay_permitted() -> None:
    found = [*(ROOT / "dags" / "recipes").glob("*.yaml"), ROOT / "tasks/stillhouse/recipe/template.yaml"]
    for path in found:
        lines = re.search(r"^teacher:\n(?:[ #].*\n|\n)*?  licence: ([^#\n]+)", path.read_text(), re.MULTILINE)
        assert lines, path
        terms = POLICY.licence(lines.group(1).strip())
        assert terms is not None, path
        assert terms.for_use("commercial") == "allowed", path


def entry(**changes: Any) -> dict[str, Any]:
    fields = {"name": "Ours", "ruling": "allowed", "rule": "We may.", "basis": "copy", "read_on": "2026-01-02"}
    return {name: value for name, value in (fields | changes).items() if value is not None}


def write(folder: Path, *licences: dict[str, Any], **fields: Any) -> Path:
    path = folder / "terms.yaml"
    path.write_text(yaml.safe_dump({"name": "ours", "description": "Of tests.", "licences": list(licences), **fields}))
    return path


def test_a_deployment_has_its_own_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TERMS_FILE, str(write(tmp_path, entry())))
    policy = load_terms()
    assert policy.name == "ours"
    assert policy.digest != POLICY.digest
    ours = terms_report(recipe({"licence": "ours"}), policy=policy)
    assert (ours.policy, ours.policy_sha256) == ("ours", policy.digest)
    assert ours.integrity.outcome == "pass"
    assert terms_report(recipe({"licence": "MIT"}), policy=policy).integrity.outcome == "fail"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"basis": "memory", "read_on": None}, "nobody has read the whole text"),
        ({"basis": "memory"}, "read_on belongs to basis copy"),
        ({"basis": "copy", "read_on": None}, "read_on belongs to basis copy"),
        ({"ruling": "maybe"}, "ruling"),
        ({"aliases": ["license"]}, "no word that counts"),
        ({"aliases": ["self hosted"]}, "self-hosted is decided by the licence"),
        ({"rule": ""}, "rule"),
    ],
)
def test_a_policy_that_claims_too_much_is_refused_in_one_line(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message) as refused:
        load_terms(write(tmp_path, entry(**changes)))
    assert "\n" not in str(refused.value)


def test_a_name_leads_to_one_entry(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="leads to two entries"):
        load_terms(write(tmp_path, entry(), entry(name="OURS License")))
    with pytest.raises(ConfigurationError, match="no such file"):
        load_terms(tmp_path / "nothing.yaml")


def test_what_a_finding_claimed_before_does_not_count() -> None:
    boasting = TermsFinding(teacher="t", role="teacher", licence="llama2", use="research", ruling="allowed", rule="yes")
    assert rule_on(POLICY, boasting).ruling == "denied"


def test_an_entry_can_differ_by_use() -> None:
    terms = Terms.model_validate(entry(ruling={"research": "allowed", "internal": "denied", "commercial": "denied"}))
    assert [terms.for_use(use) for use in ("research", "internal", "commercial")] == ["allowed", "denied", "denied"]
    with pytest.raises(ValidationError):
        TermsPolicy.model_validate(
            {"name": "x", "description": "x", "licences": [entry(ruling={"research": "allowed"})]}
        )


@given(st.text())
def test_names_are_read_alike_however_often(text: str) -> None:
    assert words_of(" ".join(words_of(text))) == words_of(text)


def test_asking_for_permission_loads_nothing_heavy() -> None:
    heavy = ("torch", "transformers", "numpy", "mlflow", "pyarrow")
    program = f"import sys, stillhouse.stages.permit; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert set(stillhouse.teacher.__all__) == set(stillhouse.teacher._MODULES)
