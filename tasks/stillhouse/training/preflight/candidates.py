"""Which teachers and students are tried, each as a recipe of its own."""

from dataclasses import dataclass, replace
from pathlib import Path

from transformers import AutoConfig

from stillhouse.contract import RECIPE_TEACHER, ConfigurationError
from stillhouse.models import check_model_folder, load_model, load_tokenizer, obtain_model_folder, save_model
from stillhouse.recipe import ModelSource, Recipe, StudentConfig, TrainingConfig
from stillhouse.store import fetch_source
from stillhouse.student import check_same_tokenizer, initialise


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A teacher with a size of student."""

    teacher: str
    """Its name; see `stillhouse.contract.Probe`."""
    source: ModelSource
    keep: int | None
    """Layers of the source that an assistant keeps."""
    teacher_layers: int
    student_layers: int | None
    """None where the recipe's student has no number of layers."""

    def recipe_of(self, recipe: Recipe, repeat: int) -> Recipe:
        """Return the recipe with this teacher and student, and a repeat's budget and seeds."""
        config, finetune = recipe.preflight, recipe.teacher.finetune
        learned = _budgeted(finetune, config.epochs, repeat) if finetune else None
        teacher = recipe.teacher.model_copy(update={"source": self.source, "finetune": learned})
        student = recipe.student.model_copy(update={"seed": recipe.student.seed + repeat})
        if self.student_layers != student.layers:
            own_map = None if isinstance(student.layer_map, tuple) else student.layer_map
            student = student.model_copy(update={"layers": self.student_layers, "layer_map": own_map})
        training = _budgeted(recipe.training, config.epochs, repeat)
        return recipe.model_copy(update={"teacher": teacher, "student": student, "training": training})

    def work(self, recipe: Recipe, num_rows: int, num_items: int) -> dict[str, float]:
        """Return how much each part of a probe is to do: texts by layers that they pass, backwards counting twice.

        Args:
            recipe: See `recipe_of`.
            num_rows: To learn from.
            num_items: To be measured on.
        """
        deep, flat = self.teacher_layers, self.student_layers or self.teacher_layers
        finetune = recipe.teacher.finetune
        return {
            "teacher": 3 * num_rows * deep * finetune.epochs if finetune else 0.0,
            "answers": num_rows * deep,
            "arm": 3 * num_rows * flat * recipe.training.epochs,
            "measuring-teacher": num_items * deep,
            "measuring-arm": num_items * flat,
        }

    def name(self, doing: str) -> str:
        """Return who does what, for people who wait for it."""
        size = f", {self.student_layers} layers" if self.student_layers else ""
        return f"{self.teacher}{size}: {doing}"

    def source_folder(self, recipe: Recipe, workspace: Path) -> Path:
        """Return the folder of the model before it is fine-tuned, with an assistant's layers only."""
        folder = obtain_model_folder(fetch_source(self.source), workspace)
        if self.keep is None:
            return folder
        model = load_model(folder, task=recipe.task, labels=recipe.data.labels)
        shallow = initialise(StudentConfig(layers=self.keep, layer_map="spaced"), teacher=model).model
        save_model(shallow, load_tokenizer(folder), workspace / "assistant")
        return workspace / "assistant"


def candidates(recipe: Recipe, workspace: Path) -> list[Candidate]:
    """Return what is tried: every teacher with the recipe's student, the recipe's teacher with every size of student.

    The recipe's own pair comes first.

    Args:
        recipe: The section ``preflight`` names the others.
        workspace: Models that must be converted to be read go there.

    Raises:
        ConfigurationError: A model can't be read, is too shallow for the student or too deep for an assistant, or
            reads other tokens where losses per token are compared.
    """
    own = recipe.teacher.weights
    folder = obtain_model_folder(fetch_source(own), workspace / RECIPE_TEACHER)
    depth, size = _depth(folder), recipe.student.layers

    def made(teacher: str, layers: int, *, source: ModelSource = own, keep: int | None = None) -> Candidate:
        return Candidate(teacher=teacher, source=source, keep=keep, teacher_layers=layers, student_layers=size)

    found = [made(RECIPE_TEACHER, depth)]
    for keep in _assistants(recipe, depth):
        if keep >= depth:
            raise ConfigurationError(f"preflight.assistants: {keep} layers of a teacher of {depth}; name fewer")
        found.append(made(f"assistant-{keep}", keep, keep=keep))
    for other in recipe.preflight.teachers:
        its = obtain_model_folder(fetch_source(other.source), workspace / other.name)
        if recipe.task != "text-classification":
            check_same_tokenizer(load_tokenizer(its), load_tokenizer(folder))
        found.append(made(other.name, _depth(its), source=other.source))
    found += [replace(found[0], student_layers=layers) for layers in recipe.preflight.student_layers if layers != size]
    if recipe.student.source is None:
        for candidate in found:
            _check_depth(candidate)
    return found


def _check_depth(candidate: Candidate) -> None:
    if candidate.student_layers is not None and candidate.student_layers > candidate.teacher_layers:
        raise ConfigurationError(
            f"preflight: a student of {candidate.student_layers} layers can't start from {candidate.teacher}, which "
            f"has {candidate.teacher_layers}; name a smaller student or another teacher"
        )


def _assistants(recipe: Recipe, depth: int) -> tuple[int, ...]:
    chosen, size = recipe.preflight.assistants, recipe.student.layers
    if chosen is not None:
        return chosen
    if recipe.teacher.finetune is None or size is None:
        return ()
    halfway = (depth + size) // 2
    return (halfway,) if size < halfway < depth else ()


def _depth(folder: Path) -> int:
    check_model_folder(folder)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigurationError(f"model folder {folder} can't be loaded ({reason}); check its files") from error
    depth: int = config.get_text_config().num_hidden_layers
    return depth


def _budgeted(training: TrainingConfig, epochs: float | None, repeat: int) -> TrainingConfig:
    most = training.epochs if epochs is None else min(epochs, training.epochs)
    return training.model_copy(update={"epochs": most, "seed": training.seed + repeat})
