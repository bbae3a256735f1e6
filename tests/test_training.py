"""The loop, the objectives and SNL's descent."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from relufair import masks, models, tracing, training
from relufair.data import GroupedImages
from relufair.linearize import snl
from relufair.objectives import Batch, CrossEntropy, Distillation, Objective
from relufair.training import Samples

CPU = torch.device("cpu")


def images(n=96, seed=0):
    """Three classes of bright squares at different places; two groups."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    pictures = rng.integers(0, 90, (n, 1, 16, 16), dtype=np.uint8)
    for i, label in enumerate(labels):
        pictures[i, 0, 5 * label : 5 * label + 5] += 120
    groups = (labels == 2).astype(np.int64)
    return GroupedImages(pictures, labels, groups, np.arange(n), ("a", "b", "c"), ("x", "y"))


def samples(n=96):
    return Samples.put(images(n), images(n), CPU)


def net(seed=0):
    return models.build("resnet18", classes=3, channels=1, width=2, seed=seed)


def weights(network):
    return torch.cat([v.flatten().double() for v in network.state_dict().values()])


def test_training_learns_and_logs():
    """An easy problem is solved; the log has a row an epoch with the rate of the schedule."""
    data, network = samples(), net()
    log = training.fit(
        network, data, CrossEntropy(), training.sgd(network, 0.05, 0.0),
        epochs=8, batch=16, seed=(0,), decay=training.step_decay,
    )  # fmt: skip
    right = training.logits(network, data).argmax(1) == data.labels
    assert right.float().mean() > 0.9
    assert log["epoch"].tolist() == list(range(1, 9))
    np.testing.assert_allclose(log["lr"], 0.05 * np.array([1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01]))


def interrupted(kind, at):
    """Objectives of ``kind`` that are interrupted after ``at`` steps."""

    class Interrupted(kind):
        steps = 0

        def after_step(self):
            self.steps += 1
            if self.steps == at:
                raise KeyboardInterrupt
            return False

    return Interrupted


@pytest.mark.parametrize("flip", [False, True])
def test_an_interrupted_training_ends_as_the_uninterrupted_one(tmp_path, flip):
    """Stopped in the middle of the third epoch and taken up again: the same weights, bit for bit."""

    def run(objective, checkpoint=None):
        network = net()
        optimizer = training.adam(network, 1e-3, 1e-3)
        log = training.fit(
            network, samples(), objective, optimizer, epochs=4, batch=16, seed=(3,),
            decay=training.cosine, flip=flip, checkpoint=checkpoint,
        )  # fmt: skip
        return weights(network), log

    whole, log = run(CrossEntropy())
    with pytest.raises(KeyboardInterrupt):
        run(interrupted(CrossEntropy, 2 * 6 + 3)(), tmp_path / "checkpoint")
    resumed, again = run(CrossEntropy(), tmp_path / "checkpoint")
    assert torch.equal(whole, resumed)
    assert log.equals(again)


def test_seeds_decide_everything():
    """Same seed, same weights; another order of batches, others."""

    def train(seed):
        network = net()
        optimizer = training.sgd(network, 0.05, 0.0)
        training.fit(
            network, samples(), CrossEntropy(), optimizer, epochs=1, batch=16, seed=(seed,)
        )
        return weights(network)

    assert torch.equal(train(1), train(1))
    assert not torch.equal(train(1), train(2))


def test_a_loss_that_is_no_number_is_an_error():
    """Training that diverges is not reported as a result."""
    network = net()
    with pytest.raises(FloatingPointError, match="the loss is"):
        training.fit(
            network, samples(), CrossEntropy(), training.sgd(network, 1e30, 0.0),
            epochs=3, batch=16, seed=(0,),
        )  # fmt: skip


@given(st.integers(2, 300), st.integers(2, 64), st.integers(0, 5))
def test_batches_are_even_distinct_and_nearly_all(n, size, seed):
    """No sample twice in an epoch; only less than a batch is left out."""
    drawn = list(training.batches(n, size, np.random.default_rng(seed)))
    used = np.concatenate(drawn)
    assert len({len(b) for b in drawn}) == 1 and len(drawn[0]) % 2 == 0
    assert len(set(used)) == len(used) > n - max(len(drawn[0]), 2)


def test_logits_are_those_of_the_network_in_evaluation_mode():
    """In any batch size, normalised by the training set's statistics; mirrored on request."""
    data, network = samples(), net().eval()
    mean, std = images().statistics()
    x = (data.images.double() / 255 - mean[0]) / std[0]
    with torch.no_grad():
        expected, mirrored = network(x.float()), network(x.float().flip(3))
    torch.testing.assert_close(
        training.logits(network, data, size=7), expected, rtol=1e-4, atol=1e-5
    )
    found = training.logits(network, data, mirrored=True)
    torch.testing.assert_close(found, mirrored, rtol=1e-4, atol=1e-5)


def test_the_teacher_sees_what_the_student_sees():
    """With flips, each sample meets the teacher's logits of its own version."""

    class Watch(Objective):
        def loss(self, batch):
            with torch.no_grad():
                expected = reference(seen["x"])
            torch.testing.assert_close(batch.teacher, expected, rtol=1e-4, atol=1e-4)
            seen["batches"] += 1
            return batch.logits.sum()

    data, reference, student = samples(), net(7).eval(), net(8)
    both = [training.logits(reference, data, mirrored=m) for m in (False, True)]
    taught = Samples(**vars(data) | {"teacher": torch.stack(both)})
    seen = {"batches": 0}
    student.register_forward_pre_hook(lambda _, args: seen.update(x=args[0]))
    training.fit(
        student, taught, Watch(), training.sgd(student, 0.0, 0.0), epochs=1, batch=16, seed=(0,),
        flip=True,
    )  # fmt: skip
    assert seen["batches"] == 6


def test_distillation_is_its_formula():
    """CE + T² KL(teacher || student), by hand in double precision."""
    z, t = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    y, temperature = torch.tensor([0, 1, 2, 3, 0]), 4.0
    p, q = (t / temperature).softmax(1), (z / temperature).softmax(1)
    expected = -z.log_softmax(1)[range(5), y].mean()
    expected += temperature**2 * (p * (p / q).log()).sum(1).mean()
    loss = Distillation(temperature).loss(Batch(z, y, y, y, t))
    torch.testing.assert_close(loss, expected)


def test_schedules():
    """Ends and middles of the decays."""
    assert [training.step_decay(e, 160) for e in (0, 79, 80, 119, 120)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01]
    )
    assert training.cosine(0, 10) == 1 and training.cosine(5, 10) == pytest.approx(0.5)
    assert training.cosine(10, 10) == pytest.approx(0, abs=1e-15)


def test_optimizers_split_masks_from_weights():
    """The masks have their own rate and no weight decay anywhere."""
    network = tracing.masked(net(), (1, 16, 16))
    optimizer = training.adam(network, 1e-3, 5e-3)
    ours, masks_group = optimizer.param_groups
    assert {id(p) for p in masks_group["params"]} == {
        id(s.alpha) for s in masks.sites(network).values()
    }
    assert (ours["lr"], masks_group["lr"]) == (1e-3, 5e-3)
    everything = sum(len(g["params"]) for g in optimizer.param_groups)
    assert everything == len(list(network.parameters()))


# SNL ---------------------------------------------------------------------------------------------


def descend(
    budgets, *, crossings=None, growth=1.15, lasso=1e-3, epochs=60, checkpoint=None, **other
):
    """A descent on the easy problem; returns what was handed out at each crossing."""
    data = samples()
    network = tracing.masked(net(), (1, 16, 16))
    taught = Samples(**vars(data) | {"teacher": training.logits(network, data)[None]})
    found = {}

    def keep(units, kept, count, step):
        found[units] = (count, step, {k: v.clone() for k, v in kept.items()}, weights(network))

    descent = snl.Descent(
        network, budgets, keep, crossings=crossings or {}, temperature=4.0, lasso=lasso,
        growth=growth, rule=other.get("rule", "every"), threshold=1e-2,
    )  # fmt: skip
    log = training.fit(
        network, taught, descent, training.adam(network, 1e-3, 5e-3), epochs=epochs, batch=16,
        seed=(0, 1), checkpoint=checkpoint,
    )  # fmt: skip
    return found, log, descent


def test_one_descent_equals_separate_descents():
    """Each budget's snapshot is what a descent to that budget alone finds: masks and weights."""
    together, *_ = descend([1900, 1000, 200])
    for units in (1900, 1000, 200):
        alone, *_ = descend([units])
        assert alone[units][:2] == together[units][:2]
        assert torch.equal(alone[units][3], together[units][3])
        for site, kept in alone[units][2].items():
            assert torch.equal(kept, together[units][2][site])


def test_a_fall_below_the_budget_is_made_up():
    """Where one step takes the count far below, the budget is still kept, and the count is told."""
    found, *_ = descend([1900], lasso=0.05, growth=1.3)
    count, _, kept, _ = found[1900]
    assert count < 1000
    assert sum(int(k.sum()) for k in kept.values()) == 1900


def test_snapshots_are_exact_nested_and_in_order():
    """Exactly as many as asked for; larger budgets are crossed earlier."""
    found, log, descent = descend([200, 1900, 1000])
    assert list(found) == [1900, 1000, 200]
    for units, (count, _, kept, _) in found.items():
        assert sum(int(k.sum()) for k in kept.values()) == units
        assert 0.9 * units <= count <= units
    steps = [step for _, step, *_ in found.values()]
    assert steps == sorted(steps) and len(set(steps)) == 3
    assert log["kept"].is_monotonic_decreasing
    assert not descent.pending


def test_an_interrupted_descent_goes_on(tmp_path):
    """From the checkpoint of an ended descent, a lower budget is found as if asked for at once."""
    whole, *_ = descend([1900, 500])
    descend([1900], checkpoint=tmp_path / "c")
    later, *_ = descend([500], checkpoint=tmp_path / "c")
    assert later[500][:2] == whole[500][:2]
    assert torch.equal(later[500][3], whole[500][3])


def test_budgets_crossed_in_one_step_are_an_error():
    """Their networks would be the same."""
    with pytest.raises(RuntimeError, match="1000, 1001 ReLUs were crossed in one step"):
        descend([1001, 1000])
    with pytest.raises(RuntimeError, match="crossed in one step"):
        snl.check_apart({5: 10, 7: 12, 9: 10})
    snl.check_apart({5: 10, 7: 12})
    snl.check_apart({})


@pytest.mark.parametrize(
    ("rule", "counts", "grown"),
    [
        ("every", [9, 8, 7], [1, 1, 1]),
        # From the fifth epoch on, only after an epoch without a new lowest count.
        ("stagnation", [9, 9, 9, 9, 9, 8, 8, 7, 7], [0, 0, 0, 0, 1, 0, 1, 0, 1]),
    ],
)
def test_growth_rules(monkeypatch, rule, counts, grown):
    """The penalty after each epoch, against a computation by hand."""
    network = tracing.masked(models.MLP(2, (10,), 2), (2,))
    descent = snl.Descent(
        network, [1], print, crossings={}, temperature=4, lasso=1.0, growth=2.0, rule=rule,
        threshold=0.01,
    )  # fmt: skip
    for i, count in enumerate(counts):
        monkeypatch.setattr(masks, "count", lambda *_, count=count: count)
        descent.end_epoch()
        assert descent.lasso == 2.0 ** sum(grown[: i + 1]), f"epoch {i + 1}"


def test_the_penalty_is_the_lasso():
    """Distillation plus lambda times the sum of all masks' absolute values."""
    network = tracing.masked(models.MLP(2, (10, 6), 2), (2,))
    next(iter(masks.sites(network).values())).alpha.data.fill_(-0.5)
    descent = snl.Descent(
        network, [1], print, crossings={}, temperature=4, lasso=0.1, growth=1, rule="every",
        threshold=0.01,
    )  # fmt: skip
    z = torch.randn(4, 2)
    y = torch.tensor([0, 1, 0, 1])
    batch = Batch(z, y, y, y, torch.randn(4, 2))
    penalty = descent.loss(batch) - Distillation(4).loss(batch)
    assert math.isclose(penalty.item(), 0.1 * (10 * 0.5 + 6), rel_tol=1e-5)
