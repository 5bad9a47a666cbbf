"""The templates of page and card, filled."""

from __future__ import annotations

import functools
from importlib import resources

from jinja2 import Environment

from bitsfusion.io.templates import environment
from bitsfusion.report.numbers import number, size

HUES = 7
"""Categorical colours of the style sheet: classes `hue0` .. `hue6`."""


def rendered(name: str, **values: object) -> str:
    """Template `name` with `values`; HTML is escaped, a value that is missing is an error."""
    return _environment().get_template(name).render(values).lstrip()


@functools.cache
def _environment() -> Environment:
    found = environment("bitsfusion.report")
    found.filters |= {"number": number, "size": size, "percent": _percent, "cell": _cell}
    found.globals |= {"style": _style, "HUES": HUES}
    return found


def _percent(value: float, domain: tuple[float, float]) -> str:
    """Where `value` lies in `domain`, as CSS has it."""
    return f"{100 * min(1.0, max(0.0, (value - domain[0]) / (domain[1] - domain[0]))):.2f}%"


def _cell(text: str) -> str:
    """`text` so that Markdown shows it as it is, on one line."""
    marked = "".join(f"\\{letter}" if letter in "\\`*_[]<>|#&~" else letter for letter in text)
    return " ".join(marked.split())


def _style() -> str:
    return resources.files("bitsfusion.report").joinpath("templates/page.css").read_text("utf-8")
