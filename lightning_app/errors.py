"""What the command line ends with, without a traceback."""

import errno
from collections.abc import Sequence


class InputError(ValueError):
    """A mistake in what the user gave (a file, an option, a checkpoint).

    Its message names the value that was found and the remedy. Everything else that is raised is a bug of ours
    and keeps its traceback.
    """


class DamagedError(InputError):
    """A checkpoint, or a file that it needs, is not as it was written. Where there is an older one it may be taken."""


class Interrupted(SystemExit):
    """A signal has ended a fit; its last.ckpt is written."""

    def __init__(self, signum: int, *, code: int):
        super().__init__(code)
        self.signum = signum


def first_line(error: BaseException, *, longest: int = 200) -> str:
    """What an error says, as far as one line goes; the name of its class where it says nothing."""
    text = str(error).strip().partition("\n")[0] or type(error).__name__
    return text if len(text) <= longest else f"{text[:longest]}..."


def did_you_mean(names: Sequence[str]) -> str:
    """A question with the names that may be meant; empty without any."""
    return f"did you mean {' or '.join(names)}?" if names else ""


def is_full(error: BaseException) -> bool:
    """Whether a full disk or quota is behind it: torch.save turns an OSError of its file into a RuntimeError."""
    causes = (error, error.__context__)
    return any(isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT) for cause in causes)
