"""Which numbers the options of a run may have: one table, looked at once all configs and the command line are parsed.

Lightning and torch take many that they cannot mean: a negative clip trains uphill, an interval of 0 divides by zero.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from fnmatch import fnmatch
from typing import Any

from lightning_app.errors import InputError
from lightning_app.yaml_file import leaves


@dataclass(frozen=True)
class Range:
    """Finite numbers from `low` to `high`.

    Attributes:
        without: an end that is itself outside.
        also: further numbers that mean something.
        hint: what to write instead.
    """

    low: float = -math.inf
    high: float = math.inf
    without: float | None = None
    also: tuple[float, ...] = ()
    hint: str = ""

    def holds(self, x: float) -> bool:
        inside = math.isfinite(x) and self.low <= x <= self.high and x != self.without
        return inside or x in self.also

    def __str__(self) -> str:
        if self.low == self.high:
            text = f"be {self.low:g}"
        elif self.high < math.inf:
            ends = ("(" if self.without == self.low else "["), (")" if self.without == self.high else "]")
            text = f"lie in {ends[0]}{self.low:.10g}, {self.high:.10g}{ends[1]}"
        elif self.low > -math.inf:
            text = f"be {'above' if self.without == self.low else 'at least'} {self.low:g}"
        else:
            text = "be finite"
        return text + "".join(f", or {x:g}" for x in self.also) + (f": {self.hint}" if self.hint else "")


POSITIVE, NOT_NEGATIVE, COUNT = Range(0, without=0), Range(0), Range(1)
SHARE, BELOW_ONE = Range(0, 1), Range(0, 1, without=1)

# Keys without `init_args`, as shell patterns; the first one that fits counts. Values that are not numbers pass.
RULES: dict[str, Range] = {
    "seed_everything": Range(0, 2**32 - 1),
    "save_every_n_steps": COUNT,
    "trainer.gradient_clip_val": Range(0, also=(math.inf,), hint="null does not clip"),
    "trainer.accumulate_grad_batches": COUNT,
    "trainer.val_check_interval": Range(0, without=0, hint="trainer.limit_val_batches: 0 validates never"),
    "trainer.check_val_every_n_epoch": Range(1, hint="trainer.limit_val_batches: 0 validates never"),
    "trainer.log_every_n_steps": Range(0, hint="0 logs nothing"),
    "trainer.num_sanity_val_steps": Range(0, also=(-1,), hint="-1 takes all batches"),
    "trainer.max_steps": Range(0, also=(-1,), hint="-1 sets no limit"),
    "trainer.max_epochs": Range(0, also=(-1,), hint="-1 sets no limit"),
    "trainer.min_steps": NOT_NEGATIVE,
    "trainer.min_epochs": NOT_NEGATIVE,
    "trainer.reload_dataloaders_every_n_epochs": NOT_NEGATIVE,
    "trainer.num_nodes": COUNT,
    "*.optimizer.lr": Range(0, without=0, hint="0 would train nothing"),
    "*.optimizer.betas.*": BELOW_ONE,
    "*.optimizer.eps": POSITIVE,
    "*.optimizer.eps.*": POSITIVE,
    "*.optimizer.momentum": BELOW_ONE,
    "*.optimizer.alpha": BELOW_ONE,
    "*.optimizer.rho": BELOW_ONE,
    "*.optimizer.dampening": SHARE,
    **{
        f"*.optimizer.{name}": NOT_NEGATIVE
        for name in ("weight_decay", "lr_decay", "momentum_decay", "lambd", "initial_accumulator_value")
    },
    "*.scheduler.last_epoch": Range(-1, -1, hint="--ckpt_path resumes"),
    **{f"*.scheduler.{name}": COUNT for name in ("T_max", "T_0", "T_mult", "step_size", "total_iters", "total_steps")},
    **{f"*.scheduler.{name}": NOT_NEGATIVE for name in ("warmup_steps", "patience", "cooldown", "eta_min", "min_lr")},
    **{f"*.scheduler.{name}": POSITIVE for name in ("gamma", "factor", "power", "start_factor", "max_lr", "base_lr")},
    "*.scheduler.min_ratio": SHARE,
    "*.scheduler.end_factor": SHARE,
    "trainer.callbacks.*.patience": NOT_NEGATIVE,
    "data.block_size": Range(2),
    "data.dataloader.batch_size": COUNT,
    **{f"model.backbone.{name}": COUNT for name in ("embedding_dim", "layers", "heads")},
}
# Of a fit alone: what validates may have them.
OF_FIT = {
    "trainer.max_steps": "0 trains nothing; -1 sets no limit",
    "trainer.max_epochs": "0 trains nothing; -1 sets no limit",
    "trainer.limit_train_batches": "0 trains nothing; null takes all batches",
}
# Callbacks of Lightning's that cannot do their work here, and why.
UNFIT = {
    "LearningRateFinder": "it sets an attribute `lr`, and here the config makes the optimizer: try rates by runs",
    "BatchSizeFinder": "it sets an attribute that is data.dataloader.batch_size here: try sizes by runs",
}
DURATION = re.compile(r"\d+:\d+:\d+:\d+")


def check_options(options: Mapping[str, Any], *, fit: bool) -> None:
    """Look at every number of a parsed config.

    Raises:
        InputError: one is outside of its range, is not a number (NaN), or a fit has no end.
    """
    for key in ("trainer", "data", "name", "runs_dir"):
        if options.get(key) is None:
            raise InputError(f"{key} is null; leave it out to take its defaults")
    for key in ("trainer", "data"):
        if not isinstance(options[key], Mapping):
            raise InputError(f"{key} is {str(options[key])[:60]!r}; it must be a mapping such as `max_steps: 100`")
    if options["trainer"].get("barebones"):
        raise InputError("trainer.barebones is true; a run here has a log, a bar and checkpoints: leave it out")
    numbered = dict(leaves(options, lists="numbers"))
    for key, value in numbered.items():
        _check(key, value)
        part, _, name = key.rpartition(".init_args.")
        ours = str(numbered.get(f"{part}.class_path")).startswith("lightning_app.")
        if name == "advanced" and value is None and ours:
            raise InputError(f"{key} is null; leave it out to take its defaults")
    _check_max_time(options["trainer"].get("max_time"))
    if fit:
        _check_fit(options["trainer"], fit_in=options.get("fit_in"))


def _check(key: str, value: Any) -> None:
    name = str(value).rpartition(".")[2]
    if key.startswith("trainer.callbacks.") and key.endswith("class_path") and name in UNFIT:
        raise InputError(f"{key.removesuffix('.class_path')} is a {name}, which does not fit: {UNFIT[name]}")
    if isinstance(value, bool) or not isinstance(value, int | float):
        if value is True and fnmatch(key.replace(".init_args", ""), "*.optimizer.maximize"):
            raise InputError(f"{key} is true; it must be false: a loss is minimised")
        return
    plain = key.replace(".init_args", "")
    rule = next((rule for pattern, rule in RULES.items() if fnmatch(plain, pattern)), None)
    if rule is not None and not rule.holds(value):
        raise InputError(f"{key} is {value}; it must {rule}")
    if math.isnan(value):
        raise InputError(f"{key} is nan; it must be a number")


def _check_max_time(limit: Any) -> None:
    if limit is None:
        return
    if isinstance(limit, Mapping):
        positive = any(limit.values()) and min(limit.values()) >= 0
    elif isinstance(limit, timedelta):
        positive = limit > timedelta(0)
    else:
        positive = isinstance(limit, str) and bool(DURATION.fullmatch(limit) and limit.strip("0:"))
    if not positive:
        raise InputError(f"trainer.max_time is {limit!r}; it must be days:hours:minutes:seconds above 0: 00:01:30:00")


def _check_fit(trainer: Mapping[str, Any], *, fit_in: Any) -> None:
    for key, why in OF_FIT.items():
        value = trainer.get(key.removeprefix("trainer."))
        if value is not None and value == 0:
            raise InputError(f"{key} is {value}; a fit needs one above 0: {why}")
    ends = [trainer.get(name) not in (None, -1) for name in ("max_steps", "max_epochs", "max_time")]
    if not any(ends) and fit_in is None and not trainer.get("fast_dev_run"):
        raise InputError(
            "the fit would have no end: give trainer.max_steps, trainer.max_epochs or trainer.max_time (none is given, "
            "or all are -1)"
        )
