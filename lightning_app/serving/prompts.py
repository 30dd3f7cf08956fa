"""Files of prompts, continued in batches."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning_app.data.tokenizers import Tokenizer
from lightning_app.errors import InputError
from lightning_app.io import write_atomic, writing_into
from lightning_app.models.generation_options import GenerationOptions
from lightning_app.serving.batching import Batcher, Job
from lightning_app.serving.before import Before
from lightning_app.training.module import LanguageModule
from lightning_app.utf8 import decode

# What a row may say beside its prompt and `stop`: options of its own.
OPTIONS = ("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
ANSWER = ("text", "finish_reason", "tokens", "found_in")  # what an answer adds to its row
Row = dict[str, Any]


def read_prompts(path: Path) -> list[Row]:
    """The prompts of a file: each line of a text, or the objects with a `prompt` of a `.jsonl` file.

    Raises:
        InputError: no such file, none in it, or a line that is not such an object.
    """
    try:
        content = decode(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path} is not a readable file of prompts: {error}") from None
    lines = content.replace("\r\n", "\n").split("\n")  # splitlines knows further ends, which JSON may hold
    if path.suffix.lower() != ".jsonl":
        rows = [{"prompt": line} for line in lines if line.strip()]
    else:
        rows = [_row(line, f"{path}, line {i + 1}") for i, line in enumerate(lines) if line.strip()]
    if not rows:
        raise InputError(f"{path} holds no prompt: give one in each line")
    return rows


def _row(line: str, where: str) -> Row:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is no JSON: {error}") from None
    if not (isinstance(row, dict) and isinstance(row.get("prompt"), str)):
        raise InputError(f'{where} must be an object such as {{"prompt": "..."}}, not {line[:40]!r}')
    if taken := [name for name in ANSWER if name in row]:
        raise InputError(f"{where} has {taken[0]!r}, which the answer has, too, and would be lost: rename it")
    return row


def answers_as_completed(
    rows: Sequence[Row],
    module: LanguageModule,
    tokenizer: Tokenizer,
    options: GenerationOptions,
    *,
    stop: Sequence[str] = (),
    num_samples: int = 1,
    batch_size: int = 16,
) -> Iterator[tuple[int, Row]]:
    """Each row, `num_samples` times, with `text`, `finish_reason`, `tokens`, `seed`, and its number among all; with
    `found_in` where a memory has put texts of these documents before the prompt.

    Sample i draws with seed + i, each prompt with the same seeds: a text is that of `continue_text`.

    Raises:
        InputError: an option of a row that makes no sense; at once, before anything is drawn.
    """
    batcher = Batcher(module, tokenizer, batch_size=batch_size)
    each = [(row, _options(row, options, i), _stops(row, stop)) for row in rows for i in range(num_samples)]
    before = [Before.prompt(row["prompt"], module, tokenizer) for row in rows]
    results = [_Result() for _ in each]
    for i, ((row, own, stops), result) in enumerate(zip(each, results, strict=True)):
        prompt = before[i // num_samples].put(row["prompt"])
        batcher.waiting.append(Job(tokenizer.prompt(prompt), own, stops, result.add))

    def answers() -> Iterator[tuple[int, Row]]:
        left = set(range(len(each)))
        while left:
            batcher.admit()
            batcher.step()
            for i in sorted(i for i in left if results[i].finish_reason is not None):
                left.remove(i)
                said = before[i // num_samples].said
                yield i, {**each[i][0], **vars(results[i]), **said, "seed": each[i][1].seed}

    return answers()


def in_order(numbered: Iterable[tuple[int, Row]]) -> Iterator[Row]:
    """By their numbers, each as soon as those before it are there."""
    waiting: dict[int, Row] = {}
    following = 0
    for number, row in numbered:
        waiting[number] = row
        while following in waiting:
            yield waiting.pop(following)
            following += 1


def write_answers(answers: Iterator[tuple[int, Row]], path: Path) -> None:
    """A line each as they end, so that it is there whatever stops the rest; in the order of the file at the end."""
    written: list[tuple[int, str]] = []
    # half of a surrogate pair is written as JSON's escape
    with writing_into(path.parent, needed=2**20), path.open("w", encoding="utf-8", errors="backslashreplace") as file:
        in_place = not path.is_file()  # a pipe cannot be written anew
        for number, answer in enumerate(in_order(answers)) if in_place else answers:
            line = json.dumps(answer, ensure_ascii=False) + "\n"
            file.write(line)
            file.flush()
            written.append((number, line))
    if written != sorted(written):
        write_atomic(path.resolve(), "".join(line for _, line in sorted(written)).encode("utf-8", "backslashreplace"))


def _options(row: Row, options: GenerationOptions, sample: int) -> GenerationOptions:
    given = {name: row[name] for name in OPTIONS if name in row}
    if given.get("top_k") == 0:  # as on the command line: all tokens
        given["top_k"] = None
    try:
        own = replace(options, **given)
        return replace(own, seed=own.seed + sample)
    except TypeError as error:
        raise InputError(f"the options {given} of the prompt {row['prompt'][:40]!r} are not numbers: {error}") from None


def _stops(row: Row, stop: Sequence[str]) -> Sequence[str]:
    """The stops of the row, a text or several, instead of those of all."""
    if row.get("stop") is None:
        return stop
    own = [row["stop"]] if isinstance(row["stop"], str) else row["stop"]
    if not isinstance(own, list) or not all(isinstance(one, str) and one for one in own):
        raise InputError(
            f"stop of the prompt {row['prompt'][:40]!r} is {row['stop']!r}: give a text, or a list of them"
        )
    return own


class _Result:
    """Collects what a job says."""

    def __init__(self) -> None:
        self.text = ""
        self.finish_reason: str | None = None
        self.tokens = 0

    def add(self, piece: str, finish_reason: str | None) -> None:
        self.text += piece
        self.tokens += 1
        self.finish_reason = finish_reason
