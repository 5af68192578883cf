"""Where a registered version comes from, as tags."""

import os

from stillhouse import __version__
from stillhouse.contract import Decision, TermsReport, canonical_json, code_version
from stillhouse.contract.keys import PACKAGE_ROOT
from stillhouse.promotion.lineage import LICENCE_TAG, SOURCE_TAG, teacher_tags
from stillhouse.stages.context import StageContext

GIT_SHA = "STILLHOUSE_GIT_SHA"
"""Environment variable by which an image says what it was built from."""


def version_tags(context: StageContext, decision: Decision, terms: TermsReport) -> dict[str, str]:
    """Return where the version comes from: run, evidence, data, teachers, licences and code."""
    recipe, request = context.recipe, context.request
    inputs = {f"stillhouse.{name}_sha256": artifact.sha256 for name, artifact in request.inputs.items()}
    teacher = recipe.teacher.source or {"kind": "api", "title": recipe.teacher.title}
    return (
        inputs
        | teacher_tags(terms)
        | {
            "stillhouse.recipe": recipe.name,
            "stillhouse.run_id": request.run_id,
            "stillhouse.decision_sha256": decision.digest,
            "stillhouse.policy": f"{decision.policy} {decision.policy_sha256}",
            "stillhouse.evidence_sha256": decision.evidence_sha256,
            SOURCE_TAG: canonical_json(teacher).decode(),
            LICENCE_TAG: recipe.teacher.licence,
            "stillhouse.data_licence": recipe.data.train.licence,
            "stillhouse.code": _code(),
        }
    )


def _code() -> str:
    """Name the code that promotes: by commit where the image or its builder says which, else by its bytes."""
    commit = os.environ.get(GIT_SHA)
    rooms = sorted(path.parent.name for path in PACKAGE_ROOT.glob("*/__init__.py"))
    code = f"git {commit}" if commit else f"sha256 {code_version(tuple(rooms), ())}"
    return f"stillhouse {__version__}, {code}"
