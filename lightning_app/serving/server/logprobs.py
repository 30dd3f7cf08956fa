"""How likely a model finds the tokens of a text, in the form of OpenAI's completions.

Shapes: T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lightning_app.data.tokenizers import Tokenizer
from lightning_app.training.module import LanguageModule


@torch.inference_mode()
def logprobs(
    module: LanguageModule, tokenizer: Tokenizer, ids: Sequence[int], *, first: int, most: int
) -> dict[str, Any]:
    """Of the tokens from `first` on, given all before them: natural logarithms, without temperature or filters.

    Args:
        ids: at most one more than the model's context, as nothing follows the last.
        most: alternatives that are listed beside each token; the likeliest.

    Returns: `tokens`, `token_logprobs`, `top_logprobs` (both None of a text's very first token), `text_offset`
    (characters, from the first token that is listed on).
    """
    given, shown = torch.tensor([ids[:-1]], device=module.device), [_shown(tokenizer, i) for i in ids]
    each: list[float | None] = [None]
    top: list[dict[str, float] | None] = [None]
    if len(ids) > 1:
        logs_TV = module.backbone(given)[0, :, : tokenizer.vocab_size].float().log_softmax(-1)
        each += logs_TV.gather(1, torch.tensor(ids[1:], device=module.device)[:, None])[:, 0].tolist()
        best = logs_TV.topk(min(most, tokenizer.vocab_size))
        for values, tokens, i in zip(best.values.tolist(), best.indices.tolist(), range(1, len(ids)), strict=True):
            alternatives = {_shown(tokenizer, token): value for token, value in zip(tokens, values, strict=True)}
            top.append(alternatives | {shown[i]: each[i]})
    ends = [
        len(tokenizer.decode(ids[first : i + 1], continues=tokenizer.goes_on(ids[:first])))
        for i in range(first, len(ids))
    ]
    return {
        "tokens": shown[first:],
        "token_logprobs": each[first:],
        "top_logprobs": top[first:] if most else None,
        "text_offset": [0, *ends[:-1]] if ends else [],
    }


def _shown(tokenizer: Tokenizer, token: int) -> str:
    r"""Its text; "bytes:\xe2" for a piece of a character, which would look like other pieces."""
    try:
        return tokenizer.decode_bytes([token], continues=True).decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in tokenizer.decode_bytes([token], continues=True))
