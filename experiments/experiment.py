"""A question, the claim it tests, and how the answer is found: what every file of an experiment is made of."""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import tyro
from rich.console import Console

from experiments.arms import Arm
from experiments.decisions import WORDS, shown
from experiments.present import Findings
from experiments.sweep import Sweep
from jaxrl_llm.config import Config, ConfigError
from jaxrl_llm.spec import nearest

ROOT = pathlib.Path(__file__).parents[1]


class Verdict(NamedTuple):
    """One of `WORDS`, and the reason with its numbers."""

    word: str
    reason: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """One question at one scale.

    name      of the file, and of its folder in experiments/results
    question  what is asked
    claim     what a paper says, in one line with the paper
    base, arms, seeds, chunk   see `Sweep`
    decide    findings -> verdict; the rule is written before the runs are
    score     the held-out figure that arms are judged by
    rates     learning rates that every arm is tried with on the seeds `tuning`, which are not among `seeds`; it runs
              with the one of the best mean score. None: arms have the rates that they say
    draw      findings, path -> plot.png; by default learning curves and final scores
    """

    name: str
    question: str
    claim: str
    base: Config
    arms: Mapping[str, Arm]
    seeds: Sequence[int]
    decide: Callable[[Findings], Verdict]
    score: str = "eval/accuracy"
    chunk: int = 8
    rates: Sequence[float] = ()
    tuning: Sequence[int] = ()
    draw: Callable[[Findings, pathlib.Path], None] = Findings.plot

    def run(self, out: pathlib.Path, *, smoke: bool = False, console: Console | None = None) -> Verdict:
        """Run what the folder lacks and write runs.jsonl, table.md, table.csv, plot.png and answer.md into it.

        A smoke run decides nothing, but the rule is called. Raises ConfigError as `Sweep`, ValueError for a verdict
        that is none.
        """
        console = console or Console()
        chosen = self.tuned(out, smoke=smoke, console=console)
        arms = {name: {**self.arms[name], "learning_rate": rate} for name, rate in chosen.items()} or self.arms
        sweep = Sweep(base=self.base, arms=arms, seeds=self.seeds, chunk=self.chunk)
        sweep = sweep.smoke() if smoke else sweep
        findings = Findings(sweep.run(out, console=console), self.score)
        findings.write(out, self.draw)
        verdict = self.decide(findings)
        if verdict.word not in WORDS:
            raise ValueError(f"a verdict is one of {', '.join(WORDS)}, not {verdict.word!r}")
        if smoke:
            verdict = Verdict("undecided", "a smoke run is too small to show anything")
        (out / "answer.md").write_text(self._answer(findings, verdict, out, {} if smoke else chosen), encoding="utf-8")
        console.print(findings.table())
        console.print(f"{self.claim}\n[bold]{verdict.word}[/bold]: {verdict.reason}\n{out}/answer.md")
        return verdict

    def tuned(
        self, out: pathlib.Path, *, only: Sequence[str] = (), smoke: bool = False, console: Console | None = None
    ) -> dict[str, float]:
        """The learning rate of each arm with the best mean score on the seeds `tuning`; empty without `rates`.

        Ties go to the lower rate. Raises ConfigError where a seed is used for both, or an arm has a rate of its own.
        """
        if not self.rates:
            return {}
        if not self.tuning or {*self.tuning} & {*self.seeds}:
            raise ConfigError(f"tuning needs seeds that are not among the others, not {list(self.tuning)}")
        if own := [name for name, arm in self.arms.items() if isinstance(arm, Config) or "learning_rate" in arm]:
            raise ConfigError(f"arm {own[0]!r} has a learning rate of its own and cannot be tuned")
        names = only or self.arms
        if smoke:
            return dict.fromkeys(names, self.rates[0])  # that would be two thirds of its minute
        label = "{} @ {:g}".format
        tries = {label(n, rate): {**self.arms[n], "learning_rate": rate} for n in names for rate in self.rates}
        sweep = Sweep(base=self.base, arms=tries, seeds=self.tuning, chunk=self.chunk)
        found = Findings(sweep.run(out, console=console), self.score)
        mean = lambda name, rate: float(np.mean(found.scores(label(name, rate))))  # noqa: E731
        return {name: max(sorted(self.rates), key=lambda rate, n=name: mean(n, rate)) for name in names}

    def main(self) -> None:
        """`python experiments/NAME.py [--smoke] [--out DIR] [--only ARM ...]`."""

        def command(smoke: bool = False, out: pathlib.Path | None = None, only: tuple[str, ...] = ()) -> None:
            """Run the experiment and write its answer.

            Args:
                smoke: A few steps of two seeds on a tiny model, to see that all arms run.
                out: Folder of the results; finished runs in it are not run again. Default: experiments/results/NAME.
                only: Run these arms and no verdict; their runs are kept for the whole experiment.
            """
            place = out or (ROOT / "runs" / f"{self.name}-smoke" if smoke else ROOT / "experiments/results" / self.name)
            if only:
                self.part(only, place, smoke)
            else:
                self.run(place, smoke=smoke)

        try:
            tyro.cli(command, description=f"{self.question}\n\nClaim: {self.claim}\nArms: {', '.join(self.arms)}")
        except (ValueError, OSError) as error:
            print(f"{self.name}: {error}", file=sys.stderr)
            sys.exit(2)

    def part(self, only: Sequence[str], out: pathlib.Path, smoke: bool = False) -> None:
        """Run some of the arms. Raises ConfigError, which names the nearest, for an arm that does not exist."""
        for arm in only:
            if arm not in self.arms:
                raise ConfigError(f"there is no arm {arm!r}{nearest(arm, list(self.arms))}")
        chosen = self.tuned(out, only=only, smoke=smoke)
        arms = {name: arm for name, arm in self.arms.items() if name in only}
        arms = {name: {**arm, "learning_rate": chosen[name]} for name, arm in arms.items()} if chosen else arms
        sweep = Sweep(base=self.base, arms=arms, seeds=self.seeds, chunk=self.chunk)
        (sweep.smoke() if smoke else sweep).run(out)

    def _answer(self, findings: Findings, verdict: Verdict, out: pathlib.Path, chosen: Mapping[str, float]) -> str:
        about = json.loads((out / "sweep.json").read_text(encoding="utf-8"))
        versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
        first = next(iter(about["arms"].values()))
        size = f"{first['steps']} steps of {first['prompts_per_step']} x {first['answers_per_prompt']} answers"
        rates = ""
        if chosen:
            each = ", ".join(f"{name} {rate:g}" for name, rate in chosen.items())
            tried, seeds = (", ".join(f"{x:g}" for x in xs) for xs in (self.rates, self.tuning))
            rates = f"Learning rates, the best of {tried} on seeds {seeds} for each arm: {each}.\n\n"
        return (
            f"# {self.question}\n\n"
            f"**Claim.** {self.claim}\n\n"
            f"{shown(verdict.word, verdict.reason)}\n\n"
            f"{findings.markdown()}\n"
            f"![plot](plot.png)\n\n"
            f"Base policy of seed {first['seed']} on `{first['task']}`, then {size} in each of seeds "
            f"{', '.join(map(str, about['seeds']))}; every field is in `sweep.json`. {versions}; {about['device']}.\n\n"
            f"{rates}"
            f"    python experiments/{self.name}.py\n"
        )
