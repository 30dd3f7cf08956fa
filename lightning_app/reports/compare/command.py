"""`python main.py compare RUN_DIR...`: one page and one table over several runs, from their folders; no checkpoint is
read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning_app.errors import InputError
from lightning_app.reports.compare.charts import missing_on
from lightning_app.reports.compare.files import write_csv, write_figure, write_latex
from lightning_app.reports.compare.page import FILE_NAME, write_comparison
from lightning_app.reports.compare.tables import format_comparison
from lightning_app.reports.groups import baseline_of, groups_of, living, ranked
from lightning_app.reports.report import say_damage
from lightning_app.reports.run_folder import RunFolder, runs_below
from lightning_app.reports.runs import AXES, Run


def compare(
    folders: Sequence[Path],
    *,
    output: Path = Path(FILE_NAME),
    single_file: bool = False,
    axis: str | None = None,
    labels: Sequence[str] | None = None,
    baseline: str | None = None,
    csv: Path | None = None,
    latex: Path | None = None,
    figure: Path | None = None,
) -> tuple[Path, str]:
    """Write the page and return where it is, and the table.

    Args:
        folders: of runs, or of what holds runs: all below it, in the order of their numbers.
        output: the page.
        single_file: plotly's script is part of the page, not beside it.
        axis: of the curves at first: "steps", "tokens" or "time"; None: steps.
        labels: one for each run.
        baseline: label of the run that others are compared with; None: the first.
        csv, latex, figure: further files, where one is given; see `files`.

    Raises:
        InputError: a folder without runs or one that is given twice, a log that cannot be read, labels that do not
            fit, an axis that no log has, or a page that cannot be written.
    """
    runs = read_runs(folders, labels)
    _check_axis(runs, axis)
    if output.is_dir():
        raise InputError(f"output is {output}, a folder: give the name of the page in it, such as {output / FILE_NAME}")
    table = format_comparison(runs, baseline)
    alive = living(runs)
    groups = ranked(groups_of(alive))
    for path, write in ((csv, write_csv), (latex, write_latex)):
        if path is not None:
            write(groups, baseline_of(groups, alive, baseline), path)
    if figure is not None:
        write_figure(runs, figure, axis=axis or AXES[0])
    page = write_comparison(runs, output, axis=axis or AXES[0], single_file=single_file, baseline=baseline)
    return page, table


def _check_axis(runs: Sequence[Run], axis: str | None) -> None:
    gone = {one: missing_on(runs, one) for one in AXES}
    if axis is not None and len(gone[axis]) == len(runs):
        have = [one for one in AXES if len(gone[one]) < len(runs)]
        instead = f"choose one of {', '.join(have)}" if have else "they hold no numbers at all"
        raise InputError(f"axis is {axis}, but no log of these runs has it: {instead}")


def read_runs(folders: Sequence[Path], labels: Sequence[str] | None = None) -> list[Run]:
    """The runs that the folders are or hold. Raises as `compare` does."""
    found = [run for given in folders for run in _runs_in(given)]
    _check_once(found)
    names = _named(found) if labels is None else _checked(labels, found)
    return [_read(run, name) for run, name in zip(found, names, strict=True)]


def _runs_in(given: Path) -> list[RunFolder]:
    """The folder itself where it has a log; else those below it whose log says something."""
    own = RunFolder(given)
    if own.log_file.is_file() or not given.is_dir():
        return [own]
    if below := runs_below(given):
        return below
    name = own.log_file.name
    raise InputError(f"{given} has no {name}, and no folder below it has one: give the folder of a run, or of runs")


def _check_once(runs: Sequence[RunFolder]) -> None:
    seen: dict[Path, Path] = {}
    for folder in (run.path for run in runs):
        if (first := seen.setdefault(folder.resolve(), folder)) is not folder:
            raise InputError(f"{folder} is given twice ({first} is the same folder): leave one of them out")


def _named(runs: Sequence[RunFolder]) -> list[str]:
    """The shortest of the run's name, name and version, and its path, by which all can be told apart."""
    for found in ([run.name for run in runs], [run.title for run in runs]):
        if len(set(found)) == len(found):
            return found
    return [str(run.path) for run in runs]


def _checked(labels: Sequence[str], runs: Sequence[RunFolder]) -> list[str]:
    if len(labels) != len(runs):
        lie = ", ".join(str(run.path) for run in runs)
        raise InputError(f"there are {len(labels)} labels for {len(runs)} runs ({lie}): give one for each")
    if len({label.strip() for label in labels} - {""}) != len(labels):
        raise InputError(f"labels are {', '.join(map(repr, labels))}: give each run one of its own")
    return list(labels)


def _read(folder: RunFolder, label: str) -> Run:
    records, (samples, source) = folder.known_records(), folder.samples()
    say_damage(folder)
    try:
        config = folder.config()
    except InputError as error:
        raise InputError(f"{error}; a run without it can be compared, so move it") from None
    return Run(label, str(folder.path), records=records, config=config, samples=samples, samples_from=source)
