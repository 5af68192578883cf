"""Narrower layers: the least active heads, feed-forward channels and hidden channels go."""

import itertools
import math
from dataclasses import dataclass, field, replace

from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedModel

from stillhouse.compression.base import Calibration, Cut, Operation, Subject
from stillhouse.compression.channels import Anatomy, Widths
from stillhouse.compression.importance import measure_importance
from stillhouse.compression.rounds import halvings, next_size
from stillhouse.compression.target import largest_within, relative_size
from stillhouse.contract import ConfigurationError
from stillhouse.recipe.compression import WidthStep

CHANNEL_UNIT = 8
"""To meet a target, channels go so many at a time if they are a multiple of it: matrix units of accelerators want such
sizes, and pattern 2:4 half of it."""
FEWEST_UNITS = 8
"""Hidden channels in fewer units would shrink by leaps; then smaller units are taken."""
EXTRA_ROUNDS = 3
"""Most that are added for the rounding of widths; tiny models may need more and go without."""


@dataclass
class WidthPruning(Operation):
    """Keeps the most active heads and channels (Minitron, Muralidharan et al. 2024), measured anew in each round.

    Heads and feed-forward channels are chosen in each layer, hidden channels once for the whole model. The hidden size
    of an encoder is that of its heads.
    """

    step: WidthStep
    _goal: Widths | None = field(default=None, init=False, repr=False)
    """In the end. A share is one of what the first round starts from, so it is worked out there."""

    def rounds(self, subject: Subject) -> int:
        """Return how many cuts there are: each leaves at least half of every width, and of the weights, if the model
        learns in between.

        A target of latency can't be measured yet, so there each cut leaves about half of the latency or more.

        Raises:
            ConfigurationError: See `Operation.cut`.
        """
        target = self.step.target
        anatomy = Anatomy(subject.model)
        if self.step.heal is None:
            return 1
        if target is not None and target.measure == "latency":
            return halvings(1, target.share)
        now, goal = anatomy.widths, self._wanted(subject.model, anatomy, Calibration(ids=[]))
        count = max(
            halvings(now.groups, goal.groups),
            halvings(now.feed_forward, goal.feed_forward),
            halvings(now.hidden, goal.hidden),
            halvings(1, relative_size(subject.model, anatomy.config(goal), "parameters")),
        )
        # Widths are whole, so a factor that is right on average may cut too much in one round.
        tried = range(count, count + EXTRA_ROUNDS + 1)
        return next((rounds for rounds in tried if _leaves_half(subject.model, anatomy, goal, rounds)), count)

    def cut(self, subject: Subject, calibration: Calibration, *, turn: int, rounds: int) -> Cut:
        """Make the cut of a round; see `Operation.cut`."""
        anatomy = Anatomy(subject.model)
        if turn == 1:
            self._goal = self._wanted(subject.model, anatomy, calibration)
        assert self._goal is not None
        before = anatomy.widths
        after = _next_widths(anatomy, before, self._goal, rounds - turn + 1)
        documents = calibration.ids[: self.step.calibration_rows]
        importance = measure_importance(subject.model, anatomy, documents)
        kept = importance.keep(after)
        narrow = anatomy.cut(kept, importance.norm_scales(kept.hidden_D) if after.hidden < before.hidden else {})
        per_group = anatomy.queries_per_group
        return Cut(
            subject=replace(subject, model=narrow),
            did=f"kept {_told(before, after, per_group)} by their activations",
        )

    def _wanted(self, model: PreTrainedModel, anatomy: Anatomy, calibration: Calibration) -> Widths:
        if self.step.target is None:
            return self._named(anatomy)
        candidates = _candidates(anatomy)
        configs = [anatomy.config(widths) for widths in candidates]
        return candidates[largest_within(model, self.step.target, configs, calibration)]

    def _named(self, anatomy: Anatomy) -> Widths:
        now, step = anatomy.widths, self.step
        per_group = anatomy.queries_per_group
        heads = now.groups * per_group if step.heads is None else step.heads
        if step.hidden is not None and not anatomy.is_decoder:
            raise ConfigurationError("an encoder's hidden size is that of its heads; give heads instead of hidden")
        if heads % per_group:
            raise ConfigurationError(
                f"heads is {heads} and {per_group} query heads share a key head; give a multiple of {per_group}"
            )
        hidden = step.hidden or now.hidden
        wanted = Widths(
            groups=heads // per_group,
            feed_forward=step.feed_forward or now.feed_forward,
            hidden=hidden if anatomy.is_decoder else anatomy.hidden_of(heads),
        )
        for name, given, most in (
            ("heads", heads, now.groups * per_group),
            ("feed_forward", wanted.feed_forward, now.feed_forward),
            ("hidden", wanted.hidden, now.hidden),
        ):
            if given > most:
                raise ConfigurationError(f"{name} is {given} and the model has {most}; lower {name}")
        try:
            anatomy.config(wanted).validate()
        except StrictDataclassError as error:
            raise ConfigurationError(f"transformers refuses these sizes ({error.__cause__}); change them") from error
        return wanted


def _candidates(anatomy: Anatomy) -> list[Widths]:
    """Return widths that shrink alike, as far as they are whole units: from large to small, and none ever grows."""
    now = anatomy.widths
    ff_unit, hidden_unit = (math.gcd(size, CHANNEL_UNIT) for size in (now.feed_forward, now.hidden))
    steps = max(now.groups, now.feed_forward // ff_unit, now.hidden // hidden_unit)
    found, hidden = [], now.hidden
    for step in range(steps - 1, 0, -1):
        groups = max(1, round(now.groups * step / steps))
        feed_forward = max(1, round(now.feed_forward // ff_unit * step / steps)) * ff_unit
        if anatomy.is_decoder:
            # Transformers wants a multiple of the heads, even where their width is given.
            heads = groups * anatomy.queries_per_group
            room = min(hidden, now.hidden * step // steps)
            aligned = (math.lcm(heads, math.gcd(hidden_unit, align)) for align in (CHANNEL_UNIT, CHANNEL_UNIT // 2))
            unit = next((unit for unit in aligned if unit * FEWEST_UNITS <= room), heads)
            hidden = max(1, room // unit) * unit
        else:
            hidden = anatomy.hidden_of(groups)
        found.append(Widths(groups=groups, feed_forward=feed_forward, hidden=hidden))
    return found


def _told(before: Widths, after: Widths, queries_per_group: int) -> str:
    sizes = (
        ("heads", queries_per_group * before.groups, queries_per_group * after.groups),
        ("feed-forward channels", before.feed_forward, after.feed_forward),
        ("hidden channels", before.hidden, after.hidden),
    )
    cut = [f"{now} of {then} {name}" for name, then, now in sizes if now < then]
    return ", ".join(cut) or "all heads and channels"


def _next_widths(anatomy: Anatomy, now: Widths, goal: Widths, left: int) -> Widths:
    groups = next_size(now.groups, goal.groups, left)
    return Widths(
        groups=groups,
        feed_forward=next_size(now.feed_forward, goal.feed_forward, left),
        hidden=next_size(now.hidden, goal.hidden, left) if anatomy.is_decoder else anatomy.hidden_of(groups),
    )


def _leaves_half(model: PreTrainedModel, anatomy: Anatomy, goal: Widths, rounds: int) -> bool:
    shares = [1.0]
    widths = anatomy.widths
    for left in range(rounds, 0, -1):
        widths = _next_widths(anatomy, widths, goal, left)
        shares.append(relative_size(model, anatomy.config(widths), "parameters"))
    return all(after >= before / 2 for before, after in itertools.pairwise(shares))
