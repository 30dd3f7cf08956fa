"""What clients of OpenAI's HTTP interface send: the fields that are understood, and nothing else.

Source: the OpenAI API reference (completions, chat, embeddings). `top_k`, `min_p` and `repetition_penalty` are not
OpenAI's; other servers of open models have them under these names (clients send them as `extra_body`).
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from lightning_app.data.chats import arguments_of
from lightning_app.models.generation_options import SAMPLING, GenerationOptions

MOST_CHOICES, MOST_STOPS = 16, 16
Some = Field(min_length=1)
Ids: TypeAlias = Annotated[list[int], Some]
Several = Field(min_length=1, max_length=2048)  # as many as OpenAI takes
Texts: TypeAlias = str | Ids | Annotated[list[str], Several] | Annotated[list[Ids], Several]
Nothing: TypeAlias = Annotated[list[Any], Field(max_length=0)] | None
Zero: TypeAlias = Literal[0] | None  # a feature that is not offered may be named, as long as it is off


class Strict(BaseModel):
    """Refuses unknown fields: an option without effect would be a silent mistake."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, fields: Any) -> Any:
        """Clients write null for what they leave to the server."""
        return {k: v for k, v in fields.items() if v is not None} if isinstance(fields, dict) else fields


class StreamOptions(Strict):
    include_usage: bool = False


class Sampling(Strict):
    """The fields that completions and chats share."""

    model: str
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] = 1
    seed: int | None = None
    stop: Annotated[str, Some] | Annotated[list[Annotated[str, Some]], Field(max_length=MOST_STOPS)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    presence_penalty: Zero = None
    frequency_penalty: Zero = None
    logit_bias: dict[str, float] | None = Field(default=None, max_length=0)
    user: str | None = None  # said, and of no use here
    metadata: dict[str, str] | None = None
    store: Literal[False] | None = None

    def stops(self) -> list[str]:
        """As a list."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    def options(self, max_new_tokens: int, own: Mapping[str, Any] | None = None) -> GenerationOptions:
        """Without a seed in the request each is drawn anew.

        Args:
            own: the model's own sampling, for what the request leaves open.

        Raises:
            InputError: a value out of its range.
        """
        asked = {name: getattr(self, name) for name in SAMPLING}
        asked |= {name: value for name, value in (own or {}).items() if name not in self.model_fields_set}
        asked["top_k"] = asked["top_k"] or None
        seed = secrets.randbits(31) if self.seed is None else self.seed
        return GenerationOptions(max_new_tokens=max_new_tokens, seed=seed, **asked)


class CompletionRequest(Sampling):
    """POST /v1/completions."""

    prompt: Texts = ""
    max_tokens: Annotated[int, Field(ge=0)] = 16  # 0 with echo: the prompt alone, to score it
    echo: bool = False
    best_of: Literal[1] | None = None
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    suffix: Literal[""] | None = None

    @field_validator("logprobs", mode="before")
    @classmethod
    def _off(cls, value: Any) -> Any:
        """As chats say it; 0 asks for the drawn tokens' own."""
        return None if value is False else value


class ChatMessage(BaseModel):
    """A turn. Clients send further fields (refusal, audio, ...), which a text model has no use for."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    name: str | None = None

    @model_validator(mode="after")
    def _says_something(self) -> ChatMessage:
        if self.content is None and not self.tool_calls:
            raise ValueError(f"a message of the role {self.role} has no content")
        return self

    def plain(self) -> dict[str, Any]:
        """As a chat template takes it."""
        said = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content or ())
        of_tools = {name: getattr(self, name) for name in ("tool_call_id", "name") if self.role == "tool"}
        if self.tool_calls:
            of_tools["tool_calls"] = [call.model_dump() for call in self.tool_calls]
        known = {name: value for name, value in of_tools.items() if value is not None}
        return {"role": "system" if self.role == "developer" else self.role, "content": said, **known}


class Called(BaseModel):
    name: str
    arguments: dict[str, Any]

    @field_validator("arguments", mode="before")
    @classmethod
    def _parsed(cls, value: Any) -> dict[str, Any]:
        return arguments_of(value)


class ToolCall(BaseModel):
    """What the assistant has asked a function for."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: Called


class Described(BaseModel):
    model_config = ConfigDict(extra="allow")
    name: str


class Tool(Strict):
    """A function that the assistant may call."""

    type: Literal["function"]
    function: Described


class TextPart(Strict):
    """One part of a message; pictures and sounds are refused."""

    type: Literal["text"]
    text: str


class ChatRequest(Sampling):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Some]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: Literal[False] | None = None
    top_logprobs: Zero = None
    response_format: TextFormat | None = None
    modalities: list[Literal["text"]] | None = None
    tools: list[Tool] | None = None
    functions: Nothing = None
    tool_choice: Literal["none", "auto"] | None = None
    function_call: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None

    def plain(self) -> list[dict[str, Any]]:
        """The messages as a chat template takes them."""
        return [message.plain() for message in self.messages]

    @property
    def most(self) -> int | None:
        """Tokens of an answer; None: as many as the server gives."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def offered(self) -> list[dict[str, Any]] | None:
        """The tools as a chat template takes them; None where there are none, or none is to be called."""
        given = None if self.tool_choice == "none" else self.tools
        return [tool.model_dump(exclude_none=True) for tool in given] if given else None


class TextFormat(Strict):
    type: Literal["text"]


class EmbeddingRequest(Strict):
    """POST /v1/embeddings."""

    model: str
    input: Texts
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: None = None
    user: str | None = None


class ExplainRequest(Strict):
    """POST /explain."""

    text: str


def each_of(texts: Texts) -> list[str | list[int]]:
    """The prompts of a request, one or several."""
    several = isinstance(texts, list) and not isinstance(texts[0], int)
    return texts if several else [texts]  # type: ignore[return-value,list-item]


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """The counts of an answer."""
    total = prompt_tokens + completion_tokens
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": total}


def error(
    message: str, *, type: str = "invalid_request_error", param: str | None = None, code: Any = None
) -> dict[str, Any]:
    """The body of an answer that is an error."""
    return {"error": {"message": message, "type": type, "param": param, "code": code}}
