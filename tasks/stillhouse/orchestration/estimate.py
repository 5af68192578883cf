"""What a distillation of a language model takes: hours, money, bytes. A model on paper, from operations and bandwidths.

A model needs 2 floating-point operations for each parameter and token forward, and twice that backward (Kaplan et al.
2020, "Scaling Laws for Neural Language Models", section 2.1). Attention's own share, of the order of the context over 6
times the width, is left out. Looking up input embeddings costs nothing, so a tied table counts once, as the head.
"""

from collections.abc import Iterator
from typing import NamedTuple

from pydantic import Field

from stillhouse.recipe import Config

HOUR = 3600.0
GB = 1e9

CACHE_BYTES = 29.01
"""A token in the teacher's cache."""
TEXT_BYTES = 4.0
"""A token as text."""
TEACHER_BYTES = 4
"""A parameter of a local teacher in memory, float32; half of it with ``teacher.precision: bfloat16``."""
TRAINING_BYTES = 16
"""A parameter in training: weight, gradient and two moments, float32."""
CHECKPOINT_BYTES = 12
"""A parameter in a checkpoint: weight and two moments."""
CHECKPOINTS = 2
"""That are kept of each arm."""
SHARDED_TRAFFIC, REPLICATED_TRAFFIC = 12, 8
"""Bytes that a device sends for each parameter and step: FSDP gathers weights twice and scatters gradients once, DDP's
ring passes gradients around twice; float32."""


class Hardware(Config):
    """Devices of one kind, and what surrounds them."""

    name: str
    operations: float = Field(gt=0)
    """Floating-point operations a second at best, of one device."""
    scoring: float = Field(gt=0, le=1)
    """Share of it that scoring reaches."""
    training: float = Field(gt=0, le=1)
    """Share of it that training reaches."""
    memory: float = Field(gt=0)
    """Bytes of a device."""
    link: float = Field(gt=0)
    """Bytes a second between devices on different nodes, for each of them."""
    download: float = Field(gt=0)
    """Bytes a second from the object store to a node."""
    price: float = Field(ge=0)
    """Of one device for an hour, in dollars."""


class Job(Config):
    """One workflow."""

    name: str
    tokens: float = Field(gt=0)
    """Training tokens."""
    teacher: float = Field(gt=0)
    """Parameters, the embedding table counted once."""
    student: float = Field(gt=0)
    """Parameters, the embedding table counted once."""
    devices: int = Field(ge=1)
    """For scoring, one a shard at least, and for each training."""
    shards: int = Field(ge=1)
    """Scoring tasks."""
    nodes: int = Field(default=1, ge=1)
    """That train together."""
    epochs: float = Field(default=1, gt=0)
    arms: int = Field(default=2, ge=1)
    """Trainings: the student, and its control without the teacher."""
    batch: float = Field(default=4e6, gt=0)
    """Tokens of a step."""


class Estimate(NamedTuple):
    """What a job takes."""

    score_hours: float
    """All shards together, on the job's devices."""
    train_hours: float
    """One arm."""
    device_hours: float
    cost: float
    """Of the devices, in dollars."""
    cache: float
    """Bytes of the teacher's cache."""
    stored: float
    """Bytes in the object store and the work folders: text, cache, models, checkpoints."""
    moved: float
    """Bytes between the object store and tasks."""
    download_hours: float
    """Until a node of a training has the cache."""
    traffic_share: float
    """Time of exchanging weights and gradients over time of computing, in a step. Above 1 the network is the limit;
    below, the two may overlap."""
    teacher_devices: int
    """Whose memory one copy of the teacher fills to four fifths. A local teacher must fit into one."""
    training_memory: float
    """Bytes of a device for weights, gradients and moments: sharded where several nodes train, else whole on each."""


def estimate(job: Job, hardware: Hardware) -> Estimate:
    """Return what ``job`` takes on ``hardware``."""
    scored = 2 * job.teacher * job.tokens / (hardware.operations * hardware.scoring) / HOUR
    trained = 6 * job.student * job.tokens * job.epochs / (hardware.operations * hardware.training) / HOUR
    device_hours = scored + job.arms * trained
    cache = CACHE_BYTES * job.tokens
    text = TEXT_BYTES * job.tokens
    models = TEACHER_BYTES * (job.teacher + (1 + job.arms) * job.student)
    checkpoints = CHECKPOINTS * CHECKPOINT_BYTES * job.arms * job.student
    per_parameter = 0 if job.devices == 1 else SHARDED_TRAFFIC if job.nodes > 1 else REPLICATED_TRAFFIC
    step = 6 * job.student * job.batch / (job.devices * hardware.operations * hardware.training)
    read = job.shards * (text + TEACHER_BYTES * job.teacher) + job.nodes * (cache + job.arms * text)
    return Estimate(
        score_hours=scored / min(job.devices, job.shards),
        train_hours=trained / job.devices,
        device_hours=device_hours,
        cost=device_hours * hardware.price,
        cache=cache,
        stored=text + cache + models + checkpoints,
        moved=read + cache + models,
        download_hours=cache / hardware.download / HOUR,
        traffic_share=per_parameter * job.student / hardware.link / step,
        teacher_devices=-int(-(TEACHER_BYTES * job.teacher) // (0.8 * hardware.memory)),
        training_memory=TRAINING_BYTES * job.student / (job.devices if job.nodes > 1 else 1),
    )


class Assumption(NamedTuple):
    """A number that the tables rest on."""

    what: str
    value: str
    kind: str
    """``measured`` here, ``of the code``, or ``assumed``."""
    source: str


H100 = Hardware(
    name="H100 SXM",
    operations=989e12,
    scoring=0.40,
    training=0.35,
    memory=80e9,
    link=50e9,
    download=1e9,
    price=2.50,
)

ASSUMPTIONS = (
    Assumption(
        "operations for a parameter and token", "2 forward, 6 in training", "assumed", "Kaplan et al. 2020, 2.1"
    ),
    Assumption("device", "989 TFLOP/s, bfloat16, dense; 80 GB", "assumed", "NVIDIA's data sheet of the H100 SXM"),
    Assumption(
        "share of it in scoring", "40 %", "assumed", "training of that kind reaches 38 to 43 % in Llama 3's report"
    ),
    Assumption("share of it in training", "35 %", "assumed", "below the same figures, since batches are smaller"),
    Assumption("network between nodes", "50 GB/s a device", "assumed", "one port of 400 Gbit/s for each device"),
    Assumption("object store to a node", "1 GB/s", "assumed", "one 10 Gbit/s link, well used"),
    Assumption("a device for an hour", "$2.50", "assumed", "a rental price of 2026: put in yours"),
    Assumption("cache", "29.01 bytes a token", "measured", "benchmarks/README.md, The teacher's cache"),
    Assumption("text", "4 bytes a token", "assumed", "English under a vocabulary of 50 to 130 thousand tokens"),
    Assumption("teacher in memory", "4 bytes a parameter", "of the code", "teacher.precision is float32 by default"),
    Assumption("training", "16 bytes a parameter", "of the code", "AdamW in float32 under autocast"),
)

JOBS = (
    Job(name="one GPU", tokens=1e9, teacher=1.7e9, student=0.5e9, devices=1, shards=1, batch=0.5e6),
    Job(name="one node", tokens=10e9, teacher=8e9, student=1e9, devices=8, shards=8, batch=1e6),
    Job(name="four nodes", tokens=30e9, teacher=14e9, student=3e9, devices=32, shards=32, nodes=4, batch=2e6),
    Job(name="sixteen nodes", tokens=100e9, teacher=70e9, student=8e9, devices=128, shards=128, nodes=16),
)
"""Those of infra/SCALING.md."""


def render(jobs: tuple[Job, ...] = JOBS, hardware: Hardware = H100) -> str:
    """Return the tables of what ``jobs`` take, as Markdown."""
    lines = [*_table(("", *(job.name for job in jobs)), _rows(jobs, hardware)), ""]
    if hardware == H100:
        lines += [*_table(Assumption._fields, ASSUMPTIONS), ""]
    return "\n".join(lines)


def _rows(jobs: tuple[Job, ...], hardware: Hardware) -> Iterator[tuple[str, ...]]:
    found = [estimate(job, hardware) for job in jobs]
    yield "training tokens", *(f"{job.tokens / 1e9:,g} B" for job in jobs)
    yield "teacher, student", *(f"{job.teacher / 1e9:g} B, {job.student / 1e9:g} B" for job in jobs)
    yield "devices, shards, nodes", *(f"{job.devices}, {job.shards}, {job.nodes}" for job in jobs)
    yield "scoring, hours", *(f"{e.score_hours:,.1f}" for e in found)
    yield "each of two trainings, hours", *(f"{e.train_hours:,.1f}" for e in found)
    yield "device hours", *(f"{e.device_hours:,.0f}" for e in found)
    yield "cost of devices", *(f"${e.cost:,.0f}" for e in found)
    yield "cache, GB", *(f"{e.cache / GB:,.0f}" for e in found)
    yield "stored, GB", *(f"{e.stored / GB:,.0f}" for e in found)
    yield "moved from and to the store, GB", *(f"{e.moved / GB:,.0f}" for e in found)
    yield "cache to a node, hours", *(f"{e.download_hours:.2f}" for e in found)
    yield "exchange over computing, a step", *(f"{e.traffic_share:.2f}" for e in found)
    yield "devices for a copy of the teacher", *(str(e.teacher_devices) for e in found)
    yield "a device in training, GB", *(f"{e.training_memory / GB:,.1f}" for e in found)


def _table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]] | tuple[Assumption, ...]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|---" * len(head) + "|"
    for row in rows:
        yield f"| {' | '.join(row)} |"
