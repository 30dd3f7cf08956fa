"""What is proved after each change of a model, and within which limit. A proof that fails ends the run."""

from __future__ import annotations

TOLERANCE = 1e-5  # of the logits' largest absolute value, in float32
HALF_TOLERANCE = 0.03  # the same in 16 bits

_LOGITS = f"{TOLERANCE:g} of the largest logit, or of 1, in 32 bits; {HALF_TOLERANCE:g} in 16"
LIMITS = {  # by the beginning of a check's name
    "dead units whose weights change nothing": "all that are dead, each by exactly 0",
    "logits, ": _LOGITS,
    "dead heads": "as many as were chosen, none other",
    "dead neurons": "as many as were chosen, none other",
    "parameters removed": "as many as the dead units had",
    "parameters that the optimizer has": "those of the model, none other",
    "ranks with the same weights": "all ranks",
}


def limit_of(check: str) -> str | None:
    """Within which limit a check passes, in words; None for one that this version does not know."""
    return next((limit for begin, limit in LIMITS.items() if check.startswith(begin)), None)
