"""Numbers, and texts from files, as a report shows them."""

from __future__ import annotations

import math
import unicodedata

__all__ = ["digits", "number", "seconds", "share", "shown"]

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(value: float | None, digits: int | None = None) -> str:
    """An integer in full; else so many decimals, or three significant digits.

    What is not known, or not finite, is a dash.
    """
    if value is None or not math.isfinite(value):
        return "\u2013"
    if isinstance(value, int):
        return f"{value:,}"
    if digits is not None:
        return f"{value:.{digits}f}"
    if value == 0 or 1e-4 <= abs(value) < 1000:
        return f"{value:.3g}"
    if 1000 <= abs(value) < 1e6:
        return f"{value:,.0f}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa} \u00d7 10{str(int(exponent)).translate(_SUPERSCRIPT)}"


def digits(value: float) -> str:
    """Three digits, never an exponent; for columns of times."""
    decimals = max(0, 2 - math.floor(math.log10(value))) if value > 0 else 0
    return f"{value:.{decimals}f}"


def seconds(value: float) -> str:
    """Wall time, in ms below a second."""
    return f"{number(1e3 * value)} ms" if value < 0.9995 else f"{number(value)} s"


def share(value: float | None) -> str:
    """A percentage; one that is neither 0 nor 1 does not look so. What is not known is a dash."""
    if value is None:
        return number(None)
    if 0 < value < 0.001:
        return "< 0.1 %"
    if 0.999 < value < 1:
        return "> 99.9 %"
    return f"{number(100 * value)} %"


def shown(value: object, limit: int = 48) -> str:
    """A text from a file as it may be shown: on one line, of bounded length, without disguise.

    Characters that are not seen, or that change what is seen (controls, line ends, marks of
    direction, halves of surrogate pairs), are replaced by their code. It is not escaped for HTML.

    Args:
        value: The text, or a number.
        limit: Characters shown; of a longer text the first ones, and its length.
    """
    text = str(value)
    short = "".join(map(_visible, text[:limit]))
    return short if len(text) <= limit else f"{short}… ({len(text):,} characters)"


def _visible(character: str) -> str:
    # C: controls, formats, surrogates, private and unassigned; Z: separators.
    if character != " " and unicodedata.category(character)[0] in "CZ":
        return f"⟨U+{ord(character):04X}⟩"
    return character
