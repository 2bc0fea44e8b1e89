"""What tests ask of messages: one line that names the culprits; the sentence around them is free."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import pytest

from utils.errors import InputError


def is_named(culprit: object, text: str) -> bool:
    """Whether `culprit`, or what a pattern means, stands in `text`: no part of a longer word, number, key or path."""
    if isinstance(culprit, re.Pattern):
        return culprit.search(text) is not None
    before = r"(?<!\w)(?<!\w\.)" if re.match(r"[\w/]", str(culprit)) else ""
    after = r"(?!\w|[./-]\w)" if re.search(r"\w$", str(culprit)) else ""
    return re.search(f"{before}{re.escape(str(culprit))}{after}", text) is not None


def check_names(text: str, *culprits: object) -> None:
    """One line that names all of them."""
    assert text and text.isprintable(), text
    assert not [culprit for culprit in culprits if not is_named(culprit, text)], text


@contextmanager
def refused(*culprits: object, error: type[Exception] = InputError) -> Iterator[None]:
    """What is done inside raises `error`, with one line that names all culprits."""
    with pytest.raises(error) as caught:
        yield
    check_names(str(caught.value), *culprits)


def refusal(main: Callable[[Sequence[str]], None], arguments: Sequence[str]) -> str:
    """The one line with which an entry script refuses its arguments."""
    with pytest.raises(InputError) as caught:
        main(arguments)
    check_names(str(caught.value))
    return str(caught.value)


def check_told(lines: Iterable[str], *culprits: object) -> None:
    """Some line names all culprits."""
    told = list(lines)
    assert any(all(is_named(culprit, line) for culprit in culprits) for line in told), told


def check_error_line(done, *culprits: object) -> None:
    """A program ended with 1 and with one line of error, its last, that names all culprits; no traceback."""
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert errors == done.stderr.splitlines()[-1:], done.stderr
    check_names(errors[0], *culprits)
