"""Errors caused by user input."""


class InputError(ValueError):
    """Bad input: a file, key or value. The message names every offender and what to do.

    The commands print it without a traceback.
    """


def find_input_error(error: BaseException | None) -> InputError | None:
    """The InputError behind an exception, if there is one; Hydra wraps what a constructor raises."""
    while error is not None and not isinstance(error, InputError):
        error = error.__cause__ or error.__context__
    return error
