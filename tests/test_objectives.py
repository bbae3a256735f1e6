"""What the remedies minimise: losses and gradients against computations by hand in float64."""

import io
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_training import interrupted, net, samples, weights

from relufair import training
from relufair.objectives import (
    Batch,
    CVaR,
    Detached,
    Distillation,
    GroupDRO,
    Grouped,
    LogitAdjusted,
    OneSided,
    Parity,
    Weighted,
)
from relufair.training import Samples

T, HARD, SOFT = 4.0, 0.7, 1.3
LOSS = {"temperature": T, "hard": HARD, "soft": SOFT}
CLASSES, FEATURES, GROUPS, N = 3, 4, 4, 24
RNG = np.random.default_rng(0)
X, LABELS = RNG.normal(size=(N, FEATURES)), RNG.integers(0, CLASSES, N)
TEACHER, W = RNG.normal(size=(N, CLASSES)) * 3, RNG.normal(size=(CLASSES, FEATURES))
MEMBERS = np.array([0, 0, 0, 1, 1, 3] * 4)  # of unequal sizes; nobody is in group 2
SHARES = np.array([0.6, 0.3, 0.1])
WEIGHTS = RNG.uniform(0.5, 1.5, 50)
PLACES = RNG.permutation(50)[:N]  # of the batch's samples in the training set
MULTIPLIERS = np.array([0.5, 2.0, 7.0, 0.1, 9.0, 9.0, 9.0])


def softmax(z):
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def by_hand(shift=0.0):
    """Loss of each sample (n,) and its gradient in the weights (n, classes, features)."""
    z, truth = X @ W.T, np.eye(CLASSES)[LABELS]
    ours, theirs, hard = softmax(z / T), softmax(TEACHER / T), softmax(z + shift)
    loss = -HARD * np.log((hard * truth).sum(1))
    loss += SOFT * T**2 * (theirs * np.log(theirs / ours)).sum(1)
    slope = HARD * (hard - truth) + SOFT * T * (ours - theirs)
    return loss, slope[:, :, None] * X[:, None, :]


def group_means(values):
    """Mean of ``values`` by group, 0 for the group without a sample."""
    return np.stack(
        [values[MEMBERS == a].mean(0) if a in MEMBERS else 0 * values[0] for a in range(GROUPS)]
    )


def parity(sign):
    """Algorithm 1's loss and step, with the derivative of the penalty ``sign`` in the gap."""

    def expected():
        loss, slope = by_hand()
        gap, turned = loss.mean() - group_means(loss), slope.mean(0) - group_means(slope)
        pulled = [a for a in range(GROUPS) if a in MEMBERS]
        value, step = loss.mean(), slope.mean(0)
        for a in pulled:
            value += MULTIPLIERS[a] * sign(gap[a]) * gap[a]
            step = step + MULTIPLIERS[a] * sign(gap[a]) * turned[a]
        return value, step

    return expected


def released():
    """The loss with the penalty, and the gradient without it."""
    return parity(np.sign)()[0], by_hand()[1].mean(0)


def group_dro():
    loss, slope = map(group_means, by_hand())
    q = np.exp(0.3 * loss) / np.exp(0.3 * loss).sum()
    return q @ loss, np.tensordot(q, slope, 1)


def weighted():
    loss, slope = by_hand()
    w = WEIGHTS[PLACES]
    return (w * loss).mean(), (w[:, None, None] * slope).mean(0)


def adjusted():
    loss, slope = by_hand(1.5 * np.log(SHARES))
    return loss.mean(), slope.mean(0)


def worst():
    loss, slope = by_hand()
    chosen = np.argsort(loss)[-8:]  # 0.3 of 24 is 7.2
    return loss[chosen].mean(), slope[chosen].mean(0)


def pulling(kind, groups):
    objective = kind(0.1, groups, **LOSS)
    objective.multipliers = torch.from_numpy(MULTIPLIERS[:groups])
    return objective


# Each made for a number of groups, with what it shall give.
KINDS = {
    "algorithm1": (lambda k: pulling(Parity, k), parity(np.sign)),
    "one_sided": (lambda k: pulling(OneSided, k), parity(lambda gap: -float(gap < 0))),
    "detached": (lambda k: pulling(Detached, k), released),
    "group_dro": (lambda k: GroupDRO(0.3, k, **LOSS), group_dro),
    "weighted": (lambda k: Weighted(torch.from_numpy(WEIGHTS), k, **LOSS), weighted),
    "adjusted": (lambda k: LogitAdjusted(1.5, torch.from_numpy(SHARES), k, **LOSS), adjusted),
    "cvar": (lambda k: CVaR(0.3, k, **LOSS), worst),
}


def linear_batch(w, **changes):
    """The batch after a linear model with the weights ``w``."""
    about = {"labels": LABELS, "groups": MEMBERS, "index": PLACES, "teacher": TEACHER} | changes
    return Batch(torch.from_numpy(X) @ w.T, **{k: torch.from_numpy(v) for k, v in about.items()})


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_step_of_a_linear_model_are_those_derived_by_hand(kind):
    """With distillation, unequal groups, one group without a sample, multipliers that are not 0."""
    make, expected = KINDS[kind]
    w = torch.tensor(W, requires_grad=True)
    loss = make(GROUPS).loss(linear_batch(w))
    (step,) = torch.autograd.grad(loss, w)
    value, gradient = expected()
    np.testing.assert_allclose(loss.item(), value, rtol=1e-6 if kind == "group_dro" else 1e-12)
    np.testing.assert_allclose(step, gradient, rtol=1e-6, atol=1e-12)


def test_the_checks_by_hand_are_of_different_steps():
    """No two objectives pass for one another, save the released one for plain finetuning."""
    steps = [by_hand()[1].mean(0), *(expected()[1] for name, (_, expected) in KINDS.items())]
    apart = {
        (i, j): np.abs(a - b).max() for i, a in enumerate(steps) for j, b in enumerate(steps[:i])
    }
    same = [pair for pair, distance in apart.items() if distance < 1e-3]
    assert same == [(1 + list(KINDS).index("detached"), 0)]


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"group_dro"}))
def test_a_group_that_is_missing_does_not_count(kind):
    """Not even in all batches: the steps are those without that group, and what is kept is finite.

    Group DRO shares its weight among all groups that there are: it is held by hand, above and below.
    """
    make, _ = KINDS[kind]
    steps = []
    for groups in (GROUPS, GROUPS + 3):
        w, objective = torch.tensor(W, requires_grad=True), make(groups)
        for _ in range(2):
            (step,) = torch.autograd.grad(objective.loss(linear_batch(w)), w)
            log = objective.end_epoch()
        missing = [a for a in range(groups) if math.isnan(log[f"loss:{a}"])]
        assert missing == sorted(set(range(groups)) - set(MEMBERS))
        assert all(math.isfinite(v) for k, v in log.items() if not k.startswith("loss"))
        steps.append(step)
    torch.testing.assert_close(*steps)


@pytest.mark.parametrize("kind", [Parity, OneSided, GroupDRO])
def test_groups_of_equal_loss_are_left_to_plain_finetuning(kind):
    """Mirrored samples: the same loss to the bit, other gradients, and no step but the mean's."""
    z = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    where, teacher = torch.tensor([0, 1]), torch.tensor([[0.5, 2.0], [2.0, 0.5]])
    steps = []
    for objective in (kind(0.5, 2, **LOSS), Distillation(**LOSS)):
        objective.multipliers = torch.tensor([3.0, 5.0])
        loss = objective.loss(Batch(z, where, where, where, teacher))
        steps.append((loss, *torch.autograd.grad(loss, z)))
    for found, plain in zip(*steps, strict=True):
        torch.testing.assert_close(found, plain)
    assert not torch.allclose(*steps[1][1])


def test_one_sided_leaves_the_better_groups_alone():
    """Their multipliers neither act nor grow."""
    objective, loss = OneSided(1.0, GROUPS, **LOSS), group_means(by_hand()[0])
    for _ in range(2):
        objective.loss(linear_batch(torch.from_numpy(W)))
        objective.end_epoch()
    worse = (loss > by_hand()[0].mean()) & np.isin(np.arange(GROUPS), MEMBERS)
    assert 0 < worse.sum() < 3
    assert ((objective.multipliers > 0).numpy() == worse).all()


# The multipliers and weights over time -----------------------------------------------------------


class Recorder(Distillation):
    """Passes all on to an objective, and keeps the losses and groups of each epoch's batches."""

    def __init__(self, inner, watch=lambda: None):
        super().__init__(inner.temperature)
        self.inner, self.watch, self.epochs, self.watched = inner, watch, [[]], [watch()]

    def loss(self, batch):
        each = Distillation.each(self, Batch(**vars(batch) | {"logits": batch.logits.double()}))
        self.epochs[-1].append((each.detach().numpy(), batch.groups.numpy()))
        return self.inner.loss(batch)

    def end_epoch(self):
        self.epochs.append([])
        self.watched.append(self.watch())
        return self.inner.end_epoch()


def taught():
    data = samples()
    return Samples(**vars(data) | {"teacher": 3 * training.logits(net(5), data)[None]})


def finetune(objective, network=None, epochs=2, lr=0.05, **about):
    network = network or net()
    log = training.fit(
        network, taught(), objective, training.sgd(network, lr, 5e-4), epochs=epochs, batch=16,
        seed=(1,), **about,
    )  # fmt: skip
    return network, log


def gaps_of(batches):
    """Distance of each group's mean loss over ``batches`` to everyone's."""
    each, groups = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    return np.abs(each.mean() - [each[groups == a].mean() for a in range(2)])


def test_multipliers_grow_by_the_gaps_of_the_epochs_own_batches():
    """Two epochs of training, computed again from what its batches were."""
    objective = Parity(0.5, 2, temperature=T)
    recorder = Recorder(objective)
    _, log = finetune(recorder)
    first, second = (0.5 * gaps_of(batches) for batches in recorder.epochs[:2])
    assert first.min() > 0.01
    np.testing.assert_allclose(objective.multipliers, first + second, rtol=1e-5)
    for a in range(2):
        np.testing.assert_allclose(log[f"multiplier:{a}"], [0, first[a]], rtol=1e-5)
        np.testing.assert_allclose(0.5 * log[f"violation:{a}"], [first[a], second[a]], rtol=1e-5)
        each, groups = (np.concatenate(p) for p in zip(*recorder.epochs[1], strict=True))
        assert log[f"loss:{a}"][1] == pytest.approx(each[groups == a].mean(), rel=1e-5)


def test_the_released_code_adds_up_the_batches_gaps():
    """Multipliers by the sum over the batches, not by the gap of the epoch."""
    objective = Detached(0.5, 2, temperature=T)
    recorder = Recorder(objective)
    finetune(recorder)
    grown = sum(0.5 * gaps_of([batch]) for batches in recorder.epochs[:2] for batch in batches)
    np.testing.assert_allclose(objective.multipliers, grown, rtol=1e-5)


def test_an_epochs_own_losses_lie_between_those_before_and_after_it():
    """What it costs to take them on the way: half of what the epoch itself changes.

    Against a pass of its own over the training set before and after each epoch, of a network
    whose loss does not depend on the batch. Where the rate is 0, both are the same.
    """
    data = taught()

    def full(network):
        each = Distillation(T).each(
            Batch(training.logits(network, data), data.labels, data.groups, None, data.teacher[0])
        )
        return np.array([each.mean(), *(each[data.groups == a].mean() for a in range(2))])

    def train(lr):
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 3))
        recorder = Recorder(Parity(0.1, 2, temperature=T), lambda: full(network))
        finetune(recorder, network, epochs=4, lr=lr)
        own = []
        for batches in recorder.epochs[:4]:
            each, groups = (np.concatenate(p) for p in zip(*batches, strict=True))
            own.append([each.mean(), *(each[groups == a].mean() for a in range(2))])
        return np.array(own), np.array(recorder.watched)

    own, passes = train(0.0)
    np.testing.assert_allclose(own, passes[1:], rtol=1e-5)
    own, passes = train(1e-4)
    fallen = passes[:-1] - passes[1:]
    assert (fallen > 0.01 * passes[1:]).all()
    behind = (own - passes[1:]) / fallen
    assert ((behind > 0.25) & (behind < 0.75)).all()
    gap, late = (np.abs(x[:, :1] - x[:, 1:]) for x in (passes[1:], own))
    assert (np.abs(late - gap) <= fallen[:, :1] + fallen[:, 1:]).all()


def test_group_weights_follow_their_update():
    """By hand, over batches in which groups are missing."""
    objective, q = GroupDRO(0.3, 3, temperature=T), np.full(3, 1 / 3)
    recorder = Recorder(objective)
    for step in range(5):
        part = np.flatnonzero(np.isin(MEMBERS, [[0, 1], [0, 3], [1, 3], [0, 1], [1, 0]][step]))
        groups = torch.from_numpy(np.minimum(MEMBERS[part], 2))
        tensors = [torch.from_numpy(x[part]) for x in (X @ W.T, LABELS, TEACHER)]
        loss = recorder.loss(Batch(tensors[0], tensors[1], groups, groups, tensors[2]))
        each, members = recorder.epochs[0][-1]
        means = np.array([each[members == a].mean() if a in members else 0 for a in range(3)])
        q = q * np.exp(0.3 * means) / (q * np.exp(0.3 * means)).sum()
        assert loss.item() == pytest.approx(q @ means, rel=1e-5)
    log = recorder.end_epoch()
    np.testing.assert_allclose([log[f"weight:{a}"] for a in range(3)], q, rtol=1e-5)


def test_a_group_weight_comes_back_from_nothing():
    """A group that fares well for long, then badly, weighs again."""
    objective = GroupDRO(100.0, 2, temperature=1.0, soft=0.0)
    z = torch.tensor([[9.0, 0.0], [0.0, 9.0]])
    for labels in ([0, 0], [0, 0], [1, 1], [1, 1], [1, 1]):
        where = torch.tensor([0, 1])
        objective.loss(Batch(z, torch.tensor(labels), where, where, z))
    assert objective.end_epoch()["weight:0"] == pytest.approx(1)


# What equals plain finetuning --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "mu"), [(Parity, 0), (OneSided, 0), (Detached, 0), (Detached, 1000.0)]
)
@pytest.mark.parametrize("flip", [False, True])
def test_without_a_step_of_the_multipliers_or_a_gradient_training_is_plain(kind, mu, flip):
    """Bit for bit: the weights after two epochs, and the loss while no multiplier has grown."""
    data, ends, losses = taught(), [], []
    both = Samples(**vars(data) | {"teacher": data.teacher.repeat(2, 1, 1)})
    for objective in (Distillation(3.0), kind(mu, 2, temperature=3.0)):
        network = net()
        log = training.fit(
            network, both, objective, training.sgd(network, 0.05, 5e-4), epochs=2, batch=14,
            seed=(1,), flip=flip,
        )  # fmt: skip
        ends.append(weights(network))
        losses.append(log["loss"][0])
    assert torch.equal(*ends)
    assert losses[0] == losses[1]


def test_algorithm_1_is_not_plain():
    """So that the equalities above say something."""
    plain, _ = finetune(Distillation(T))
    pulled, _ = finetune(Parity(0.5, 2, temperature=T))
    assert not torch.equal(weights(plain), weights(pulled))


def plain_loss():
    return Distillation(**LOSS).loss(linear_batch(torch.from_numpy(W)))


@pytest.mark.parametrize(
    "objective",
    [
        LogitAdjusted(1.5, torch.full((3,), 1 / 3), GROUPS, **LOSS),
        LogitAdjusted(0.0, torch.tensor([0.9, 0.1, 0.0]), GROUPS, **LOSS),
        CVaR(1.0, GROUPS, **LOSS),
        Weighted(torch.ones(50), GROUPS, **LOSS),
    ],
)
def test_the_rivals_without_strength_are_plain(objective):
    """Equal shares or no shift, the whole batch, equal weights."""
    torch.testing.assert_close(objective.loss(linear_batch(torch.from_numpy(W))), plain_loss())


def test_logit_adjustment_learns_the_balanced_posterior():
    """Its minimum for given posteriors p is at log(p / prior), whatever the prior.

    The network then answers with the class that is likeliest where all are equally common.
    """
    p = torch.tensor([0.7, 0.25, 0.05], dtype=torch.float64)
    labels = torch.arange(3).repeat_interleave((100 * p).round().long())
    optimum = (p / torch.from_numpy(SHARES)).log().requires_grad_()
    objective = LogitAdjusted(1.0, torch.from_numpy(SHARES), 1, temperature=1.0, soft=0.0)
    z = optimum.expand(100, 3)
    (slope,) = torch.autograd.grad(
        objective.loss(Batch(z, labels, 0 * labels, labels, z.detach())), optimum
    )
    torch.testing.assert_close(slope, torch.zeros_like(slope))
    assert optimum.argmax() == 0 and (p / torch.tensor([0.9, 0.05, 0.05])).argmax() == 1


def test_a_class_that_training_lacks_is_shifted_out_without_harm():
    """The loss and its gradient stay finite."""
    w = torch.tensor(W, requires_grad=True)
    objective = LogitAdjusted(1.0, torch.tensor([0.5, 0.5, 0.0]), GROUPS, **LOSS)
    loss = objective.loss(linear_batch(w, labels=LABELS % 2))
    assert torch.isfinite(torch.stack([loss, *torch.autograd.grad(loss, w)[0].flatten()])).all()


@settings(deadline=None)
@given(st.integers(1, 100), st.integers(1, 100))
@example(100, 55)  # 0.55 * 100 is a little above 55
def test_cvar_is_the_mean_of_the_worst(n, percent):
    """Of exactly so many as the share says, rounded up."""
    rng = np.random.default_rng(n)
    z, labels = torch.from_numpy(rng.normal(size=(n, 3))), torch.from_numpy(rng.integers(0, 3, n))
    batch = Batch(z, labels, 0 * labels, labels, z.roll(1, 0))
    objective = CVaR(percent / 100, 1, **LOSS)
    each = objective.each(batch).sort(descending=True).values
    torch.testing.assert_close(objective.loss(batch), each[: -(-n * percent // 100)].mean())


# Properties of all -------------------------------------------------------------------------------

ORDERS = st.tuples(st.integers(0, 10**6), st.integers(2, 40), st.integers(1, 8))


def drawn(seed, n, groups, scale=3.0):
    """A random batch of float32, and a generator to go on with."""
    rng = np.random.default_rng(seed)
    z, teacher = torch.from_numpy(rng.normal(size=(2, n, CLASSES), scale=scale)).float()
    labels, members = (torch.from_numpy(rng.integers(0, k, n)) for k in (CLASSES, groups))
    return Batch(z, labels, members, torch.from_numpy(rng.permutation(50)[:n]), teacher), rng


def every_kind(groups, multipliers, log_q):
    """One of each, in the same state."""
    found = [
        Parity(0.1, groups, **LOSS), OneSided(0.1, groups, **LOSS), Detached(0.1, groups, **LOSS),
        GroupDRO(0.1, groups, **LOSS), CVaR(0.3, groups, **LOSS),
        Weighted(torch.from_numpy(WEIGHTS).float(), groups, **LOSS),
        LogitAdjusted(1.0, torch.from_numpy(SHARES).float(), groups, **LOSS),
    ]  # fmt: skip
    for objective in found:
        if isinstance(objective, Parity):
            objective.multipliers = multipliers
        if isinstance(objective, GroupDRO):
            objective.log_q = log_q.log_softmax(0)
    return found


@settings(deadline=None, max_examples=50)
@given(ORDERS)
def test_order_and_names_do_not_matter(order):
    """Samples in another order and groups with other numbers: the same losses."""
    seed, n, groups = order
    batch, rng = drawn(seed, n, groups)
    samples_, names = (torch.from_numpy(rng.permutation(k)) for k in (n, groups))
    parts = {name: part[samples_] for name, part in vars(batch).items()}
    state = torch.from_numpy(rng.uniform(0, 5, (2, groups))).float()
    renamed = torch.empty_like(state)
    renamed[:, names] = state
    other = Batch(**parts | {"groups": names[parts["groups"]]})
    pairs = zip(every_kind(groups, *state), every_kind(groups, *renamed), strict=True)
    for one, two in pairs:
        torch.testing.assert_close(one.loss(batch), two.loss(other), rtol=1e-4, atol=1e-5)


@settings(deadline=None, max_examples=50)
@given(ORDERS, st.sampled_from([1e-3, 1.0, 100.0, 1e4]))
def test_losses_and_gradients_are_finite(order, scale):
    """However sure the network and the teacher are, and whichever group is missing."""
    seed, n, groups = order
    batch, rng = drawn(seed, n, groups, scale)
    batch.logits.requires_grad_()
    state = torch.from_numpy(rng.uniform(0, 5, (2, groups))).float()
    for objective in every_kind(groups, *state):
        loss = objective.loss(batch)
        (slope,) = torch.autograd.grad(loss, batch.logits)
        assert torch.isfinite(loss) and torch.isfinite(slope).all(), type(objective)
        objective.end_epoch()
        assert all(torch.isfinite(x).all() for x in objective.state().values())


@settings(deadline=None, max_examples=50)
@given(ORDERS)
def test_the_means_by_group_are_those_of_a_loop(order):
    """And so is what is summed up over an epoch."""

    class Seeing(Grouped):
        def combine(self, batch, each, means, there):
            for a in range(len(means)):
                own = each[batch.groups == a]
                assert there[a] == bool(len(own))
                torch.testing.assert_close(
                    means[a], own.mean() if len(own) else means.new_zeros(())
                )
            losses.append((each, batch.groups))
            return each.sum()

    seed, n, groups = order
    objective, losses = Seeing(groups, **LOSS), []
    for step in range(3):
        objective.loss(drawn(seed + step, n, groups)[0])
    each, members = map(torch.cat, zip(*losses, strict=True))
    log = objective.end_epoch()
    for a in range(groups):
        own = each[members == a]
        assert log[f"loss:{a}"] == pytest.approx(own.mean().item(), rel=1e-5, nan_ok=True)
    assert not objective.seen.any()


@pytest.mark.parametrize(("kind", "strength"), [(Parity, 0.5), (Detached, 0.5), (GroupDRO, 0.5)])
def test_an_interrupted_finetune_ends_as_the_uninterrupted_one(tmp_path, kind, strength):
    """Stopped in the third epoch and taken up again: weights, state and log, bit for bit."""
    whole, again = kind(strength, 2, temperature=T), kind(strength, 2, temperature=T)
    network, log = finetune(whole, epochs=4)
    checkpoint = tmp_path / "checkpoint"
    with pytest.raises(KeyboardInterrupt):
        stopping = interrupted(kind, 2 * 6 + 3)
        finetune(stopping(strength, 2, temperature=T), epochs=4, checkpoint=checkpoint)
    resumed, continued = finetune(again, epochs=4, checkpoint=checkpoint)
    assert torch.equal(weights(network), weights(resumed))
    assert log.equals(continued)
    for (name, state), other in zip(whole.state().items(), again.state().values(), strict=True):
        assert torch.equal(state, other), name


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_is_plain_tensors(kind):
    """A checkpoint is read without running code from it."""
    make, _ = KINDS[kind]
    objective, buffer = make(GROUPS), io.BytesIO()
    objective.loss(linear_batch(torch.from_numpy(W)))
    objective.end_epoch()
    torch.save(objective.state(), buffer)
    buffer.seek(0)
    found = torch.load(buffer, weights_only=True)
    other = make(GROUPS)
    other.restore(found)
    assert all(
        torch.equal(a, b) for a, b in zip(found.values(), other.state().values(), strict=True)
    )
    losses = [o.loss(linear_batch(torch.from_numpy(W))) for o in (objective, other)]
    assert torch.equal(*losses)


def test_the_log_shows_the_multipliers_as_they_were_used():
    """0 in the first epoch, then what they had grown to."""
    _, log = finetune(Parity(0.5, 2, temperature=T), epochs=3)
    for a in range(2):
        grown = log[f"multiplier:{a}"] + 0.5 * log[f"violation:{a}"]
        assert log[f"multiplier:{a}"][0] == 0
        for used, before in pairwise([*log[f"multiplier:{a}"], None]):
            assert before is None or before > used
        np.testing.assert_allclose(log[f"multiplier:{a}"][1:], grown[:-1], rtol=1e-6)
