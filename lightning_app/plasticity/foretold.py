"""How often a plan does each part of its work within so many steps: what `fit --dry_run` multiplies by its cost."""
# Pure mathematics: see tests/test_layering.py.

from __future__ import annotations

from dataclasses import replace

from lightning_app.plasticity.phases import Phase, Plan, Position, next_move

EVALUATED: tuple[Phase, ...] = ("warmup", "finetuning")  # every `eval_freq` steps


def entered(plan: Plan, at: Position, *, steps: int, eval_freq: int) -> tuple[dict[Phase, int], int]:
    """How often each phase begins within `steps` optimizer steps behind `at`, and evaluations while phases last.

    A warm-up lasts for as long as it may, and each cycle recovers.
    """
    phases: dict[Phase, int] = {}
    evaluations = 0
    for _ in range(steps):
        at = replace(at, steps=at.steps + 1)
        evaluations += at.phase in EVALUATED and at.steps % eval_freq == 0
        while (move := next_move(plan, at)) is not None:
            at = move.to
            phases[at.phase] = phases.get(at.phase, 0) + 1
        if at.phase == "done":
            break
    return phases, evaluations
