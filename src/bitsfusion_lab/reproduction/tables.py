"""The tables by number."""

from __future__ import annotations

from collections.abc import Callable

from bitsfusion.errors import InputError
from bitsfusion_lab.reproduction.ladder import table4
from bitsfusion_lab.reproduction.methods import table3
from bitsfusion_lab.reproduction.sweeps import table5, table6, table7
from bitsfusion_lab.reproduction.table import Table

TABLES: dict[int, Callable[[], Table]] = {3: table3, 4: table4, 5: table5, 6: table6, 7: table7}


def chosen_tables(text: str) -> list[Table]:
    """`"all"`, or numbers with commas between.

    Raises:
        InputError: no such table.
    """
    numbers = list(TABLES) if text == "all" else []
    for part in [] if text == "all" else text.replace(",", " ").split():
        if not part.isdigit() or int(part) not in TABLES:
            raise InputError(f"table: got {part!r}, wanted {', '.join(map(str, TABLES))} or all")
        numbers.append(int(part))
    if not numbers:
        raise InputError(f"table: got none, wanted {', '.join(map(str, TABLES))} or all")
    return [TABLES[number]() for number in dict.fromkeys(numbers)]
