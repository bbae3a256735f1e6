"""The study behind each notebook, by the notebook's short name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from relufair.audit import Audit
from relufair.bounds import Theory
from relufair.config import PLAIN, Remedy
from relufair.mitigation import Ablation, Comparison, Mitigation, Remedied
from relufair.store import Store, project_root
from relufair.study import AccuracyDrops, GradientsAndCurvature
from relufair.theory import DecisionBoundary

STUDIES = {
    "decision_boundary": DecisionBoundary,
    "theory": Theory,
    "accuracy_drops": AccuracyDrops,
    "gradients_and_curvature": GradientsAndCurvature,
    "mitigation": Mitigation,
    "mu_ablation": Ablation,
    "paper_and_code": Audit,
    "remedies_compared": Comparison,
}


def published(name: str, **changes: Any) -> AccuracyDrops:
    """The study of a chapter with the parameters of its published results, but for ``changes``.

    Args:
        name: of the notebook, long or short.
        changes: other values of parameters.
    """
    from relufair import cli

    root = project_root()
    short, path = cli.find_notebook(root, name)
    own = cli.defaults(path) | cli.read_parameters(root, path, cli.PUBLISHED, ())
    return STUDIES[short](**own | changes)


def remedied(study: Remedied, cures: Sequence[Remedy] | None = None) -> pd.DataFrame:
    """The published tally of a study's remedies, by default all; the rows without one are left out."""
    table = study.tally(cures or study.cures(), store=Store(published=True))
    return table[table["remedy"] != str(PLAIN)]
