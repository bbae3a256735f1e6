"""How numbers, names and tables are written for people."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

NAMES = {
    "snl": "SNL", "deepreduce": "DeepReDuce", "algorithm1": "Algorithm 1", "one_sided": "one-sided",
    "group_dro": "group DRO", "cvar": "CVaR", "jtt": "JTT", "swa": "SWA",
    "inverse_frequency": "inverse frequency", "class_balanced": "class-balanced",
    "deepreduce_untaught": "DeepReDuce with a random teacher", "all_kept": "control with all ReLUs",
}  # fmt: skip


NOISE = 1e-9  # below this, an end of an interval is zero but for rounding


def named(method: str) -> str:
    """The name of a method, of a remedy with its strength, or of both, for people.

    >>> named("snl"), named("smallest_effect"), named("snl, algorithm1 0.1")
    ('SNL', 'smallest effect', 'SNL, Algorithm 1 (0.1)')
    """
    if ", " in method:
        return ", ".join(map(named, method.split(", ")))
    name, _, strength = method.partition(" ")
    return NAMES.get(name, name.replace("_", " ")) + (f" ({strength})" if strength else "")


def percent(share: float) -> str:
    """A share in percent, as short as it can be said.

    >>> percent(0.02), percent(0.001), percent(1.0)
    ('2 %', '0.1 %', '100 %')
    """
    return f"{100 * share:.3g} %"


def kept(budget: float) -> str:
    """A budget, as it stands over a panel."""
    return "all ReLUs" if budget == 1 else f"{percent(budget)} of the ReLUs"


def n_seeds(n: int) -> str:
    """Their number."""
    return f"{n} seed" if n == 1 else f"{n} seeds"


def machine(device: str) -> str:
    """A device as it was recorded, in good English.

    >>> machine("CPU (x86_64, 1 threads)"), machine("CPU (x86_64, 2 threads)")
    ('CPU (x86_64, 1 thread)', 'CPU (x86_64, 2 threads)')
    """
    return device.replace(" 1 threads", " 1 thread")


def number(value: float, digits: int = 1, sign: str = "") -> str:
    """A number with a true minus, never minus zero; a dash where there is none.

    >>> number(-0.04), number(-1234.5), number(0.3, sign="+"), number(float("nan"))
    ('0.0', '−1,234.5', '+0.3', '—')
    >>> number(float("inf"))
    '∞'
    """
    if np.isnan(value):
        return "—"
    if np.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{round(value, digits) + 0.0:{sign},.{digits}f}".replace("-", "−")


def interval(row: Mapping[str, float], digits: int = 1, sign: str = "") -> str:
    """``value`` with ``low`` and ``high``."""
    value, low, high = (number(row[name], digits, sign) for name in ("value", "low", "high"))
    return value if np.isnan(row["value"]) else f"{value} [{low}, {high}]"


def side(row: Mapping[str, float]) -> int:
    """Where an interval lies: 1 above zero, -1 below, 0 across; an end that rounding moved is zero.

    >>> side({"low": 1e-14, "high": 3.0}), side({"low": -2.0, "high": -0.1})
    (0, -1)
    """
    return int(row["low"] > NOISE) - int(row["high"] < -NOISE)


def turned(row: Mapping[str, float]) -> dict[str, float]:
    """The value and its interval with the other sign."""
    return {"value": -row["value"], "low": -row["high"], "high": -row["low"]}


def shown(table: pd.DataFrame, *index: str, **names: str) -> pd.DataFrame:
    """The table with methods, remedies and budgets in words, and its columns renamed."""
    words = {"method": named, "remedy": named, "budget": percent}
    own = table.assign(**{name: table[name].map(f) for name, f in words.items() if name in table})
    names = {"budget": "ReLUs kept"} | names
    return own.rename(columns=names).set_index([names.get(name, name) for name in index])


def markdown(table: pd.DataFrame) -> str:
    """The table, without its index, as lines of Markdown."""
    rows = [list(table), ["---"] * len(table.columns), *table.astype(str).to_numpy().tolist()]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)
