"""Stage ``permit``: whether the run may learn from its teachers, asked before anything of theirs is fetched.

Outputs: ``terms`` (JSON). Runs every time: terms, sign-offs and what an alias leads to change while a recipe stays.
"""

import os

from stillhouse.contract import ConfigurationError, TermsFinding, TermsReport, pretty_json
from stillhouse.recipe import Recipe, RegistrySource
from stillhouse.stages.context import StageContext, StageOutcome
from stillhouse.teacher.terms import insist, load_terms, terms_report


def run(context: StageContext) -> StageOutcome:
    """Refuse a run whose teachers' terms do not permit it.

    Raises:
        NotPermitted: Terms are denied, unknown, or need a sign-off that the recipe lacks.
        ConfigurationError: See `judge_teachers`.
        TryAgain: The registry is away.
    """
    report = judge_teachers(context.recipe, tracking_uri=context.request.tracking_uri)
    insist(report)
    context.save_bytes("terms", pretty_json(report), ".json")
    teachers = len(report.teachers)
    return StageOutcome(
        summary=f"{teachers} teacher{'s' if teachers > 1 else ''} permitted by policy {report.policy}",
        metrics={"teachers": float(teachers)},
    )


def judge_teachers(recipe: Recipe, *, tracking_uri: str | None = None, candidates: bool = False) -> TermsReport:
    """Return what the deployment's terms policy says about a recipe's teachers.

    Those whose output is in a registered model that the run starts from are judged, too.

    Args:
        recipe: Names the teachers.
        tracking_uri: MLflow server of registered models; by default that of the environment.
        candidates: Judge the further teachers of a preflight, too.

    Raises:
        ConfigurationError: The policy is wrong, or a registered model is named and there is no server or no such model.
        IntegrityError: What the registry tells of its teachers can't be read.
        TryAgain: The registry is away.
    """
    inherited = _inherited(recipe, tracking_uri or os.environ.get("MLFLOW_TRACKING_URI"), candidates)
    return terms_report(recipe, policy=load_terms(), inherited=inherited, candidates=candidates)


def _inherited(recipe: Recipe, tracking_uri: str | None, candidates: bool) -> list[TermsFinding]:
    """Return the recorded teachers of the registered models among the sources."""
    further = [teacher.source for teacher in recipe.preflight.teachers] if candidates else []
    sources = (recipe.teacher.source, recipe.student.source, *further)
    uris = dict.fromkeys(source.uri for source in sources if isinstance(source, RegistrySource))
    if not uris:
        return []
    if not tracking_uri:
        raise ConfigurationError(
            f"{next(iter(uris))} may contain output of other teachers, which its registry knows; "
            "set MLFLOW_TRACKING_URI"
        )
    from stillhouse.promotion.lineage import recorded_teachers  # MLflow takes seconds
    from stillhouse.promotion.registry import Registry

    registry = Registry(tracking_uri)
    return [finding for uri in uris for finding in recorded_teachers(uri, registry)]
