"""Does the runs of a plan that are not done yet, the most telling ones first."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from benchmarks.common import processor
from benchmarks.peers.contestant import Job, contestant
from benchmarks.speedrun import adapting, ranking
from benchmarks.speedrun.archives import ARCHIVES, measured
from benchmarks.speedrun.clock import Cost, Timed, calibrate, cpu_seconds, within
from benchmarks.speedrun.plan import OURS, Entry, Plan
from benchmarks.speedrun.results import ADAPTING, FROZEN, Key, Result, Results
from benchmarks.speedrun.scoring import bits_per_byte
from benchmarks.speedrun.texts import Text
from experiments.plans import commit
from lightning_app.errors import InputError


@dataclass
class Runner:
    """Runs what is missing, and calls `done` after each result.

    Attributes:
        texts: what is run on.
        trial_text: the name of the one that trials are run on, if it is among them.
        work: where models lie.
    """

    plan: Plan
    texts: Sequence[Text]
    trial_text: str
    results: Results
    work: Path
    threads: int
    done: Callable[[], None] = lambda: None

    def run_all(self) -> list[str]:
        """Everything -> what failed, a line each."""
        failed = []
        for job in [*self._archives(), *self._trials(), *self._chosen()]:
            try:
                job()
            except InputError as error:
                failed.append(str(error))
                print(f"error: {error}", flush=True)
        return failed

    # Which runs

    def _archives(self) -> list[Callable[[], None]]:
        return [partial(self._archive, name, text) for text in self.texts for name in ARCHIVES]

    def _trials(self) -> list[Callable[[], None]]:
        """The recipe of each contestant first, then the second trial of each, and so on."""
        entries = self.plan.contestants
        found = [(t, e, n) for t in self.texts if t.name == self.trial_text for e in entries for n in self._numbers(e)]
        in_order = sorted(found, key=lambda one: one[2])
        return [partial(self._trial, *job) for job in in_order]

    def _numbers(self, entry: Entry) -> range:
        return range(self.plan.number_of_trials(entry))

    def _chosen(self) -> list[Callable[[], None]]:
        """All seeds, texts and budgets of what the trials have chosen."""
        found = []
        for seed in range(max(self.plan.seeds, self.plan.seeds_of_first)):
            for text in self.texts:
                for budget in sorted([*self.plan.budgets, *self.plan.sooner]):
                    own = [entry for entry in self.plan.contestants if budget in self.plan.budgets_of(entry)]
                    found += [(entry, text, budget, seed) for entry in own]
        return [partial(self._final, *job) for job in found]

    # One run

    def _archive(self, name: str, text: Text) -> None:
        key = Key(ADAPTING, name, text.name, 0, 0, 1, {}, text.sha256)
        if self.results.get(key) is None:
            found = measured(name, text.train.read_bytes(), text.test.read_bytes())
            if found is not None:
                self._add(Result(key, cpu_seconds=found[1], spent=found[1], test_bpb=found[0]))

    def _trial(self, text: Text, entry: Entry, trial: int) -> None:
        self.ensure(entry, text, self.plan.budgets[0], 0, trial, test=False)

    def _final(self, entry: Entry, text: Text, budget: float, seed: int) -> None:
        compared = budget in self.plan.budgets
        if seed >= (self._seeds(entry, text) if compared else 1):
            return
        trial = ranking.chosen(self.results, entry, self.trial_text, self.plan.budgets[0], self.threads)
        result = self.ensure(entry, text, budget, seed, trial, test=True)
        if entry.name == OURS and compared:
            self._adapting(entry, text, result)

    def _seeds(self, entry: Entry, text: Text) -> int:
        """More for ours and the best rival, where trials were; counts know no chance."""
        if not entry.is_neural:
            return 1
        of_first = text.name == self.trial_text and entry.name in (OURS, self._best_rival(text))
        return max(self.plan.seeds, self.plan.seeds_of_first) if of_first else self.plan.seeds

    def _best_rival(self, text: Text) -> str | None:
        names = [entry.name for entry in self.plan.contestants if entry.is_neural and entry.name != OURS]
        ranked = ranking.standings(self.results, FROZEN, text.name, self.plan.budgets)
        return next((standing.contestant for standing in ranked if standing.contestant in names), None)

    def ensure(self, entry: Entry, text: Text, budget: float, seed: int, trial: int, *, test: bool) -> Result:
        """The result, with the figure of the test text where that is asked for."""
        budget = budget if entry.is_neural else 0
        options = entry.options(trial)
        key = Key(FROZEN, entry.name, text.name, budget, seed, self.threads, options, text.sha256)
        result = self.results.get(key)
        job = self._job(entry, key, text)
        if result is None or (test and result.test_bpb is None and not Path(job.folder, "kept").exists()):
            result = self._train(key, job, text, trial)
        if test and result.test_bpb is None:
            job = replace(job, steps=result.steps)
            found = bits_per_byte(contestant(entry.kind).reader(job), text.test.read_bytes().decode())
            result = self._add(replace(result, test_bpb=found))
        return result

    def _job(self, entry: Entry, key: Key, text: Text) -> Job:
        folder = str((self.work / "models" / key.name).absolute())
        return Job(folder, entry.kind, str(text.train), str(text.heldout), 0, key.seed, self.threads, key.options)

    def _train(self, key: Key, job: Job, text: Text, trial: int) -> Result:
        timed = self._timed(key, job)
        Path(job.folder, "kept").touch()
        shutil.rmtree(Path(job.folder, "trainer"), ignore_errors=True)
        heldout = text.heldout.read_bytes()[: self.plan.heldout_bytes].decode(errors="ignore")
        found = bits_per_byte(contestant(job.kind).reader(timed.job), heldout)
        numbers = {name: getattr(timed, name) for name in ("cpu_seconds", "spent", "discarded")}
        return self._add(Result(key, trial, timed.job.steps, **numbers, heldout_bpb=found))

    def _timed(self, key: Key, job: Job) -> Timed:
        if not key.budget:
            seconds = cpu_seconds(job)
            return Timed(job, seconds, seconds, 0)
        path = self.work / "costs" / f"{replace(key, budget=0, seed=0, table='').name}.json"
        spent = 0.0
        if path.is_file():
            cost = Cost(**json.loads(path.read_text(encoding="utf-8")))
        else:
            cost, spent = calibrate(job, key.budget)
        timed = within(job, key.budget, cost, overshoot=self.plan.overshoot)
        path.parent.mkdir(parents=True, exist_ok=True)
        each = (timed.cpu_seconds - cost.fixed) / timed.job.steps  # what a long run says is better
        path.write_text(json.dumps(asdict(Cost(cost.fixed, each))), encoding="utf-8")
        return replace(timed, spent=timed.spent + spent)

    def _adapting(self, entry: Entry, text: Text, frozen: Result) -> None:
        key = replace(frozen.key, table=ADAPTING, options={**frozen.key.options, **adapting.options()})
        if self.results.get(key) is None:
            job = replace(self._job(entry, frozen.key, text), steps=frozen.steps)
            bpb, seconds = adapting.bits_per_byte(job, text.test)
            self._add(replace(frozen, key=key, test_bpb=bpb, cpu_seconds=seconds, spent=seconds))

    def _add(self, result: Result) -> Result:
        result = replace(result, commit=commit().strip("`"), machine=processor())
        self.results.add(result)
        key, bpb = result.key, [f"{x:.4f}" if x else "-" for x in (result.heldout_bpb, result.test_bpb)]
        said = f"{key.contestant}, {key.text}, {key.budget:g} s, seed {key.seed}, trial {result.trial}"
        print(f"{said}: {' '.join(bpb)} in {result.cpu_seconds:.1f} s, {result.steps} steps", flush=True)
        self.done()
        return result
