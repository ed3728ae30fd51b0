"""Errors caused by user input."""

from collections.abc import Callable


class InputError(ValueError):
    """Bad user input: a file, key or value. The message names every offender and the fix.

    The commands print it without a traceback.
    """


class UnknownNetworkError(InputError):
    """A file holds weights of no network of this project."""


class DivergedError(InputError, FloatingPointError):
    """Loss, gradients or weights are NaN or infinite: the settings or the data make the training diverge."""


def find_input_error(error: BaseException | None) -> InputError | None:
    """Return the InputError that caused an exception, if any; Hydra wraps the exceptions of constructors."""
    while error is not None and not isinstance(error, InputError):
        error = error.__cause__ or error.__context__
    return error


def raise_all(*checks: Callable[[], object]) -> None:
    """Call all checks, then raise one InputError with the messages of those that raised one."""
    problems = []
    for check in checks:
        try:
            check()
        except InputError as error:
            problems.append(str(error))
    if problems:
        raise InputError("\n".join(problems))
