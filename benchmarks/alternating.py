"""Several trainings side by side, in short alternating rounds, so that all meet the same weather."""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Report = dict[str, float]


@dataclass(kw_only=True)
class Side:
    """A process with a `peers.gate.Gate`."""

    name: str
    process: subprocess.Popen[str]
    log: Path
    reports: list[Report] = field(default_factory=list)
    """After warming up, and after each round: ``documents`` and ``tokens`` are totals."""

    @classmethod
    def start(cls, name: str, command: Sequence[str], *, threads: int, folder: Path) -> "Side":
        """Start a process and wait until it has warmed up."""
        quiet = {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1", "TOKENIZERS_PARALLELISM": "false"}
        log = folder / f"{name.replace(' ', '-')}.log"
        process = subprocess.Popen(
            [*command, "--threads", str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("w"),
            text=True,
            env=os.environ | quiet | {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"},
        )
        side = cls(name=name, process=process, log=log)
        side._read()
        return side

    def run(self, steps: int) -> None:
        """Do some steps."""
        self._say(str(steps))
        self._read()

    def end(self) -> None:
        """End the process."""
        self._say("")
        self.process.wait()

    def rates(self, what: str, clock: str) -> list[float]:
        """Return ``documents`` or ``tokens`` per second of each round, by the clock ``seconds`` or ``cpu_seconds``."""
        pairs = zip(self.reports[:-1], self.reports[1:], strict=True)
        return [(after[what] - before[what]) / after[clock] for before, after in pairs]

    def _say(self, line: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def _read(self) -> None:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.name} ended early:\n" + self.log.read_text()[-2000:])
        self.reports.append(json.loads(line))


def alternate(
    commands: Mapping[str, Sequence[str]], *, rounds: int, steps: int, threads: int, folder: Path
) -> list[Side]:
    """Run all sides for some rounds of some steps each, every round from another side on.

    Args:
        commands: What to run for each side; ``--threads`` is added.
        rounds: Of each side.
        steps: Of a round.
        threads: Of each side.
        folder: For what they have to say.
    """
    sides = [Side.start(name, command, threads=threads, folder=folder) for name, command in commands.items()]
    for number in range(rounds):
        for place in range(len(sides)):
            sides[(number + place) % len(sides)].run(steps)
    for side in sides:
        side.end()
    return sides


def compare(sides: Sequence[Side], what: str) -> list[dict[str, Any]]:
    """Return a line for each side: medians over rounds, and the first side's speed as a multiple of each side's.

    Ratios are given by CPU time, which other programs on the machine hardly change, and by the wall.
    """
    lines = []
    for side in sides:
        cpu, wall = side.rates(what, "cpu_seconds"), side.rates(what, "seconds")
        ratios = _ratios(sides[0].rates(what, "cpu_seconds"), cpu)
        lines.append(
            {
                "side": side.name,
                f"{what}_per_cpu_second": statistics.median(cpu),
                "ours_is_times_as_fast": statistics.median(ratios),
                "lowest": min(ratios),
                "highest": max(ratios),
                "by_the_wall": statistics.median(_ratios(sides[0].rates(what, "seconds"), wall)),
                "peak_mib": side.reports[-1]["peak_mib"],
                "rounds_cpu": cpu,
                "rounds_wall": wall,
            }
        )
    return lines


def print_table(lines: Sequence[Mapping[str, Any]], what: str) -> None:
    """Print lines of `compare` as Markdown."""
    print(f"| side | {what} per CPU second | ours is x as fast (lowest to highest round) | by the wall | peak MiB |")
    print("|---|---:|---:|---:|---:|")
    for line in lines:
        print(
            f"| {line['side']} | {line[f'{what}_per_cpu_second']:.1f} | {line['ours_is_times_as_fast']:.2f} "
            f"({line['lowest']:.2f} to {line['highest']:.2f}) | {line['by_the_wall']:.2f} | {line['peak_mib']:.0f} |"
        )


def _ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    return [own / other for own, other in zip(ours, theirs, strict=True)]
