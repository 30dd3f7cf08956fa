"""A model, and how it may be asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lightning.pytorch.utilities.model_summary import get_human_readable_count

from lightning_app.data.chat_template import ChatTemplate
from lightning_app.data.chat_tokens import prompt_ids
from lightning_app.data.tokenizers import Tokenizer
from lightning_app.plugins import here, load
from lightning_app.serving.before import NOTHING, Before
from lightning_app.serving.server.completions import Answer, Kind
from lightning_app.serving.server.engine import Engine
from lightning_app.serving.server.limits import Limits
from lightning_app.serving.server.schema import ChatRequest, CompletionRequest, Sampling, Texts, each_of, error
from lightning_app.training.module import LanguageModule

EXAMPLES = ("The", "Once upon a time", "In the beginning")  # prompts


class RefusedError(Exception):
    """A request that is answered by an error.

    Attributes:
        status: of HTTP.
        body: see `openai_schema.error`.
    """

    def __init__(self, status: int, message: str, **details: Any):
        super().__init__(message)
        self.status, self.body = status, error(message, **details)


@dataclass(frozen=True)
class Service:
    """A model, and how it may be asked.

    Attributes:
        name: of the model, for clients.
        created: when it was trained, in seconds since 1970.
        prompts: examples, of the run's own where it has some.
    """

    module: LanguageModule
    tokenizer: Tokenizer
    engine: Engine
    name: str
    created: int
    limits: Limits = field(default_factory=Limits)
    template: ChatTemplate = field(default_factory=ChatTemplate)
    prompts: Sequence[str] = EXAMPLES

    def about(self) -> dict[str, Any]:
        """What the model is, in plain types."""
        longest = self.module.backbone.core.max_length
        size = get_human_readable_count(sum(weight.numel() for weight in self.module.parameters())).strip()
        facts = [f"{size} parameters", f"sees {longest:,} tokens"] if longest else [f"{size} parameters"]
        held = [load(idea.card)(self.module).partition(";")[0] for idea in here() if idea.card]
        facts += [f"a vocabulary of {self.tokenizer.vocab_size:,}", *(one for one in held if one[:2] not in ("", "0 "))]
        return {
            "name": self.name,
            "kind": type(self.module).__name__,
            "created": self.created,
            "facts": facts,
            "prompts": list(self.prompts),
        }

    def check_model(self, name: str) -> None:
        """Refuse another model's name."""
        if name != self.name:
            message = f"there is no model {name!r} here, only {self.name!r}"
            raise RefusedError(404, message, param="model", code="model_not_found")

    def ids(self, text: str | Sequence[int], param: str) -> list[int]:
        """The ids of one prompt, at least one."""
        ids = self.tokenizer.prompt(text) if isinstance(text, str) else list(text)
        if wrong := [i for i in ids if not 0 <= i < self.tokenizer.vocab_size]:
            message = f"{wrong[0]} is not a token: ids lie from 0 up, below {self.tokenizer.vocab_size}"
            raise RefusedError(400, message, param=param)
        if len(ids) > (most := self.limits.max_prompt_tokens):
            message = f"the prompt has {len(ids):,} tokens, and may have at most {most:,}"
            raise RefusedError(400, message, param=param, code="context_length_exceeded")
        return ids or [self.tokenizer.eot]

    def all_ids(self, texts: Texts, param: str) -> list[list[int]]:
        """The ids of each prompt of a request."""
        return [self.ids(text, param) for text in each_of(texts)]

    def check_count(self, texts: int, param: str) -> None:
        """Refuse a request for more texts than may be under way: it would have to wait for ever."""
        if texts > (most := self.limits.max_requests):
            raise RefusedError(400, f"{texts} texts are asked for, and at most {most} may be at once", param=param)

    def found(self, request: CompletionRequest | ChatRequest) -> list[Before]:
        """What the memory puts before each prompt of a request; for the engine's thread. A prompt that is to be scored
        or echoed stays as it is."""
        if isinstance(request, ChatRequest):
            return [Before.chat(request.plain(), self.module, self.tokenizer)]
        prompts = each_of(request.prompt)
        if request.echo or request.logprobs is not None:
            return [NOTHING] * len(prompts)
        texts = [one if isinstance(one, str) else self.tokenizer.decode(one) for one in prompts]
        return [Before.prompt(text, self.module, self.tokenizer) for text in texts]

    def _with(self, before: Before, prompt: str | Sequence[int], ids: list[int]) -> list[int]:
        """The ids of a prompt with what stands before it; those of the prompt alone were counted."""
        if not before.texts:
            return ids
        if isinstance(prompt, str):
            return self.tokenizer.prompt(before.put(prompt))
        return [*self.tokenizer.prompt(before.put("")), *ids]

    def completion(self, request: CompletionRequest, found: Sequence[Before] = ()) -> Answer:
        found = found or [NOTHING] * len(each_of(request.prompt))
        given = zip(found, each_of(request.prompt), self.all_ids(request.prompt, "prompt"), strict=True)
        prompts = [self._with(*one) for one in given]
        before = [self.tokenizer.decode(ids) for ids in prompts] if request.echo else []
        if request.max_tokens == 0 and not request.echo:
            raise RefusedError(400, "max_tokens is 0, which leaves nothing without echo: true", param="max_tokens")
        if request.logprobs is not None:
            self._check_logprobs(request, max(len(ids) for ids in prompts) + request.max_tokens)
        return self._answer("completion", request, prompts, request.max_tokens, request.stops(), before, found)

    def _check_logprobs(self, request: CompletionRequest, length: int) -> None:
        most = self.module.backbone.max_length
        if request.stream:
            raise RefusedError(400, "logprobs are not offered in a stream", param="logprobs")
        if not self.module.texts_share_batches:
            message = "logprobs are not offered for a model that takes one text at a time"
            raise RefusedError(400, message, param="logprobs")
        if most is not None and length > most + 1:
            message = (
                f"the prompt and max_tokens have {length:,} tokens; with logprobs they may have at most {most + 1:,}"
            )
            raise RefusedError(400, message, param="logprobs", code="context_length_exceeded")

    def chat(self, request: ChatRequest, found: Sequence[Before] = (NOTHING,)) -> Answer:
        if request.offered and "tools" not in self.template.text_for(request.offered):
            message = f"{self.template.name} has no place for tools, so the model would not see them; leave them out"
            raise RefusedError(400, message, param="tools")
        prompt = self.template.render(request.plain(), tools=request.offered)
        most = self.limits.max_new_tokens if request.most is None else request.most
        stop = [*request.stops(), *self.template.stop]
        ids = self.ids(prompt_ids(prompt, self.tokenizer), "messages")
        if found[0].texts:
            prompt = self.template.render(found[0].put_in(request.plain()), tools=request.offered)
            ids = prompt_ids(prompt, self.tokenizer)
        return self._answer("chat", request, [ids], most, stop, found=found)

    def _answer(
        self,
        kind: Kind,
        request: Sampling,
        prompts: list[list[int]],
        most: int,
        stop: list[str],
        before: Sequence[str] = (),
        found: Sequence[Before] = (),
    ) -> Answer:
        self.check_model(request.model)
        if most > self.limits.max_new_tokens:
            message = f"max_tokens is {most:,}, and may be at most {self.limits.max_new_tokens:,}"
            raise RefusedError(400, message, param="max_tokens")
        self.check_count(len(prompts) * request.n, "n")
        options = request.options(max(1, most), self.module.backbone.core.sampling)
        answer = Answer(kind, request, prompts, options, stop=stop, before=before, found=found)
        if most:
            self.engine.submit(*answer.jobs)
        else:
            answer.nothing()
        return answer
