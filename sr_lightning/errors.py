"""The one exception for what the user can mend."""


class InputError(ValueError):
    """Bad input: a file, key or value. The message names every offender and the way out.

    `train.py` and `evaluate.py` print it without a traceback.
    """
