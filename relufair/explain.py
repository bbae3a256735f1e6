"""What the paper's explanation measures, for every network of a run and every group.

The result is one long table, a row a network × set × group × measure, with the columns ``seed``,
``method``, ``budget`` (1 is the teacher), ``split`` (``train`` or ``test``), ``group``, ``n`` (images
behind the number), ``measure`` and ``value``. The measures are

======================== =============================================================================
``loss``                 mean cross-entropy
``gradient``             norm of the gradient of the group's mean loss
``scaled_gradient``      the same, each layer's norm times that of its weights, which has no scale
``gap``, ``margin``      mean distance to the boundary, as top-two difference of softmax and of logits
``linear``,              mean distance to the boundary in the space of images, to first order
``refined``              and to the boundary itself
``eigenvalue``           largest of the group's Hessian, of the teacher only, with
``residual``, ``error``  how far it may be off, for certain and by estimate, with ``lowest``, the lowest
                         Ritz value, and ``products``
``released_gradient``    the released code's norm and
``released_eigenvalue``  curvature, on mini-batches of (at most 1,024 images of) the test set; of the
                         teacher only
``thinned_gradient``     of as many images of the largest group as the smallest has; of the teacher only
``change``               distance of all weights from the teacher's
``… of <layer>``         ``scaled_gradient`` and ``change``, layer by layer
======================== =============================================================================

Eigenvalues and distances in the space of images are taken on as many images of each group, so that
groups compare. What a group loses is shared out exactly in a table of its own, by :func:`account`.
"""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from relufair import bounds as exact
from relufair import geometry, groups, training
from relufair.groups import ALL
from relufair.pipeline import Pipeline
from relufair.store import Artifact
from relufair.training import Samples

VERSIONS = {"geometry": 2, "first_order": 1, "account": 1}
TELLING = ("gradient", "scaled_gradient", "eigenvalue", "gap", "margin", "refined")
TOLERANCE = 1e-3  # of an eigenvalue
ROUGH = 1e-2  # of the released code's, which takes one a mini-batch
MOST = 1024  # test images for it, and images of each group for the account
BATCH = 256  # mini-batches of the released code's measures
CLOSING = 0.02  # error of the account, as a share of the largest group's excess loss


def measured(pipe: Pipeline, sample: int) -> pd.DataFrame:
    """The long table of all networks of one run.

    Args:
        pipe: the run.
        sample: images of each group for eigenvalues and distances in the space of images; all of
            a group that has fewer.
    """
    every, tables = (None, *pipe.reached), []
    with training.progress(len(every), f"seed {pipe.run.seed}: measures", unit="network") as bar:
        for units in every:
            table = _network(pipe, units, sample)
            tables.append(table.assign(budget=pipe.units.get(units, 1.0)))
            bar.update()
    about = {"seed": pipe.run.seed, "method": pipe.run.method}
    return pd.concat(tables, ignore_index=True).assign(**about)


def _network(pipe: Pipeline, units: int | None, sample: int) -> pd.DataFrame:
    choice = pipe.run.choice
    config = {"of": pipe.identity(units), "groups": choice.groups, "sample": sample}
    config |= {"teacher": pipe.identity(None)}

    def compute(_: Path) -> Artifact:
        net, teacher = pipe.net(units), units is None
        parts = [_split(pipe, net, teacher, name, sample) for name in ("train", "test")]
        table = pd.concat([*parts, _whole(pipe, net)], ignore_index=True)
        return Artifact(tables={"measures": table}, facts=pipe.facts(units))

    return pipe.store.fetch("geometry", VERSIONS["geometry"], config, compute).tables["measures"]


def _split(pipe: Pipeline, net: nn.Module, teacher: bool, name: str, sample: int) -> pd.DataFrame:
    samples = pipe.part(name)
    parts = [_first_order(net, samples), _distances(net, samples, sample)]
    if teacher and name == "train":
        parts += [_thinned(net, samples), _curvature(net, samples, sample)]
    if teacher and name == "test":
        parts.append(_released(net, samples))
    table = pd.concat(parts, ignore_index=True).assign(split=name)
    names = dict(enumerate(pipe.splits.train.group_names))
    return table.assign(group=table["group"].map(lambda group: names.get(group, group)))


def _long(table: pd.DataFrame) -> pd.DataFrame:
    """Columns beside ``group`` and ``n`` as rows ``measure``, ``value``."""
    return table.melt(["group", "n"], var_name="measure", value_name="value").astype(
        {"value": float}
    )


def _first_order(net: nn.Module, samples: Samples) -> pd.DataFrame:
    layers = geometry.layer_norms(net, samples)
    inner = layers[layers["layer"] != ALL]
    found = layers[layers["layer"] == ALL].set_index("group")[["n", "gradient"]]
    found["scaled_gradient"] = np.sqrt((inner["product"] ** 2).groupby(inner["group"]).sum())
    found["loss"] = pd.Series(geometry.losses(net, samples))
    z, by = training.logits(net, samples), samples.groups.cpu().numpy()
    for name, function in {"gap": geometry.softmax_gap, "margin": geometry.logit_margin}.items():
        found[name] = pd.Series(function(z).cpu().numpy()).groupby(by).mean()
    by_layer = inner.rename(columns={"product": "value"})[["group", "n", "value"]]
    by_layer = by_layer.assign(measure="scaled_gradient of " + inner["layer"])
    return pd.concat([_long(found.reset_index()), by_layer], ignore_index=True)


def _distances(net: nn.Module, samples: Samples, sample: int) -> pd.DataFrame:
    index = torch.cat([_some(i, sample) for i in geometry.members(samples).values()])
    linear, refined = geometry.input_distance(net, samples, index)
    columns = {"linear": linear, "refined": refined.where(refined.isfinite(), torch.nan)}
    each = pd.DataFrame({name: column.cpu().numpy() for name, column in columns.items()})
    by = each.groupby(samples.groups[index].cpu().numpy())
    return _long(by.mean().assign(n=by.size()).rename_axis("group").reset_index())


def _some(index: torch.Tensor, n: int) -> torch.Tensor:
    return geometry.subsample(index, min(n, len(index)), seed=0)


def _thinned(net: nn.Module, samples: Samples) -> pd.DataFrame:
    """The gradient of the largest group, thinned to the size of the smallest."""
    sizes = {group: len(index) for group, index in geometry.members(samples).items()}
    largest, n = max(sizes, key=sizes.__getitem__), min(sizes.values())
    index = geometry.subsample(geometry.members(samples)[largest], n, seed=0)
    parts = geometry.gradient(net, samples, index).values()
    norm = sum((part.cpu().double() ** 2).sum() for part in parts).sqrt().item()
    return pd.DataFrame([{"group": largest, "n": n, "measure": "thinned_gradient", "value": norm}])


def _curvature(net: nn.Module, samples: Samples, sample: int) -> pd.DataFrame:
    rows = [
        {"group": group}
        | vars(geometry.top_eigenvalue(net, samples, _some(index, sample), TOLERANCE))
        for group, index in geometry.members(samples).items()
    ]
    return _long(pd.DataFrame(rows).rename(columns={"value": "eigenvalue"}))


def _released(net: nn.Module, samples: Samples) -> pd.DataFrame:
    norms = geometry.released_gradient_norm(net, samples, BATCH)
    some = samples.take(_some(torch.arange(len(samples)), MOST))
    tops = geometry.released_eigenvalue(net, some, BATCH, tol=ROUGH)
    named = {"released_gradient": norms, "released_eigenvalue": tops}
    tables = [t[["group", "n", "value"]].assign(measure=name) for name, t in named.items()]
    return pd.concat(tables, ignore_index=True)


def _whole(pipe: Pipeline, net: nn.Module) -> pd.DataFrame:
    """What belongs to no group: how far the weights have moved."""
    about: dict[str, Any] = {"split": "train", "group": ALL, "n": len(pipe.splits.train)}
    moved = geometry.weight_change(pipe.teacher_net, net)
    layers = moved.rename(columns={"change": "value"}).assign(measure="change of " + moved["layer"])
    layers.loc[layers["layer"] == ALL, "measure"] = "change"
    return layers[["measure", "value"]].assign(**about)


def first_order(pipe: Pipeline) -> pd.DataFrame:
    """Gradient norms and the distances that cost least, of every linearized network of one run.

    Returns:
        The rows of the long table with the measures ``loss``, ``gradient``, ``scaled_gradient``,
        ``gap`` and ``margin``, and the column ``remedy``.
    """
    tables = []
    for units in pipe.reached:
        config = {"of": pipe.identity(units), "groups": pipe.run.choice.groups}
        version, compute = VERSIONS["first_order"], partial(_cheap, pipe, units)
        found = pipe.store.fetch("first_order", version, config, compute)
        tables.append(found.tables["measures"].assign(budget=pipe.units[units]))
    about = {"seed": pipe.run.seed, "method": pipe.run.method, "remedy": str(pipe.run.remedy)}
    return pd.concat(tables, ignore_index=True).assign(**about)


def _cheap(pipe: Pipeline, units: int, _: Path) -> Artifact:
    net, names = pipe.net(units), pipe.splits.train.group_names
    parts = [_first_order(net, pipe.part(name)).assign(split=name) for name in ("train", "test")]
    table = pd.concat(parts, ignore_index=True)
    table = table[~table["measure"].str.contains(" of ")]
    table["group"] = table["group"].map(dict(enumerate(names)))
    return Artifact(tables={"measures": table}, facts=pipe.facts(units))


def account(pipe: Pipeline) -> pd.DataFrame:
    """What each group loses at the lowest budget of one run, shared out over the network.

    By :func:`relufair.bounds.line_integral` from the teacher, on the training set, at most ``MOST``
    images of each group. Its tolerance is the share ``CLOSING`` of the largest excess loss of a group,
    but at least 0.001.

    Returns:
        A row a group × part × layer with the columns ``seed``, ``method``, ``budget``, ``group``,
        ``n``, ``part`` (``weights``, ``slopes`` or ``buffers``), ``layer``, ``value``, and ``excess``,
        the group's whole excess loss by plain evaluation, of which the values' sum differs only by
        the error.
    """
    units = min(pipe.reached)
    config = {"of": pipe.identity(units), "groups": pipe.run.choice.groups}
    config |= {"teacher": pipe.identity(None)}
    compute = partial(_account, pipe, units)
    found = pipe.store.fetch("account", VERSIONS["account"], config, compute).tables["account"]
    about = {"seed": pipe.run.seed, "method": pipe.run.method, "budget": pipe.units[units]}
    return found.assign(**about)


def _account(pipe: Pipeline, units: int, _: Path) -> Artifact:
    nets, samples = (pipe.teacher_net, pipe.net(units)), pipe.samples
    index = torch.cat([_some(i, MOST) for i in geometry.members(samples).values()])
    some, names = samples.take(index), dict(enumerate(pipe.splits.train.group_names))
    before, after = (pd.Series(geometry.losses(net, some)) for net in nets)
    excess = after - before
    with training.progress(None, f"seed {pipe.run.seed}: account", unit="batch") as bar:

        def inputs(places: torch.Tensor) -> torch.Tensor:
            bar.update()
            return some.inputs(places)

        table = exact.line_integral(
            *nets, inputs, some.labels, some.groups,
            tolerance=max(CLOSING * excess.abs().max(), 1e-3), points=8,
        )  # fmt: skip
    sizes = {group: len(own) for group, own in geometry.members(some).items()}
    group = table["group"]
    table = table.assign(n=group.map(sizes), excess=group.map(excess), group=group.map(names))
    return Artifact(tables={"account": table}, facts=pipe.facts(units))


# From the long table ------------------------------------------------------------------------------


def bounds(table: pd.DataFrame) -> pd.DataFrame:
    """Both sides of Theorem 4.4 on the training set, without its remainder: the table's first method.

    The theorem has a further term of third order. Where the inequality fails, that term is not
    negligible, which refutes nothing; where it holds, it can hold for want of any tightness. And the
    right side knows nothing of the activations: with the weights kept and ReLUs removed it is zero,
    and the left is not.

    Returns:
        A row a budget × group, averaged over seeds, with the columns ``excess loss`` (left
        side), ``gradient term``, ``curvature term``, ``bound`` (right side) and ``holds``, the share
        of seeds in which the left side is not above the right.
    """
    keys = ["seed", "group"]
    own = (table["split"] == "train") & (table["method"] == table["method"].iloc[0])
    wide = table[own].pivot_table("value", [*keys, "budget"], "measure", "first")
    wide = wide.reset_index()
    teacher = wide[wide["budget"] == 1].set_index(keys)[["loss", "gradient", "eigenvalue"]]
    teacher = teacher.rename(columns={"loss": "loss before"})
    moved = wide[wide["group"] == ALL].set_index(["seed", "budget"])["change"]
    own = wide[(wide["group"] != ALL) & (wide["budget"] < 1)]
    own = own[[*keys, "budget", "loss"]].join(teacher, keys)
    step = own.join(moved, ["seed", "budget"])["change"]
    own["excess loss"] = own["loss"] - own["loss before"]
    own["gradient term"] = own["gradient"] * step
    own["curvature term"] = own["eigenvalue"] * step**2 / 2
    own["bound"] = own["gradient term"] + own["curvature term"]
    own["holds"] = (own["excess loss"] <= own["bound"]).astype(float)
    columns = ["excess loss", "gradient term", "curvature term", "bound", "holds"]
    return own.groupby(["budget", "group"], sort=False)[columns].mean().rename_axis(columns=None)


def correlations(table: pd.DataFrame, tally: pd.DataFrame, budget: float) -> pd.DataFrame:
    """Rank correlation, across groups, of what happens at ``budget`` with the teacher's measures.

    Args:
        table: the long table.
        tally: of the same runs, see :mod:`relufair.groups`; the first method in it counts.
        budget: where the outcome is taken.

    Returns:
        A row an ``outcome`` (``accuracy`` at the budget, ``relative_drop``) × ``measure`` with
        ``value``, ``low`` and ``high`` of :func:`rank_correlation`, ``groups`` and ``seeds``.
    """
    own = (tally["budget"] == budget) & (tally["method"] == tally["method"].iloc[0])
    summary = groups.by_group(tally[own])
    summary = summary[summary["group"] != ALL].pivot(
        index="group", columns="measure", values="value"
    )
    base = table[(table["budget"] == 1) & (table["split"] == "train")]
    rows = []
    for outcome, measure in itertools.product(("accuracy", "relative_drop"), TELLING):
        by_seed = base[base["measure"] == measure].pivot_table("value", "seed", "group")
        found = rank_correlation(by_seed, summary[outcome])
        about = {"outcome": outcome, "measure": measure, "groups": len(summary)}
        rows.append(about | found | {"seeds": len(by_seed)})
    return pd.DataFrame(rows)


def rank_correlation(by_seed: pd.DataFrame, outcome: pd.Series) -> dict[str, float]:
    """Spearman's coefficient over groups, averaged over seeds, with an interval for other groups.

    The 95 % interval is that of Bonett and Wright (2000, Psychometrika 65, 23-28), as of one seed: the
    seeds share their groups. With five groups it leaves out zero from 0.93 on; of the values that one
    seed can have, that is 1 alone, as by the exact test over all orders.

    Args:
        by_seed: a measure, a row a seed and a column a group.
        outcome: a value a group.

    Returns:
        ``value``, ``low`` and ``high``; nan where the groups do not differ.

    >>> found = rank_correlation(pd.DataFrame([[1, 2, 3, 5, 4]]), pd.Series(range(5)))
    >>> {name: round(number, 2) for name, number in found.items()}
    {'value': 0.9, 'low': -0.17, 'high': 1.0}
    """
    ranks, others = by_seed[outcome.index].rank(axis=1), outcome.rank()
    value = float(np.clip(ranks.corrwith(others, axis=1).mean(), -1, 1))  # but for rounding
    half = 1.96 * np.sqrt((1 + value**2 / 2) / (len(outcome) - 3)) if len(outcome) > 3 else np.inf
    with np.errstate(divide="ignore"):
        ends = np.tanh(np.arctanh(value) + half * np.array([-1, 1]))
    return {"value": value, "low": float(ends[0]), "high": float(ends[1])}
