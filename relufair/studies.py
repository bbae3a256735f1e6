"""The study behind each notebook, by the notebook's short name."""

from relufair.audit import Audit
from relufair.bounds import Theory
from relufair.mitigation import Ablation, Comparison, Mitigation
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
