"""Lineage against a real registry: what a version contains output of is written on it, found again, and handed down."""

import json
import os
import subprocess
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow import MlflowClient

from stillhouse.contract import ConfigurationError, ExitCode, IntegrityError, TermsFinding, TermsReport
from stillhouse.promotion.lineage import (
    LICENCE_TAG,
    SOURCE_TAG,
    TEACHERS_TAG,
    recorded_teachers,
    taught_by,
    teacher_tags,
)
from stillhouse.promotion.registry import DIGEST_TAG, Registry
from stillhouse.recipe import load_recipe
from stillhouse.stages.permit import judge_teachers


@dataclass(frozen=True, kw_only=True)
class House:
    """A registry with a model of a name that no other test uses."""

    url: str
    client: MlflowClient
    name: str
    run_id: str

    def register(self, tags: dict[str, str], *, ours: bool = True) -> int:
        """Register a version without files."""
        digest = {DIGEST_TAG: uuid.uuid4().hex} if ours else {}
        source = self.client.get_run(self.run_id).info.artifact_uri
        version = self.client.create_model_version(self.name, source=source, run_id=self.run_id, tags=digest | tags)
        return int(version.version)

    def found(self, text: str) -> list[tuple[int, tuple[str, ...]]]:
        taught = taught_by(text, Registry(self.url))
        return [(version.version, version.aliases) for version in taught if version.model == self.name]

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"MLFLOW_TRACKING_URI": self.url}
        command = [sys.executable, "-m", "stillhouse", "lineage", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture
def house(mlflow_url: str) -> House:
    client = MlflowClient(tracking_uri=mlflow_url)
    name = f"m{uuid.uuid4().hex}"
    client.create_registered_model(name)
    return House(
        url=mlflow_url,
        client=client,
        name=name,
        run_id=client.create_run(client.create_experiment(uuid.uuid4().hex)).info.run_id,
    )


def report(*teachers: tuple[str, str, str | None]) -> TermsReport:
    findings = tuple(
        TermsFinding(
            teacher=name,
            role="inherited" if index else "teacher",
            licence=licence,
            provider=provider,
            use="commercial",
            ruling="allowed",
            rule="Fine.",
        )
        for index, (name, licence, provider) in enumerate(teachers)
    )
    return TermsReport(policy="p", policy_sha256="0" * 64, findings=findings)


GPT = ("gpt-4o at api.openai.com", "openai", "openai")
SMOL = ("SmolLM2 «135M» in package x", "Apache-2.0", None)


def test_which_versions_contain_output_of_a_teacher(house: House) -> None:
    house.register(teacher_tags(report(SMOL)))
    house.register(teacher_tags(report(SMOL, GPT)))
    house.register(teacher_tags(report(GPT)))
    house.client.set_registered_model_alias(house.name, "champion", "3")
    assert house.found("gpt-4o") == [(3, ("champion",)), (2, ())]
    assert house.found("GPT-4O AT") == house.found("gpt-4o")
    assert house.found("smollm2 «") == [(2, ()), (1, ())]
    assert house.found("claude") == []


def test_mlflows_own_search_finds_a_teacher_by_its_tag(house: House) -> None:
    house.register(teacher_tags(report(SMOL, GPT)))
    house.register(teacher_tags(report(SMOL)))
    query = f"name = '{house.name}' and tags.`stillhouse.teacher.{GPT[0]}` = '{GPT[0]}'"
    assert [version.version for version in house.client.search_model_versions(query)] == ["1"]


def test_more_versions_than_a_page_are_all_found(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(5):
        house.register(teacher_tags(report(GPT)))
    registry = Registry(house.url)
    whole = registry._client.search_model_versions
    monkeypatch.setattr(registry._client, "search_model_versions", lambda *a, **k: whole(*a, **k, max_results=2))
    found = [version.version for version in taught_by("gpt", registry) if version.model == house.name]
    assert found == [5, 4, 3, 2, 1]


def test_versions_from_before_lineage_and_of_others_are_read_as_far_as_they_tell(house: House) -> None:
    source = {"kind": "hub", "repo": "google/gemma-9b", "revision": "a" * 40}
    old = house.register({SOURCE_TAG: json.dumps(source), LICENCE_TAG: "gemma"})
    foreign = house.register({}, ours=False)
    registry = Registry(house.url)
    assert house.found("gemma-9b") == [(old, ())]
    (finding,) = recorded_teachers(f"models:/{house.name}/{old}", registry)
    assert (finding.teacher, finding.licence) == (f"google/gemma-9b at {'a' * 12}", "gemma")
    assert recorded_teachers(f"models:/{house.name}/{foreign}", registry) == ()


def test_a_record_that_cant_be_read_is_told_and_not_passed_over(house: House) -> None:
    version = house.register({TEACHERS_TAG: "[{]"})
    with pytest.raises(IntegrityError, match="can't be read"):
        recorded_teachers(f"models:/{house.name}/{version}", Registry(house.url))
    with pytest.raises(IntegrityError, match=f"{house.name}/{version}"):
        list(taught_by("gpt", Registry(house.url)))
    house.client.delete_model_version(house.name, str(version))


def test_a_student_of_a_registered_model_inherits_its_teachers(house: House, workflow: Path) -> None:
    house.register(teacher_tags(report(SMOL, GPT)))
    house.client.set_registered_model_alias(house.name, "champion", "1")
    source = {"kind": "registry", "uri": f"models:/{house.name}@champion"}
    for field in ("teacher.source", "student.source"):
        judged = judge_teachers(load_recipe(workflow, {field: source}), tracking_uri=house.url)
        assert [(f.role, f.ruling) for f in judged.findings] == [
            ("teacher", "allowed"),
            ("inherited", "allowed"),
            ("inherited", "denied"),
        ]
        assert judged.teachers[1:] == (SMOL[0], GPT[0])
        assert judged.findings[2].evidence == f"recorded with models:/{house.name}/1"
        handed_on = teacher_tags(judged)
        assert [teacher["teacher"] for teacher in json.loads(handed_on[TEACHERS_TAG])] == list(judged.teachers)
    nowhere = {"kind": "registry", "uri": f"models:/{house.name}@nobody"}
    with pytest.raises(ConfigurationError, match="leads nowhere"):
        judge_teachers(load_recipe(workflow, {"student.source": nowhere}), tracking_uri=house.url)


@pytest.mark.slow
def test_the_command_answers_with_a_table_or_says_that_there_is_none(house: House, tmp_path: Path) -> None:
    house.register(teacher_tags(report(SMOL, GPT)) | {"stillhouse.run_id": "run-1"})
    answer = house.command("gpt-4o", "--store", str(tmp_path))
    assert answer.returncode == ExitCode.OK, answer.stderr
    for part in (house.name, "run-1", "gpt-4o at api.openai.com", "«135M»"):
        assert part in answer.stdout
    none = house.command("[bold]nobody")
    assert none.returncode == ExitCode.OK, none.stderr
    assert "no registered version" in none.stdout
    assert "[bold]nobody" in none.stdout
    assert house.command(" ").returncode == ExitCode.CONFIGURATION
