"""`python main.py generate`, `chat` and `serve`: their options, before anything heavy is imported."""

from __future__ import annotations

from pathlib import Path

from lightning_app.errors import InputError
from lightning_app.serving.addresses import check_key
from lightning_app.serving.server.limits import Limits
from lightning_app.training.command_options import ModelOptions, SamplingOptions, Text, Texts

LIMITS, USUAL = Limits(), SamplingOptions()


def generate(
    *,
    model: ModelOptions,
    sampling: SamplingOptions = USUAL,
    prompt: Text = "",
    prompts: Path | None = None,
    output: Path | None = None,
    batch_size: int = 16,
    num_samples: int = 1,
) -> None:
    """Continue a prompt, streaming to the terminal, or a file of prompts, in batches.

    Args:
        prompt: the text to continue; empty: a new document.
        prompts: a file of prompts instead: one in each line, or .jsonl with `prompt` and options of its own.
        output: where the answers to a file of prompts go, as .jsonl; the terminal without it.
        batch_size: prompts of a file that are continued at once.
        num_samples: of each prompt; sample i draws with SEED + i.
    """
    if num_samples < 1 or batch_size < 1:
        raise InputError(f"num_samples is {num_samples} and batch_size {batch_size}: at least 1 of each")
    if prompts is None and output is not None:
        raise InputError(f"output is {output}, but there are no prompts: give a file of them (--prompts)")
    if prompts is not None and prompt:
        raise InputError(f"prompt is {prompt!r} and prompts {prompts}: give one of them")
    from lightning_app.serving.generate import continue_file, continue_prompt

    if prompts is None:
        continue_prompt(prompt, model, sampling, num_samples=num_samples)
    else:
        continue_file(prompts, model, sampling, output=output, num_samples=num_samples, batch_size=batch_size)


def chat(
    *,
    model: ModelOptions,
    sampling: SamplingOptions = USUAL,
    system: Text = "",
    chat_template: Path | None = None,
) -> None:
    """Talk with a trained model in the terminal. What begins with a slash is a command: /help lists them.

    Args:
        system: what stands before the conversation.
        chat_template: a file in Jinja; without it that of the model's training, or of its tokenizer.
    """
    from lightning_app.serving.chat import talk

    talk(model, sampling, system=system, chat_template=chat_template)


def serve(
    *,
    model: ModelOptions,
    host: str = "127.0.0.1",
    port: int = 8000,
    name: str | None = None,
    chat_template: Path | None = None,
    chat_stop: Texts | None = None,
    max_prompt_tokens: int = LIMITS.max_prompt_tokens,
    max_new_tokens: int = LIMITS.max_new_tokens,
    max_body: int = LIMITS.max_body,
    max_requests: int = LIMITS.max_requests,
    batch_size: int = LIMITS.batch_size,
) -> None:
    """Put a trained model behind OpenAI's HTTP interface, with a page to try it on.

    Another address than this machine's needs a key, in the environment's variable LIGHTNING_APP_API_KEY.

    Args:
        host: address that is listened on.
        port: of it; 0: any that is free.
        name: of the model, for clients; that of its run without it.
        chat_template: a file in Jinja; without it that of the model's training, or of its tokenizer.
        chat_stop: ends an answer of a chat; may be given several times.
        max_prompt_tokens: of each prompt.
        max_new_tokens: of each answer.
        max_body: bytes of a request.
        max_requests: texts that wait or run.
        batch_size: texts that are continued at once.
    """
    limits = Limits(max_prompt_tokens, max_new_tokens, max_body, max_requests, batch_size)
    key = check_key(host)
    from lightning_app.serving.serve import serve_model

    serve_model(
        model, limits, host=host, port=port, api_key=key, name=name, chat_template=chat_template, stop=chat_stop
    )
