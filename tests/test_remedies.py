"""The remedies by name: their weights, averages, refusals, and their place among the stages."""

import copy
import json
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_study import QUICK
from test_training import samples

from relufair import config, methods, objectives, remedies, training
from relufair.config import PLAIN, REMEDIES, Remedy
from relufair.data import Choice
from relufair.objectives import Batch, Distillation
from relufair.pipeline import VERSIONS, Run
from relufair.remedies import Averaging
from relufair.store import Store, key_of
from relufair.training import Samples

SIZES = (60, 30, 6)  # of the groups, out of 96


def unequal():
    """The samples of ``test_training`` in three groups of unequal sizes."""
    groups = torch.arange(3).repeat_interleave(torch.tensor(SIZES))
    return Samples(**vars(samples()) | {"groups": groups})


def made(name, strength=0.0, data=None, first=None, **about):
    """The objective of a remedy on ``data``, with the loss of SNL's finetune."""
    data = data or unequal()
    groups = int(data.groups.max()) + 1
    return remedies.objective(
        Remedy(name, strength, **about), data, 3, groups, first, temperature=4
    )


def random_batch(n=96):
    rng = torch.Generator().manual_seed(0)
    z, teacher = torch.randn(2, n, 3, generator=rng)
    index = torch.randperm(96, generator=rng)[:n]
    data = unequal()
    return Batch(z, data.labels[index], data.groups[index], index, teacher)


# Names, strengths, refusals ----------------------------------------------------------------------


def test_every_remedy_is_what_it_is_called():
    """The class of each, and the strength where it belongs."""
    found = {name: made(name, (*grid, 0.0)[0], first=blind) for name, grid in REMEDIES.items()}
    assert {name: type(o).__name__ for name, o in found.items()} == {
        "plain": "Distillation", "algorithm1": "Parity", "one_sided": "OneSided",
        "detached": "Detached", "group_dro": "GroupDRO", "inverse_frequency": "Weighted",
        "class_balanced": "Weighted", "logit_adjustment": "LogitAdjusted", "cvar": "CVaR",
        "jtt": "Weighted", "swa": "Distillation",
    }  # fmt: skip
    for name in ("algorithm1", "one_sided", "detached"):
        assert found[name].mu == 0.01
    assert (found["group_dro"].eta, found["cvar"].share) == (0.01, 0.2)
    for objective in found.values():
        assert (objective.temperature, objective.hard, objective.soft) == (4, 1, 1)


def blind():
    """A network that says class 0 to everything."""
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 3))
    torch.nn.init.zeros_(net[1].weight)
    net[1].bias.data = torch.tensor([1.0, 0.0, 0.0])
    return net


def test_the_grids_are_allowed():
    """Each value tried on validation data makes a remedy; a whole number is the same as a float."""
    tried = [Remedy(name, strength) for name, grid in REMEDIES.items() for strength in grid]
    assert len({str(r) for r in tried}) == len(tried) == 30
    assert repr(Remedy("jtt", 2)) == repr(Remedy("jtt", 2.0))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("magic",), "remedy='magic': allowed are plain, algorithm1, one_sided"),
        (("plain", 1.0), "strength of plain=1.0: allowed are 0"),
        (("plain", 0.0, 1), "per_class=1: must be true or false"),
        (("algorithm1", -0.1), "strength of algorithm1=-0.1: must be a finite .* of at least 0$"),
        (("one_sided", float("nan")), "strength of one_sided=nan: must be a finite number"),
        (("detached", float("inf")), "strength of detached=inf: must be a finite number"),
        (("group_dro", "0.1"), "strength of group_dro='0.1': must be a finite number"),
        (("inverse_frequency", True), "strength of inverse_frequency=True: must be a finite number"),
        (("class_balanced", 1.0), "strength of class_balanced=1.0: .* at most 0.999999$"),
        (("logit_adjustment", -1), "strength of logit_adjustment=-1: must .* at least 0$"),
        (("cvar", 0.0), "strength of cvar=0.0: must .* at least 0.001 and at most 1$"),
        (("cvar", 1.5), "strength of cvar=1.5: must .* at least 0.001 and at most 1$"),
        (("jtt", 0.5), "strength of jtt=0.5: must .* at least 1$"),
        (("swa", 1.1), "strength of swa=1.1: must .* at least 0 and at most 1$"),
    ],
)  # fmt: skip
def test_impossible_remedies_are_refused(args, message):
    """Name, value, and what is allowed."""
    with pytest.raises(ValueError, match=message):
        Remedy(*args)


def test_a_remedy_in_words():
    assert str(PLAIN) == "plain"
    assert str(Remedy("algorithm1", 0.1)) == "algorithm1 0.1"
    assert str(Remedy("detached", 1, per_class=True)) == "detached 1, KD/C"


# Weights and losses by hand ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["plain", "algorithm1", "cvar", "swa"])
@pytest.mark.parametrize("per_class", [False, True])
def test_distillation_is_averaged_over_samples_or_over_classes_too(name, per_class):
    """T² KL as its sum over classes, or, as in the released mitigation, its mean over them."""
    batch, share = random_batch(), 1.0 if name == "cvar" else 0.5
    objective = made(name, 0.0 if name == "plain" else share, per_class=per_class)
    ours, theirs = F.log_softmax(batch.logits / 4, 1), F.softmax(batch.teacher / 4, 1)
    kl = F.kl_div(ours, theirs, reduction="none")
    kl = kl.mean() if per_class else kl.sum(1).mean()
    expected = F.cross_entropy(batch.logits, batch.labels) + 16 * kl
    torch.testing.assert_close(objective.loss(batch), expected)


def test_weights_by_group_are_their_formulas():
    """Of mean 1 over the training set; their ratios by hand."""
    data = unequal()
    for power in (0.25, 0.5, 1.0):
        weights = made("inverse_frequency", power).weights
        for group, size in enumerate(SIZES):
            torch.testing.assert_close(
                weights[data.groups == group] / weights[0],
                torch.full((size,), (60 / size) ** power), rtol=1e-5, atol=0,
            )  # fmt: skip
        assert weights.mean().item() == pytest.approx(1, abs=1e-6)
    for beta in (0.5, 0.99, 0.9999, 0.999999):
        effective = [sum(beta**i for i in range(size)) for size in SIZES]  # (1 − βⁿ) / (1 − β)
        weights = made("class_balanced", beta).weights
        for group, count in enumerate(effective):
            own = weights[data.groups == group] / weights[0]
            torch.testing.assert_close(own, own.new_full(own.shape, effective[0] / count))
        assert weights.mean().item() == pytest.approx(1, abs=1e-6)
    every = made("inverse_frequency", 1.0)
    batch = random_batch()
    torch.testing.assert_close(
        every.loss(batch),
        torch.stack([every.each(batch)[batch.groups == a].mean() for a in range(3)]).mean(),
    )


@pytest.mark.parametrize(
    ("name", "strength", "equal"),
    [
        ("inverse_frequency", 0.0, False), ("inverse_frequency", 1.0, True),
        ("class_balanced", 0.0, False), ("class_balanced", 0.999, True), ("jtt", 1.0, False),
    ],
)  # fmt: skip
def test_weights_without_strength_or_need_are_one(name, strength, equal):
    """Where nothing is asked for, or all groups are equally large: the plain loss."""
    data = unequal()
    if equal:
        data = Samples(**vars(data) | {"groups": torch.arange(96) % 3})
    objective, batch = made(name, strength, data, blind), random_batch()
    torch.testing.assert_close(objective.weights, torch.ones(96))
    torch.testing.assert_close(objective.loss(batch), Distillation(4).loss(batch))


def test_a_group_that_training_lacks_changes_no_weight():
    """Its size of 0 divides nothing."""
    data = unequal()
    for name, strength in (("inverse_frequency", 1.0), ("class_balanced", 0.99)):
        fewer, more = (
            remedies.objective(Remedy(name, strength), data, 3, k, None, temperature=4).weights
            for k in (3, 5)
        )
        assert torch.equal(fewer, more) and torch.isfinite(fewer).all()


def test_jtt_weighs_what_the_first_network_gets_wrong():
    """Twice wrong to once right among the labels 0, 1, 2: weights 1 and 5, of mean 11/3."""
    weights, labels = made("jtt", 5.0, first=blind).weights, samples().labels
    torch.testing.assert_close(weights, torch.where(labels == 0, 3 / 11, 15 / 11))


def test_only_jtt_asks_for_the_first_network():
    def refuse():
        pytest.fail("it was asked for")

    for name, grid in REMEDIES.items():
        if name != "jtt":
            made(name, (*grid, 0.0)[0], first=refuse)


def test_logit_adjustment_takes_the_shares_of_training():
    labels = torch.arange(3).repeat_interleave(torch.tensor([48, 36, 12]))
    data = Samples(**vars(unequal()) | {"labels": labels})
    torch.testing.assert_close(
        made("logit_adjustment", 1.5, data).shift, 1.5 * torch.tensor([0.5, 0.375, 0.125]).log()
    )


# Weight averaging --------------------------------------------------------------------------------


class Watching(Averaging):
    """Keeps a copy of the network after each epoch; stops where it is told."""

    stop, steps = None, 0

    def after_step(self):
        self.steps += 1
        if self.steps == self.stop:
            raise KeyboardInterrupt
        return False

    def end_epoch(self):
        seen = super().end_epoch()
        self.nets = [*getattr(self, "nets", []), copy.deepcopy(self.net)]
        return seen


def average(start, epochs=4, stop=None, checkpoint=None):
    """A small network trained with weight averaging on samples that lie sorted by label."""
    data = samples()
    data = Samples(**vars(data.take(data.labels.argsort(stable=True))))
    data.teacher = torch.zeros(1, len(data), 3)
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3, stride=2), torch.nn.BatchNorm2d(4), torch.nn.ReLU(),
        torch.nn.Flatten(), torch.nn.Linear(196, 3),
    )  # fmt: skip
    objective = Watching(Distillation(4), net, start, epochs)
    objective.stop = stop
    training.fit(
        net, data, objective, training.sgd(net, 0.02, 0.0), epochs=epochs, batch=32, seed=(0,),
        checkpoint=checkpoint,
    )  # fmt: skip
    objective.finish(data, 32)
    return net, objective, data


@pytest.mark.parametrize(
    ("start", "counted"),
    [(0.0, [0, 1, 2, 3]), (0.5, [2, 3]), (0.6, [2, 3]), (0.75, [3]), (1.0, [3])],
)
def test_the_average_is_of_the_epochs_from_the_start_on(start, counted):
    """Each parameter's mean by hand; the epochs differ."""
    net, objective, _ = average(start)
    for name, found in net.named_parameters():
        late = [objective.nets[i].get_parameter(name) for i in counted]
        torch.testing.assert_close(found, torch.stack(late).mean(0), rtol=1e-5, atol=1e-7)
    outer = [objective.nets[i][4].weight for i in range(4)]
    assert all(not torch.equal(*pair) for pair in pairwise(outer))


def test_a_share_of_the_epochs_is_not_lost_to_rounding():
    """29 of 100 are 29, though 0.29 * 100 is a little less."""
    net = torch.nn.Linear(1, 1)
    assert Averaging(Distillation(4), net, 0.29, 100).first == 29


def test_the_statistics_are_those_of_the_mean_weights():
    """The mean over random batches of each batch's mean and variance, by hand; not of sorted ones."""
    net, _, data = average(0.5)
    mixed = list(training.batches(96, 32, np.random.default_rng(0)))
    assert all(len(set(data.labels[i].tolist())) == 3 for i in mixed)
    with torch.no_grad():
        x = [net[0](data.inputs(torch.from_numpy(i))).transpose(0, 1).flatten(1) for i in mixed]
    means, variances = (torch.stack(s).mean(0) for s in zip(*((v.mean(1), v.var(1)) for v in x)))  # noqa: B905
    torch.testing.assert_close(net[1].running_mean, means)
    torch.testing.assert_close(net[1].running_var, variances)
    every = torch.cat(x, 1)
    torch.testing.assert_close(net[1].running_var, every.var(1), rtol=0.02, atol=0)
    assert net.training


def test_an_interrupted_average_ends_as_the_uninterrupted_one(tmp_path):
    """Stopped in the last epoch but one, and after the last: bit for bit."""
    whole, _, _ = average(0.25)
    for stop in (3 * 2 + 2, 3 * 3 + 1):
        checkpoint = tmp_path / str(stop)
        with pytest.raises(KeyboardInterrupt):
            average(0.25, stop=stop, checkpoint=checkpoint)
        assert training.read_checkpoint(checkpoint)["objective"]["epoch"] == (stop - 1) // 3
        resumed, _, _ = average(0.25, checkpoint=checkpoint)
        again, _, _ = average(0.25, checkpoint=checkpoint)
        for name, value in whole.state_dict().items():
            assert torch.equal(value, resumed.state_dict()[name]), name
            assert torch.equal(value, again.state_dict()[name]), name


# Among the stages --------------------------------------------------------------------------------

PLAN = QUICK | {"finetune_epochs": 2, "student_epochs": 2}
HALF = 1920  # units of 3,840


def run_of(remedy=PLAIN, method="snl", groups="auto", **training):
    """A run on the digits at half of the ReLUs."""
    choice, plan = Choice("digits", groups=groups), config.schedule("ci", PLAN | training)
    return Run(choice.resolve(), "resnet18", 2, method, (0.5,), plan, 0, remedy)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """One store for all, so that they share a teacher."""
    return Store(tmp_path_factory.mktemp("store"))


def pipe(store, *args, **about):
    return methods.pipeline(run_of(*args, **about), store, None)


# Methods whose masks take no search.
CHEAP = ("random", "deepreduce")


@pytest.mark.parametrize("method", ["snl", "deepreduce"])
def test_each_remedy_has_its_own_key_and_plain_the_one_it_had(method):
    """Without reading any data: the key takes in remedy, strength, distillation and groups."""
    others = [Remedy(name, s) for name, grid in REMEDIES.items() for s in grid]
    others += [Remedy("plain", per_class=True), Remedy("algorithm1", 0.1, per_class=True)]

    def configuration(remedy, groups="auto"):
        found = pipe(Store("unused"), remedy, method, groups)
        found.splits = type("Splits", (), {"digest": "d"})  # the base takes them from here
        for one in (found, found.plain):
            one.chosen = {9: "C1"}
        return found.linear_config(9)

    plain = configuration(PLAIN)
    stage = {"snl": "finetune", "deepreduce": "student"}[method]
    own = {"snl": {"snapshot", "objective"}, "deepreduce": {"teacher", "code"}}[method]
    assert set(plain) == own | set(run_of().schedule.part(stage))
    assert plain == configuration(PLAIN, "label") == configuration(Remedy("plain", 0))
    every = [plain, *map(configuration, others), *(configuration(r, "label") for r in others)]
    assert len({json.dumps(c, sort_keys=True) for c in every}) == 1 + 2 * 32
    for remedy in others:
        found = configuration(remedy)
        assert plain.items() <= found.items()
        parent = found.get(stage)
        if remedy.name == "jtt":
            assert parent == key_of(stage, VERSIONS[stage], plain)
        else:
            assert parent is None


@pytest.mark.parametrize("method", CHEAP)
@pytest.mark.parametrize("remedy", [Remedy("algorithm1", 0.0), Remedy("detached", 1000.0)])
def test_without_strength_or_gradient_the_network_is_the_plain_one(store, method, remedy):
    """From the store, weights and statistics bit for bit; another remedy's are others."""
    plain, remedied = pipe(store, PLAIN, method), pipe(store, remedy, method)
    first, second = plain.linear(HALF), remedied.linear(HALF)
    assert plain.identity(HALF) != remedied.identity(HALF)
    assert set(first.arrays) == set(second.arrays)
    assert all(np.array_equal(first.arrays[name], second.arrays[name]) for name in first.arrays)
    pulled = pipe(store, Remedy("algorithm1", 1.0), method).linear(HALF)
    assert not all(np.array_equal(first.arrays[n], pulled.arrays[n]) for n in first.arrays)
    grown = pulled.tables["log"][["multiplier:0", "multiplier:1"]]
    assert (grown.iloc[0] == 0).all() and (grown.iloc[1] > 0).any()


@pytest.mark.parametrize("method", CHEAP)
def test_a_remedied_run_is_compared_with_the_plain_one(store, method):
    """Group by group, the base is what the plain network of the same budget gets right."""
    plain, remedied = pipe(store, PLAIN, method), pipe(store, Remedy("algorithm1", 1.0), method)
    for split in ("test", "validation"):
        check_base(plain, remedied, split)


def check_base(plain, remedied, split):
    """The tally of ``remedied`` against the predictions of both."""
    usual, found = (p.measure(split).set_index(["budget", "group"]) for p in (plain, remedied))
    assert found["base"].to_dict() == usual["correct"].to_dict()
    assert found["relus"].to_dict() == usual["relus"].to_dict()
    teacher = found.loc[1.0]
    assert (teacher["correct"] == teacher["base"]).all()
    assert usual.loc[0.5, "base"].to_dict() == usual.loc[1.0, "correct"].to_dict()
    assert usual.loc[0.5, "base"].to_dict() != usual.loc[0.5, "correct"].to_dict()
    images = [remedied.predictions(HALF), plain.predictions(HALF)]
    ours, theirs = (
        (i["prediction"] == i["label"])[i["split"] == split].to_numpy()
        for i in (a.tables["images"] for a in images)
    )
    assert found.loc[0.5, "correct"].sum() == ours.sum()
    assert found.loc[0.5, "both"].sum() == (ours & theirs).sum()


def test_predictions_of_each_remedy_are_kept_apart(store):
    """A remedied run takes nothing from, and writes nothing over, the plain one's."""
    plain, remedied = (pipe(store, r, "random") for r in (PLAIN, Remedy("swa", 0.5)))
    before = plain.predictions(HALF).tables["images"]
    after = remedied.predictions(HALF).tables["images"]
    assert not before["margin"].equals(after["margin"])
    assert pipe(store, PLAIN, "random").predictions(HALF).tables["images"].equals(before)
    assert remedied.predictions(None).facts == plain.predictions(None).facts


def test_averaging_is_at_a_constant_rate_and_ends_with_new_statistics(store):
    """One pass of batches makes the statistics, and not the training's passes."""
    swa, plan = pipe(store, Remedy("swa", 0.5), "random"), run_of().schedule
    network = swa.linear(HALF)
    assert (network.tables["log"]["lr"] == plan.finetune_lr).all()
    seen = network.arrays["bn1.num_batches_tracked"]
    assert seen == len(swa.samples) // plan.finetune_batch


@pytest.fixture
def asked(monkeypatch):
    """What the training loop is asked for, instead of any training; masks of a tenth are there."""

    class Enough(Exception):
        pass

    def ask(pipeline):
        seen = {}

        def fit(net, data, objective, optimizer, **about):
            seen.update(net=net, objective=objective, optimizer=optimizer, **about)
            raise Enough

        monkeypatch.setattr(training, "fit", fit)
        with pytest.raises(Enough):
            pipeline.linear(HALF)
        monkeypatch.undo()
        return seen

    return ask


def test_a_remedy_takes_the_place_of_deepreduces_loss(store, asked):
    """T = 1, half and half; epochs, batches, seed, rate and first weights are the plain ones."""
    pipe(store, PLAIN, "deepreduce").teacher()
    plain, remedied = (
        asked(pipe(store, remedy, "deepreduce", "label", student_epochs=3))
        for remedy in (PLAIN, Remedy("algorithm1", 0.3))
    )
    objective = remedied["objective"]
    assert type(plain["objective"]) is Distillation and type(objective) is objectives.Parity
    for one in (plain["objective"], objective):
        assert (one.temperature, one.hard, one.soft) == (1.0, 0.5, 0.5)
    assert objective.mu == 0.3 and len(objective.multipliers) == 10
    for name in ("epochs", "batch", "seed", "decay", "flip"):
        assert remedied[name] == plain[name], name
    assert remedied["seed"] == (0, 3) and remedied["epochs"] == 3
    assert remedied["optimizer"].defaults == plain["optimizer"].defaults
    both = zip(
        plain["net"].state_dict().items(), remedied["net"].state_dict().values(), strict=True
    )
    assert all(torch.equal(value, other) for (_, value), other in both)


def test_the_distillation_by_class_divides_deepreduces_share(store, asked):
    pipe(store, PLAIN, "deepreduce").teacher()
    found = asked(pipe(store, Remedy("plain", per_class=True), "deepreduce"))["objective"]
    assert (found.hard, found.soft) == (0.5, 0.05)


@pytest.mark.parametrize("method", CHEAP)
def test_jtt_weighs_by_the_plain_network(store, asked, method):
    """What that network, stored, gets wrong of the training set counts five times as much."""
    plain = pipe(store, PLAIN, method)
    wrong = training.logits(plain.net(HALF), plain.samples).argmax(1) != plain.samples.labels
    assert 0 < wrong.sum() < len(wrong)
    weights = asked(pipe(store, Remedy("jtt", 5.0), method))["objective"].weights
    torch.testing.assert_close(weights[wrong] / weights[~wrong][0], torch.full((wrong.sum(),), 5.0))
    assert weights.mean().item() == pytest.approx(1, abs=1e-5)


def test_a_remedy_needs_no_other_search(store, asked):
    """SNL's masks, found once, serve every remedy; its loss is SNL's, at T = 4."""
    plain = pipe(store, PLAIN)
    snapshots = plain.snapshots
    found = asked(pipe(store, Remedy("one_sided", 0.1)))
    assert found["objective"].temperature == 4 and found["seed"] == (0, 2)
    kept = {k: v for k, v in found["net"].state_dict().items() if k.endswith(".alpha")}
    for name, alpha in kept.items():
        assert np.array_equal(alpha.numpy() > 0, snapshots[HALF].arrays[name] > 0)
