"""Text of error messages."""

from collections.abc import Sequence

MAX_LISTED = 20  # offenders named in a message


def reason(error: Exception) -> str:
    """Return an error's message on one line, with the error's class if the message is a bare word or empty."""
    text = " ".join(str(error).split())
    return text if " " in text else f"{type(error).__name__} {text}".strip()


def listing(offenders: Sequence[object]) -> str:
    """List the first offenders, one per indented line, and the number of the others."""
    more = [f"... and {len(offenders) - MAX_LISTED} more"] if len(offenders) > MAX_LISTED else []
    return "".join(f"\n  {offender}" for offender in [*offenders[:MAX_LISTED], *more])
