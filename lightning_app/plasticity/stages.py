"""Evaluations at the stages of a run that a reader compares: before pruning, after it, after the fine-tuning."""

from __future__ import annotations

import math

import lightning as L

from lightning_app.data.datamodule import TextDataModule
from lightning_app.models.generation_options import GenerationOptions
from lightning_app.plasticity.importance import Sample
from lightning_app.plasticity.kinds import units_in
from lightning_app.plasticity.measurements import cost_of, cross_entropy_of, samples_of
from lightning_app.plasticity.options import ScheduleOptions
from lightning_app.plasticity.progress import Progress
from lightning_app.plasticity.report import events
from lightning_app.reports.events import Cost
from lightning_app.training.callbacks.logger_output import log_numbers
from lightning_app.training.callbacks.run_callback import Prompts
from lightning_app.training.callbacks.run_log import RunLog
from lightning_app.training.callbacks.samples import continued
from lightning_app.training.module import LanguageModule

COSTED = ("baseline", "pruned", "recovered")  # stages at which time and size are measured


class Stages:
    """Evaluates a module on one sample of the validation text, and logs what was found.

    Args:
        progress: gets the costs.
        prompts: texts to be continued; None: none.
    """

    def __init__(
        self,
        trainer: L.Trainer,
        module: LanguageModule,
        data: TextDataModule,
        options: ScheduleOptions,
        progress: Progress,
        prompts: Prompts | None = None,
    ):
        self.trainer, self.module, self.data = trainer, module, data
        self.options, self.progress, self.prompts = options, progress, prompts
        self._sample: Sample | None = None

    def samples(self, datasets: dict[str, float] | None) -> list[tuple[float, Sample]]:
        """Weight and sample of each text; None: of the validation text."""
        options = self.options
        sizes = {"batches": options.advanced.sample_batches, "batch_size": options.advanced.sample_batch_size}
        return samples_of(self.module, self.data, datasets, **sizes)

    @property
    def sample(self) -> Sample:
        """The sample of the validation text; it is drawn once, as it is looked at every few steps."""
        if self._sample is None:
            self._sample = self.samples(None)[0][1]
        return self._sample

    def look(self, stage: str, *, with_text: bool = False) -> float:
        """Evaluate; at some stages also measure the cost, and have the model write.

        Returns: cross-entropy in nats per token.
        """
        ce = self.evaluate(stage)
        if stage in COSTED:
            self.log_cost(stage)
        if with_text:
            cycle = self.progress.at.cycle
            names = {"baseline": "baseline", "pruned": f"pruned, cycle {cycle}"}
            self._log_text(names.get(stage, f"fine-tuned, cycle {cycle}"))
        return ce

    def evaluate(self, stage: str) -> float:
        """Cross-entropy in nats per token, the same on all ranks."""
        ce = self.trainer.strategy.broadcast(cross_entropy_of(self.module, self.sample))
        sparsity, ppl = units_in(self.module, "heads")[0].sparsity, math.exp(min(ce, 50))
        cycle = self.progress.at.cycle
        RunLog.event(self.trainer, events.Evaluation(cycle=cycle, stage=stage, ce=ce, ppl=ppl, sparsity=sparsity))
        log_numbers(self.trainer, {"plasticity/sample_ce": ce, "plasticity/sample_ppl": ppl})
        return ce

    def log_cost(self, stage: str) -> None:
        """Size and time now; after the baseline also how many times faster that is."""
        cost, cycle, baseline = cost_of(self.module, self.sample), self.progress.at.cycle, self.progress.baseline
        if stage == "baseline":
            self.progress.baseline = cost
        else:
            cost["ceiling"] = baseline["flops_per_token"] / cost["flops_per_token"]
            cost["measured"] = baseline["latency_ms"] / cost["latency_ms"]
            self.progress.cost = cost
        name = "baseline" if stage == "baseline" else f"{stage}, cycle {cycle}"
        RunLog.event(self.trainer, Cost(cycle=cycle, stage=name, **cost))
        log_numbers(self.trainer, {f"plasticity/{key}": x for key, x in cost.items() if isinstance(x, int | float)})

    def _log_text(self, stage: str) -> None:
        prompts = self.prompts
        if prompts is None or not self.trainer.is_global_zero:
            return
        options = GenerationOptions(40, prompts.options.temperature, prompts.options.top_k, seed=0)
        texts = [
            events.TextSample(prompt=prompt, text=continued(prompt, self.module, self.data, options))
            for prompt in prompts.texts
        ]
        RunLog.event(self.trainer, events.TextSamples(stage=stage, texts=texts))


def summary(module: LanguageModule, options: ScheduleOptions, progress: Progress) -> list[str]:
    """What was reached, and what was proved, in lines."""
    lines = []
    for kind in options.kinds:
        units = units_in(module, kind)[0]
        total, dead = math.prod(units.shape), int((~units.mask).sum())
        each = units.layers[0].query_heads
        name = kind if each == 1 else f"{kind} (groups of {each} that share keys and values)"
        lines.append(f"{name}: {total:,} -> {total - dead:,} ({dead / total:.1%} dead, surgery: {options.surgery})")
    parameters, cost, baseline = sum(p.numel() for p in module.backbone.parameters()), progress.cost, progress.baseline
    lines.append(f"parameters: {baseline.get('parameters', 0):,} -> {parameters:,}")
    if cost:
        lines.append(
            f"a forward: {baseline['latency_ms']:.1f} -> {cost['latency_ms']:.1f} ms, "
            f"{cost['measured']:.2f} x faster; FLOPs allow {cost['ceiling']:.2f} x"
        )
    return lines + [f"proved {name}: {_plain(value)}" for name, value in progress.proved.items()]


def _plain(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.2g}"
