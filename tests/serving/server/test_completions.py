"""What the pieces of a job become on their way to a client."""

import asyncio

import pytest

from lightning_app.models.generation_options import GenerationOptions
from lightning_app.serving.server.completions import Answer
from lightning_app.serving.server.schema import ChatRequest, CompletionRequest

REQUESTS = {
    "chat": ChatRequest(model="tiny", messages=[{"role": "user", "content": "x"}]),
    "completion": CompletionRequest(model="tiny"),
}
SPOKEN = [("", None), (" ", None), ("\n yes", None), (" no", None), (" ", "stop")]


@pytest.mark.parametrize(("kind", "expected"), [("chat", "yes no "), ("completion", " \n yes no ")])
def test_an_answer_of_a_chat_begins_with_its_first_word(kind, expected):
    async def whole() -> dict:
        answer = Answer(kind, REQUESTS[kind], [[104]], GenerationOptions(5), stop=[])
        for text, reason in SPOKEN:
            answer.jobs[0].on_text(text, reason)
        return await answer.whole(engine=None)

    choice = asyncio.run(whole())["choices"][0]
    assert (choice["message"]["content"] if kind == "chat" else choice["text"]) == expected
