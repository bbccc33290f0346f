"""Cells of the CSV files a chart offers: text from outside must not become a formula where somebody opens them."""

from __future__ import annotations

_FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")


def cell(value: object) -> object:
    """A text cell that no spreadsheet takes for a formula; numbers stay numbers.

    >>> cell("=1+1"), cell(" @SUM(A1)"), cell("a=b"), cell(-0.5)
    ("'=1+1", "' @SUM(A1)", 'a=b', -0.5)
    """
    if not isinstance(value, str):
        return value
    return f"'{value}" if value.lstrip().startswith(_FORMULA) or value[:1] in "\t\r\n" and value else value
