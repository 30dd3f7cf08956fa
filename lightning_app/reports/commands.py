"""`python main.py report` and `compare`: pages of runs, from their folders; no checkpoint is read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

PAGE = "compare.html"


def report(
    run_dir: Annotated[Path, Parameter(name="RUN_DIR")], /, *, single_file: bool = False, output: Path | None = None
) -> None:
    """Draw the page of a run again from its log, and say where it is.

    Args:
        run_dir: the folder of a run: the one with log.jsonl.
        single_file: plotly's script (5 MB) is part of the page, not beside it.
        output: where the page is written; dashboard.html in RUN_DIR without it.
    """
    from lightning_app.reports.report import report as draw
    from lightning_app.reports.report import say_damage
    from lightning_app.reports.run_folder import RunFolder

    folder = RunFolder(run_dir)
    page = draw(folder, output=output, single_file=single_file)
    say_damage(folder)
    print(f"page: {page}")


def compare(
    run_dir: Annotated[list[Path], Parameter(name="RUN_DIR")],
    /,
    *,
    output: Path = Path(PAGE),
    single_file: bool = False,
    axis: Literal["steps", "tokens", "time"] | None = None,
    labels: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    baseline: str | None = None,
    csv: Path | None = None,
    latex: Path | None = None,
    figure: Path | None = None,
) -> None:
    """Draw one page over several runs, print the table and where the page is.

    Args:
        run_dir: the folder of a run, or one that holds runs: all of them then.
        output: where the page is written.
        single_file: plotly's script (5 MB) is part of the page, not beside it.
        axis: of the curves at first; steps without it. The page has a switch.
        labels: what each run is called.
        baseline: the run that others are compared with at first; the first one without it. The page has a switch.
        csv: the first table is written there, too, as CSV.
        latex: the same as a LaTeX tabular.
        figure: a figure of the curves, as .pdf, .svg or .png.
    """
    from lightning_app.reports.compare.command import compare as draw

    page, table = draw(
        run_dir,
        output=output,
        single_file=single_file,
        axis=axis,
        labels=labels,
        baseline=baseline,
        csv=csv,
        latex=latex,
        figure=figure,
    )
    print(f"{table}\n\npage: {page}")
