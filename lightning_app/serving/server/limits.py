"""What requests may ask for."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_app.errors import InputError


@dataclass(frozen=True)
class Limits:
    """What one request, and all together, may ask for.

    Attributes:
        max_prompt_tokens: of each prompt. A model sees the end of a prompt beyond its context.
        max_new_tokens: of each answer.
        max_body: bytes of a request.
        max_requests: texts that wait or run.
        batch_size: texts that are continued at once.
    """

    max_prompt_tokens: int = 4096
    max_new_tokens: int = 1024
    max_body: int = 2**20
    max_requests: int = 256
    batch_size: int = 32

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise InputError(f"{name} is {value}; it must be at least 1")
