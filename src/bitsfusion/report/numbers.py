"""Numbers as a reader wants them: few digits, units, a true minus sign, a dash for what was not measured."""

from __future__ import annotations

import math

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(value: float | None, digits: int = 3) -> str:
    """`value` to `digits` significant digits, as a power of ten where it is below .0001; a dash for None and NaN."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    if abs(value) < 1e-4:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        power = "10" + str(int(exponent)).translate(_SUPERSCRIPTS)
        mantissa = _bare(mantissa)
        return power if mantissa == "1" else f"{mantissa} × {power}"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return _bare(f"{value:,.{decimals}f}")


def signed(value: float) -> str:
    """Two decimals, always with a sign."""
    return f"{value:+.2f}".replace("-", "−")


def size(count: float) -> str:
    """Bytes in decimal units, three digits: 1 MB is 10^6 bytes."""
    for unit, amount in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= amount:
            return f"{number(count / amount)} {unit}"
    return f"{count:.0f} B"


def duration(seconds: float | None) -> str:
    """Seconds as people say them."""
    if seconds is None:
        return "–"
    if seconds < 100:
        return f"{number(seconds, 2)} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{number(seconds / 3600)} h"


def _bare(text: str) -> str:
    """Without trailing zeros, with a true minus sign."""
    return (text.rstrip("0").rstrip(".") if "." in text else text).replace("-", "−")
