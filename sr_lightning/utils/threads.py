"""Processing of many files in threads."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from sr_lightning.errors import InputError
from sr_lightning.utils.cores import usable_cores
from sr_lightning.utils.messages import listing

THREADS = min(usable_cores(), 8)  # decoding and hashing release Python's global lock

Item, Result = TypeVar("Item"), TypeVar("Result")


def in_threads(function: Callable[[Item], Result], items: Iterable[Item], what: str = "images") -> Iterator[Result]:
    """Yield `function(item)` of each item, in order, computed in threads with a few results in flight.

    After an InputError the remaining items are still processed but no longer yielded, so that one message names all
    failures.

    Args:
        function: Called in a thread.
        items: Consumed a few ahead of the results.
        what: Names the items in the message.

    Raises:
        InputError: After the last item, naming every item that failed and the reason.
    """
    items = iter(items)
    problems: list[str] = []
    tried = 0
    pool = ThreadPoolExecutor(THREADS)
    try:
        pending = deque(pool.submit(function, item) for item in islice(items, 2 * THREADS))
        while pending:
            tried += 1
            try:
                result = pending.popleft().result()
            except InputError as error:
                problems.append(str(error))
            else:
                if not problems:
                    yield result
                del result  # frees its memory while the next one is awaited
            pending.extend(pool.submit(function, item) for item in islice(items, 1))
    finally:
        pool.shutdown(cancel_futures=True)
    if problems:
        raise InputError(f"{len(problems)} of {tried} {what} cannot be used:{listing(problems)}")
