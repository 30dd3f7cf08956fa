"""Does LoRA learn from 200 prompt/target pairs? `python -m experiments.pairs [--seeds 1 2] [--folder runs/pairs]`

The pairs are this project's own: what an option is, asked, and the sentence in the docstring of its class. No two
answers share five words in a row. Of 300 pairs, drawn by the seed, 200 are learned by configs/smollm2.yaml and 100 are
scored, before and after: nats per token of the answers' content, the end of text left out. A second fit learns the same
answers, each behind another one's question: what that gains is the manner of the answers and not what they say.
"""

from __future__ import annotations

import argparse
import ast
import json
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from experiments import plans, store
from experiments.arguments import called
from experiments.statistics import change
from lightning_app.cli import main as run
from lightning_app.data.datamodule import TextDataModule
from lightning_app.data.sources import Dataloader, Source
from lightning_app.io import write_atomic
from lightning_app.models.losses import IGNORE, token_nll
from lightning_app.training.checkpoint import load_module
from lightning_app.training.find_checkpoint import find_checkpoint

ROOT = Path(__file__).parent.parent
LEARNED, SCORED = 200, 100
SHORT, LONG = 20, 90  # characters of an answer
ALIKE = 5  # words in a row
NOTHING = "nothing"
RULES = plans.read("pairs")
BLOCK = 56  # tokens: the longest pair
SECTION = re.compile(r"^(?:Args|Attributes):\n((?:    .*\n?|\n)+)", re.MULTILINE)
ENTRY = re.compile(r"^    (\w+): (.*(?:\n     +.*)*)", re.MULTILINE)
FIT = [  # each pair once
    *("fit", "--config", str(ROOT / "configs/smollm2.yaml"), "--data.block_size", str(BLOCK)),
    *("--data.dataloader.batch_size", "2", "--trainer.max_steps", "100", "--trainer.limit_val_batches", "0"),
]


@dataclass(frozen=True)
class Pair:
    """A question, and its answer with the space before it."""

    prompt: str
    target: str


def described(source: Path) -> Iterator[Pair]:
    """What the docstrings of the classes in a folder say of each option or attribute."""
    for path in sorted(source.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                entries = "".join(SECTION.findall(ast.get_docstring(node) or ""))
                for name, text in ENTRY.findall(entries):
                    yield Pair(f"Question: In `{node.name}`, what is `{name}`?\nAnswer:", " " + " ".join(text.split()))


def distinct(pairs: Iterable[Pair]) -> list[Pair]:
    """Those of usual length whose answer shares no `ALIKE` words in a row with one before, nor a question."""
    kept, seen = [], set[tuple[str, ...]]()
    for pair in pairs:
        words = re.findall(r"\w+", pair.target.lower())
        runs = {tuple(words[i : i + ALIKE]) for i in range(max(1, len(words) - ALIKE + 1))} | {(pair.prompt,)}
        if SHORT <= len(pair.target) <= LONG and not runs & seen:
            seen |= runs
            kept.append(pair)
    return kept


def split(pairs: Sequence[Pair], seed: int) -> tuple[list[Pair], list[Pair]]:
    """Those that are learned and those that are scored."""
    drawn = random.Random(seed).sample(pairs, LEARNED + SCORED)
    return drawn[:LEARNED], drawn[LEARNED:]


def moved(pairs: Sequence[Pair]) -> list[Pair]:
    """Each question with the answer to the next one."""
    return [Pair(pair.prompt, after.target) for pair, after in zip(pairs, [*pairs[1:], pairs[0]], strict=True)]


def write(path: Path, pairs: Sequence[Pair]) -> Path:
    write_atomic(path, "".join(json.dumps(asdict(pair)) + "\n" for pair in pairs).encode())
    return path


# Training and scoring


@torch.no_grad()
def score(checkpoint: str, path: Path, tokenizer: str, cache: Path) -> tuple[np.ndarray, np.ndarray]:
    """(n,) nats of the content of each answer, and the number of its tokens: all that is scored but the end of text."""
    module, _ = load_module(checkpoint)
    data = TextDataModule(
        test=Source(str(path)), tokenizer=tokenizer, block_size=BLOCK, cache_dir=str(cache), dataloader=Dataloader(4)
    )
    data.prepare_data()
    data.setup("test")
    nats, tokens = [], []
    for batch in data.test_dataloader():
        scored = batch.targets != IGNORE
        content = scored & (scored.flip(-1).cumsum(-1).flip(-1) > 1)  # the last of each row is the end of text
        nll = token_nll(module.outputs(batch).logits, batch.targets)
        nats.append((nll * content).sum(-1).double())
        tokens.append(content.sum(-1))
    return torch.cat(nats).numpy(), torch.cat(tokens).numpy()


def learn(pairs: Path, scored: Path, folder: Path, seed: int, options: Sequence[str]) -> str:
    """The checkpoint of a fit; one that was interrupted goes on."""
    goes_on = ["--ckpt_path", "last"] if list(folder.rglob("last.ckpt")) else []
    files = ["--data.train.path", str(pairs), "--data.val.path", str(scored)]
    run([*FIT, *options, *files, *goes_on, "--seed_everything", str(seed), "--runs_dir", str(folder)])
    return find_checkpoint("last", folder)


def compare(model: str, folder: Path, seed: int, options: Sequence[str]) -> None:
    """Learn and score what the results of a seed lack."""
    done = {record["learned"] for record in store.records(folder) if record["seed"] == seed}
    of_seed = folder / f"seed_{seed}"
    of_seed.mkdir(parents=True, exist_ok=True)
    learned, others = split(distinct(described(ROOT / "lightning_app")), seed)
    scored = write(of_seed / "scored.jsonl", others)
    for name, pairs in ((NOTHING, []), ("the pairs", learned), ("answers moved", moved(learned))):
        if name in done:
            continue
        arm, watch = of_seed / name.replace(" ", "_"), store.Stopwatch()
        with watch:
            checkpoint = learn(write(arm.with_suffix(".jsonl"), pairs), scored, arm, seed, options) if pairs else model
        nats, tokens = score(checkpoint, scored, model, folder / "tokens")
        record = {"seed": seed, "learned": name, "nats": nats.tolist(), "tokens": tokens.tolist()}
        store.append(folder, record | {"train_seconds": watch.seconds})


def table(results: Sequence[store.Record]) -> Iterator[str]:
    """Rows of Markdown."""
    yield "| seed | learned | nats per token | less than before, % [95 %] | CPU s of the fit |"
    yield "| --- | --- | --- | --- | --- |"
    before = {record["seed"]: np.array(record["nats"]) for record in results if record["learned"] == NOTHING}
    for record in sorted(results, key=lambda r: int(r["seed"])):
        nats = np.array(record["nats"])
        less = "" if record["learned"] == NOTHING else str(-change(nats[None], before[record["seed"]][None]))
        seconds = f"{record['train_seconds']:.0f}" if "train_seconds" in record else ""
        per_token = nats.sum() / sum(record["tokens"])
        yield f"| {record['seed']} | {record['learned']} | {per_token:.3f} | {less} | {seconds} |"


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.pairs", description=__doc__)
    parser.add_argument("--model", default="models/smollm2", help="a directory of Hugging Face's")
    parser.add_argument("--seeds", type=int, nargs="+", default=RULES.seeds)
    parser.add_argument("--folder", type=Path, default=Path("runs/pairs"))
    plans.add_allowance(parser)
    parser.add_argument("--quick", action="store_true", help="to see that it runs: its plan need not be committed")
    options, rest = parser.parse_known_args(words)  # the rest: of each fit
    model = ("--model.init_args.backbone.init_args.pretrained", options.model)
    plans.begin_as(options, options.folder, RULES)
    for seed in options.seeds:
        with store.counted(options.folder):
            compare(options.model, options.folder, seed, [*model, *rest])
    ran = [record["learned"] for record in store.records(options.folder)]
    print(plans.told(options.folder, RULES, ran) + "\n")
    print("\n".join(table(store.records(options.folder))))


if __name__ == "__main__":
    called(main)
