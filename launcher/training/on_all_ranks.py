"""Raises a user's mistake that one rank finds on all ranks, because the others would wait for that rank for ever."""

from collections.abc import Iterator
from contextlib import contextmanager

from accelerate.utils import gather_object

from recipes.errors import UserError


@contextmanager
def raised_on_all_ranks() -> Iterator[None]:
    """Surround work without communication, which all ranks enter together.

    Raises:
        UserError: on every rank, with the sentence of the first rank that raised one in the block.
    """
    problem = None
    try:
        yield
    except UserError as error:
        problem = str(error)
    problems = [found for found in gather_object([problem]) if found]
    if problems:
        raise UserError(problems[0])
