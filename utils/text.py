"""Text from files and users, made safe and short for terminals and logs."""

import unicodedata

# Kinds of characters that a terminal may act on: control, format (also of direction), surrogate, private, line breaks.
_UNSAFE = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}


def printable(text: str, limit: int | None = None) -> str:
    """`text` with characters that a terminal may act on escaped, and cut in the middle to `limit` characters."""
    escaped = text if text.isascii() and text.isprintable() else "".join(map(_escape, text))
    if limit is None or len(escaped) <= limit:
        return escaped
    head = (limit - 3) // 2
    return f"{escaped[:head]}...{escaped[head + 3 - limit :]}"


def shown(value: object, limit: int = 80) -> str:
    """A value from a file for a message: strings in quotes, everything escaped and cut to `limit` characters."""
    if isinstance(value, str):
        # Cut before, since a name may have a gigabyte.
        return f"'{printable(value[: 4 * limit], limit)}'"
    if isinstance(value, int) and value.bit_length() > 64:
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, bool | int | float) or value is None:
        return repr(value)
    return type(value).__name__


def one_line(error: object, limit: int = 300) -> str:
    """What an error or a text says, without its line breaks."""
    return printable(" ".join(str(error).split()), limit)


def described(error: BaseException, limit: int = 300) -> str:
    """An error's kind and what it says, in one line."""
    return one_line(f"{type(error).__name__}: {error}", limit)


def counted(number: int, noun: str) -> str:
    """`1 scene`, `1,200 scenes`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _escape(character: str) -> str:
    if unicodedata.category(character) not in _UNSAFE:
        return character
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
