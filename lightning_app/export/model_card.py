"""README.md of an exported directory: what the model is, what it was trained on, what it reached, how to use it.

Written from the checkpoint, and from the run's config and log where these still lie beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from torch import nn

from lightning_app.plugins import Idea, here, load
from lightning_app.reports.events import Data, SplitCounts
from lightning_app.reports.record import Record
from lightning_app.reports.run_folder import RunFolder
from lightning_app.reports.series import events, numbers
from lightning_app.training.checkpoint import Checkpoint, tokenizer_state
from lightning_app.training.checkpoint_keys import STEP
from lightning_app.training.commit import UNKNOWN, commit
from lightning_app.training.lightning_internals.best_checkpoint import watched_scores
from lightning_app.training.module import LanguageModule

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MEASURES = {  # of a record in the log: name in the card, and unit
    "val/ce": ("cross-entropy", "nats per token"),
    "val/ppl": ("perplexity", "per token"),
    "val/bpb": ("bits per byte", ""),
    "val/acc": ("accuracy", "of the next token"),
}


@dataclass(frozen=True)
class Facts:
    """What is known of a checkpoint.

    Attributes:
        checkpoint: its path.
        module: class of the module, without its package.
        step: optimizer steps done.
        tokenizer: its name and number of ids.
        metrics: by name in the log, at that step.
        config: of the run; empty where it is not beside the checkpoint.
        texts: documents, words, bytes and tokens of each split, from the log.
        commits: of the code that trained, and of that which exports.
        ideas: what the model holds of each idea that it has, in one line.
    """

    checkpoint: Path
    module: str
    step: int | None
    tokenizer: str
    metrics: dict[str, float] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    texts: list[SplitCounts] = field(default_factory=list)
    commits: tuple[str, str] = (UNKNOWN, UNKNOWN)
    ideas: list[tuple[Idea, str]] = field(default_factory=list)

    @classmethod
    def of(cls, checkpoint: dict[str, Any], path: Path, module: LanguageModule) -> Facts:
        """From a checkpoint that was read from `path`, and the folder of its run."""
        run, step = RunFolder.of(path.absolute()), checkpoint.get(STEP)
        records, config = (run.records(), run.config()) if run else ([], {})
        metrics = _metrics(records, step) or _monitored(checkpoint)
        data = next((one.splits or [] for one in reversed(events(records, Data))), [])
        state = tokenizer_state(checkpoint)
        tokenizer = f"`{UNKNOWN if state is None else state['tokenizer']['name']}`"
        commits = (Checkpoint.of(checkpoint).commit, commit())
        return cls(path, type(module).__name__, step, tokenizer, metrics, config, data, commits, _of_ideas(module))


def _metrics(records: Sequence[Record], step: int | None) -> dict[str, float]:
    """The numbers of the validation at the checkpoint's step."""
    at_step = [one.values for one in numbers(records) if one.step == step and "val/ce" in one.values]
    return {name: x for name in MEASURES if at_step and (x := at_step[-1].get(name)) is not None}


def _monitored(checkpoint: dict[str, Any]) -> dict[str, float]:
    """What the callback that wrote the checkpoint watched."""
    watched = watched_scores(checkpoint)
    return {name: float(score) for name, score in watched.items() if name in MEASURES and score is not None}


def _of_ideas(module: nn.Module) -> list[tuple[Idea, str]]:
    """What the model holds of each idea, in one line."""
    found = [(idea, load(idea.card)(module)) for idea in here() if idea.card]
    return [(idea, line) for idea, line in found if line]


def model_card(facts: Facts, *, name: str, model: PreTrainedModel, difference: float) -> str:
    """The text of README.md."""
    front = yaml.safe_dump(_front_matter(facts, name, model), sort_keys=False, allow_unicode=True)
    sections = [f"# {name}", _what(facts, model), _how(facts, model), _data(facts), _metrics_table(facts)]
    sections += [_limits(facts, model), _training(facts, difference)]
    return f"---\n{front}---\n\n" + "\n\n".join(sections) + "\n"


def _own_code(model: PreTrainedModel) -> bool:
    return model.config.model_type == "lightning_app"


def _front_matter(facts: Facts, name: str, model: PreTrainedModel) -> dict[str, Any]:
    tags = ["lightning_app", facts.module, *(["custom_code"] if _own_code(model) else [])]
    front: dict[str, Any] = {
        "license": facts.config.get("licence") or UNKNOWN,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": tags,
    }
    if facts.metrics:
        values = [{"type": k, "name": MEASURES[k][0], "value": v} for k, v in facts.metrics.items()]
        dataset = {"name": _path_of(facts, "val"), "type": "text"}
        task = {"type": "text-generation"}
        front["model-index"] = [{"name": name, "results": [{"task": task, "dataset": dataset, "metrics": values}]}]
    return front


def _what(facts: Facts, model: PreTrainedModel) -> str:
    config = model.config
    sizes = {
        "parameters": f"{sum(p.numel() for p in model.parameters()):,}",
        "architecture": config.model_type + (" (its code lies in this directory)" if _own_code(model) else ""),
        "trained as": f"`{facts.module}` of lightning_app",
        "layers": config.num_hidden_layers,
        "width": config.hidden_size,
        "ids": f"{config.vocab_size:,}",
        "positions": getattr(config, "max_position_embeddings", None) or "no limit",
        "tokenizer": facts.tokenizer,
    }
    sizes |= {idea.name: line for idea, line in facts.ideas}
    return "A language model.\n\n" + _table(("", ""), sizes.items())


def _how(facts: Facts, model: PreTrainedModel) -> str:
    trust = ", trust_remote_code=True" if _own_code(model) else ""
    needs = ["torch", "transformers", *(name for idea, _ in facts.ideas for name in idea.packages)]
    return f"""## Use

Needs {", ".join(f"`{package}`" for package in needs)}.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("."{trust})
model = AutoModelForCausalLM.from_pretrained("."{trust})
ids = tokenizer("The", return_tensors="pt")
print(tokenizer.decode(model.generate(**ids, max_new_tokens=40)[0]))
```"""


def _data(facts: Facts) -> str:
    rows = [
        (one.split, _path_of(facts, one.split), *map(_count, (one.documents, one.bytes, one.tokens)))
        for one in facts.texts
    ]
    if not rows:
        known = ", ".join(f"{split}: {_path_of(facts, split)}" for split in ("train", "val"))
        return f"## Data\n\nHow much text it was is unknown. From the run's config: {known}."
    return "## Data\n\n" + _table(("split", "source", "documents", "bytes", "tokens"), rows)


def _count(n: int | None) -> str:
    return UNKNOWN if n is None else f"{n:,}"


def _path_of(facts: Facts, split: str | None) -> str:
    options = (facts.config.get("data") or {}).get(split)
    several = options if isinstance(options, list) else [options]
    paths = [one.get("path") if isinstance(one, Mapping) else one for one in several]
    return ", ".join(str(path) for path in paths if path) or UNKNOWN


def _metrics_table(facts: Facts) -> str:
    if not facts.metrics:
        return "## Metrics\n\nUnknown: neither the checkpoint nor a log beside it has any."
    rows = [(MEASURES[name][0], f"{value:.4f}", MEASURES[name][1]) for name, value in facts.metrics.items()]
    of = f"On the validation text, at step {facts.step}, as training measured them."
    return f"## Metrics\n\n{of}\n\n" + _table(("metric", "value", "unit"), rows)


def _limits(facts: Facts, model: PreTrainedModel) -> str:
    """What it is for, what it is not for, and under which licence; nothing that only its author could know."""
    words = sum(one.words or 0 for one in facts.texts if one.split == "train")
    positions = getattr(model.config, "max_position_embeddings", None)
    limits = [
        f"It has learned from {words:,} words." if words else "How many words it has learned from is unknown.",
        *([f"It sees at most {positions:,} tokens at once."] if positions else []),
        "It was measured on the validation text above alone: not for facts, nor for bias, nor for safety.",
        "It may repeat its training text word for word.",
    ]
    licence = facts.config.get("licence")
    said = f"`{licence}`, as the run's config says." if licence else "Unknown: the run's config names none (`licence`)."
    return f"""## Intended use, limits, licence

To study how a language model of this size learns, and what its parts do.
It is not meant to inform anybody, nor to talk to the public.

{chr(10).join(f"- {limit}" for limit in limits)}

Licence: {said}"""


def _training(facts: Facts, difference: float) -> str:
    run = RunFolder.of(facts.checkpoint)
    known = f"python main.py fit --config {run.config_file}" if run else ""
    trained = known if facts.config else f"# {UNKNOWN}: no config beside"
    return f"""## Training and export

- optimizer steps: {UNKNOWN if facts.step is None else facts.step}
- seed: {facts.config.get("seed_everything", UNKNOWN)}
- commit of the code that trained: {facts.commits[0]}
- commit of the code that exported: {facts.commits[1]}
- logits of this directory and of the checkpoint, both in fp32, differ by at most {difference:.2g}

```bash
{trained}
python main.py export --ckpt_path {facts.checkpoint} --output DIR
```"""


def _table(head: tuple[str, ...], rows: Any) -> str:
    lines = [f"| {' | '.join(map(str, row))} |" for row in (head, ("---",) * len(head), *rows)]
    return "\n".join(lines)
