"""Errors caused by user input."""

import sys
from collections.abc import Callable
from importlib.util import find_spec

TRAINING_PACKAGES = ("pytorch_lightning", "torchmetrics", "hydra", "omegaconf")


class InputError(ValueError):
    """Bad user input: a file, key or value. The message names every offender and the fix.

    The commands print it without a traceback.
    """


class UnknownNetworkError(InputError):
    """A file holds weights of no network of this project."""


class DivergedError(InputError, FloatingPointError):
    """Loss, gradients or weights are NaN or infinite: the settings or the data make the training diverge."""


class LostProcessError(InputError):
    """Another process of the run has failed, was killed, or does not answer."""


def find_input_error(error: BaseException | None) -> InputError | None:
    """Return the InputError that caused an exception, if any; Hydra wraps the exceptions of constructors."""
    while error is not None and not isinstance(error, InputError):
        error = error.__cause__ or error.__context__
    return error


def raise_all(*checks: Callable[[], object]) -> None:
    """Call all checks, then raise one InputError with the messages of those that raised one, each once.

    What else a check raises counts only if there is no message yet: a wrong value may well be its cause.
    """
    problems = []
    for check in checks:
        try:
            check()
        except InputError as error:
            problems.append(str(error))
        except Exception:
            if not problems:
                raise
    if problems:
        raise InputError("\n".join(dict.fromkeys(problems)))


def require_training_packages(module: str) -> None:
    """Check that the packages are installed that all but enlarging, exporting and fetching needs.

    Args:
        module: `__name__` of the caller; "__main__", or a package that `python -m` imports, ends with one line.

    Raises:
        ModuleNotFoundError: Names those that are missing, and the way to them.
    """
    missing = [name for name in TRAINING_PACKAGES if find_spec(name) is None]
    if missing:
        message = f"training and scoring need {', '.join(missing)}: pip install 'sr_lightning[train]'"
        if module == "__main__" or sys.argv[:1] == ["-m"]:
            sys.exit(f"error: {message}")
        raise ModuleNotFoundError(message, name=missing[0])
