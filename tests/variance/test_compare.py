"""Measured figures of many estimators against exact ones, their intervals, and what is refused.

Measured in float32: what is equal but for rounding is equal to 1e-5 of the largest term, to 1e-4 after a division by
the scale.
"""

import csv
import dataclasses
import io
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console
import tiny
from problems import least_hits

from jaxrl_llm.advantages import (
    AdvantageTransform,
    bare_rollout,
    chain,
    group_mean,
    group_std,
    leave_one_out,
    no_baseline,
)
from jaxrl_llm.advantages.baselines.energy_weighted import energy_weighted
from jaxrl_llm.advantages.baselines.greedy import greedy
from jaxrl_llm.advantages.baselines.length_weighted import length_weighted
from jaxrl_llm.advantages.baselines.other_prompts_mean import other_prompts_mean
from jaxrl_llm.losses.aggregate import answer_mean, answer_sum
from jaxrl_llm.losses.objective import Objective
from jaxrl_llm.losses.penalties import Penalty, k1
from jaxrl_llm.losses.surrogates import reinforce
from jaxrl_llm.losses.tokens import bare_tokens
from jaxrl_llm.sharding import MeshShape, by_prompt, make_mesh, place, replicated
from jaxrl_llm.variance import empirical_backends, empirical_compare
from jaxrl_llm.variance.credit import Estimator, picked
from jaxrl_llm.variance.empirical import score_gram, tokens_at
from jaxrl_llm.variance.empirical_compare import compare, compare_scores, unit_products
from jaxrl_llm.variance.empirical_units import Settings, only_valid, units_of
from jaxrl_llm.variance.exact import moments
from jaxrl_llm.variance.gram import gram_of
from jaxrl_llm.variance.tables import OutcomeTable

ESTIMATORS = {
    "rloo": Estimator(leave_one_out()),
    "group mean": Estimator(group_mean()),
    "grpo": Estimator(chain(group_mean(), group_std(ddof=1, eps=1e-4))),
    "energy": Estimator(energy_weighted(leave_one_out=False)),
    "opo": Estimator(length_weighted(leave_one_out=False)),
}
OUTCOMES, D, PROMPTS, GROUP, T = 6, 24, 160, 3, 4
REPETITIONS = 200
FIELDS = ("trace_var", "mse", "mse_rescaled", "scale", "cos", "bias_norm", "snr", "useful_snr")


def policies(count=4, signal=1.0, dim=D, seed=0):
    """Tables of random answers to several prompts, over the same parameters."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=dim)
    for _ in range(count):
        features, probs = rng.normal(size=(OUTCOMES, dim)), rng.dirichlet(3 * np.ones(OUTCOMES))
        rewards = rng.normal(size=OUTCOMES) + signal * features @ common / dim**0.5
        lengths = [T, *rng.integers(1, T + 1, OUTCOMES - 1)]
        yield OutcomeTable(probs, features - probs @ features, rewards, lengths)


@pytest.fixture(scope="module")
def pool():
    with jax.enable_x64(True):
        return list(policies())


def frozen(tables, answers, seed):
    """A sampled batch: its Gram matrix and what is known of its answers."""
    rng = np.random.default_rng(seed)
    prompt = rng.integers(0, len(tables), PROMPTS)
    drawn = np.stack([rng.choice(OUTCOMES, answers, p=np.asarray(tables[x].probs)) for x in prompt])
    with jax.enable_x64(True):
        of = lambda name: np.stack([np.asarray(getattr(t, name)) for t in tables])[prompt[:, None], drawn]  # noqa: E731
        rewards, scores, lengths, energy = (of(name) for name in ("rewards", "scores", "lengths", "energy"))
    acted = jnp.asarray(np.arange(T) < lengths[..., None])
    rollout = bare_rollout(jnp.asarray(rewards, jnp.float32), acted=acted, energy=jnp.asarray(energy, jnp.float32))
    return gram_of(jnp.asarray(scores, jnp.float32)[:, :, None]), rollout


def covered(tables, repetitions, fields=FIELDS, ratios=("trace_var", "mse_rescaled"), **changes):
    """How often the interval of each figure holds the exact value; the first estimator is the baseline."""
    plan = {"estimators": ESTIMATORS, "group": GROUP, "answers": 2 * GROUP, "prompts": 1} | changes
    estimators, group, prompts = plan["estimators"], plan["group"], plan["prompts"]
    with jax.enable_x64(True):
        exact = {n: moments(e.advantage, tables, group, prompts=prompts) for n, e in estimators.items()}
    hits, base = {}, exact[next(iter(exact))]
    for seed in range(repetitions):
        gram, rollout = frozen(tables, plan["answers"], seed)
        settings = {"group_size": group, "prompts": prompts, "seed": seed, "replicates": 400}
        got = compare_scores(estimators, gram, rollout, **settings)
        for name in estimators:
            figures = {f: (getattr(exact[name], f), got.moments[name].intervals[f]) for f in fields}
            for f in ratios:
                figures[f"{f} ratio"] = (getattr(exact[name], f) / getattr(base, f), got.ratios[name][f][1:])
            for f, (truth, (low, high)) in figures.items():
                slack = 1e-5 * abs(truth) + 1e-6  # float32: figures that are equal by construction
                hits[name, f] = hits.get((name, f), 0) + bool(low - slack <= truth <= high + slack)
    return hits


def test_intervals_hold_the_exact_values_at_their_rate(pool):
    """200 batches of 160 prompts, 5 estimators, 10 figures each at 95 percent. A figure that falls below the bound by
    chance has probability 1e-3/50, so all together at most 1e-3. Figures that are equal by construction always hold."""
    hits = covered(pool, REPETITIONS)
    least = least_hits(REPETITIONS, 0.95, 1e-3 / len(hits))
    assert {key: n for key, n in hits.items() if n < least} == {}
    # They are not simply wide: spreads and their ratios miss about as often as they may.
    misses = [REPETITIONS - hits[n, f] for n, f in hits if f == "trace_var" or (f == "mse" and n == "grpo")]
    assert min(misses) > 0


@pytest.mark.parametrize("broken", ["none", "own pairs", "shared reference"])
def test_pairs_of_a_unit_with_itself_would_be_noticed(broken, monkeypatch):
    """Where the signal is weak and the noise goes many ways, pairs of one unit carry its noise into the signal. The
    intervals of the sound statistics hold; with those pairs in, in all products or in <ĝ, h> alone, they do not."""
    with jax.enable_x64(True):
        tables = list(policies(count=24, signal=0.0, dim=240))

    def leaky(x):
        return x * (1 - 1 / len(x)) + jnp.trace(x) / len(x) ** 2  # its mean over pairs is the mean over all of x

    def wrong(aligned, credit, reference):
        sound = unit_products(aligned, credit, reference)
        names = {"none": (), "own pairs": ("mean", "along", "signal", "gap"), "shared reference": ("along",)}[broken]
        return sound._replace(**{name: leaky(getattr(sound, name)) for name in names})

    monkeypatch.setattr(empirical_compare, "unit_products", wrong)
    fields = ("snr", "scale") if broken != "shared reference" else ("scale",)
    hits = covered(tables, 40, fields, ())
    least = least_hits(40, 0.95, 1e-3 / len(hits))
    assert (min(hits.values()) >= least) == (broken == "none")


def by_hand(gram, rollout, estimator, chosen):
    """The U-statistics of one estimator by loops over units and groups; scores are a factor of the Gram matrix."""
    p, m, s = gram.sizes
    values, vectors = np.linalg.eigh(np.asarray(gram.matrix, float))
    scores = (vectors * np.sqrt(np.maximum(values, 0))).reshape(p, m, s, -1)
    prompts, answers = (np.asarray(x) for x in units_of(rollout, chosen))
    estimates, references = [], []
    for prompt, answer in zip(prompts, answers, strict=True):
        rows = [[], []]
        for who, which in zip(prompt, answer, strict=True):
            batch = picked(rollout, None, jnp.asarray(who), jnp.asarray(which))[0]
            for out, transform in zip(rows, (estimator.advantage, leave_one_out()), strict=True):
                credit = np.asarray(transform.update(batch.reward, transform.init(), batch)[0]) / batch.reward.size
                out.append(np.einsum("bg,bgsd->d", credit, scores[who[:, None], which]))
        estimates.append(rows[0])
        references.append(np.mean(rows[1], axis=0))
    x, h = np.asarray(estimates), np.asarray(references)
    mean, n, r = x.mean(axis=1), len(x), x.shape[1]
    apart = lambda a, b: (a.sum(0) @ b.sum(0) - np.sum(a * b)) / (n * (n - 1))  # noqa: E731
    square = np.mean(np.sum(x**2, axis=-1))
    pairs = np.mean([sum(u[i] @ u[j] for i in range(r) for j in range(r) if i != j) / (r * (r - 1)) for u in x])
    found = {"trace_var": square - apart(mean, mean), "within": square - pairs, "across": pairs - apart(mean, mean)}
    found |= {"mean_square": apart(mean, mean), "along": apart(mean, h), "signal": apart(h, h)}
    return found | {"bias_square": apart(mean - h, mean - h)}


@pytest.mark.parametrize(("prompts", "group"), [(1, 3), (3, 2)])
def test_figures_are_the_statistics_that_loops_over_units_give(pool, prompts, group):
    """Two segments an answer, several groups a prompt, and a number of prompts that does not divide."""
    _, rollout = frozen(pool, 6, 1)
    rollout, _ = picked(rollout, None, jnp.arange(40), jnp.broadcast_to(jnp.arange(6), (40, 6)))
    inner = gram_of(jnp.asarray(np.random.default_rng(0).normal(size=(40, 6, 2, 9)), jnp.float32))
    chosen, estimator = {"group_size": group, "prompts": prompts, "seed": 3}, ESTIMATORS["energy"]
    got = compare_scores({"energy": estimator}, inner, rollout, **chosen)
    assert (got.units, got.groups) == (40 // prompts, 6 // group)
    parts = got.parts["energy"] | {"trace_var": (got.moments["energy"].trace_var,)}
    expected = by_hand(inner, rollout, estimator, Settings(**chosen))
    for name, value in expected.items():
        np.testing.assert_allclose(parts[name][0], value, rtol=0, atol=1e-5 * expected["trace_var"], err_msg=name)
    np.testing.assert_allclose(parts["within"][0] + parts["across"][0], parts["trace_var"][0], rtol=1e-5)
    alone = compare_scores({"energy": estimator}, inner, rollout, group_size=6)
    assert math.isnan(alone.parts["energy"]["within"][0])


def test_batches_of_prompts_agree_with_enumeration(pool):
    """Two prompts a unit, 60 repetitions at 95 percent, the bound as above."""
    estimators = {"rloo": ESTIMATORS["rloo"], "others": Estimator(other_prompts_mean())}
    hits = covered(pool[:3], 60, estimators=estimators, group=2, answers=2, prompts=2)
    assert min(hits.values()) >= least_hits(60, 0.95, 1e-3 / len(hits)), hits
    gram, rollout = frozen(pool, 2, 0)
    with pytest.raises(ValueError, match="others compares prompts and needs 2 or more in a unit, not 1: say prompts=2"):
        compare_scores(estimators, gram, rollout)


def test_what_is_the_same_up_to_a_factor_is_measured_as_such(pool):
    gram, rollout = frozen(pool, 4, 0)
    got = compare_scores({n: ESTIMATORS[n] for n in ("group mean", "rloo")}, gram, rollout, baseline="rloo")
    np.testing.assert_allclose(got.ratios["group mean"]["trace_var"], (9 / 16,) * 3, rtol=1e-5)
    np.testing.assert_allclose(got.ratios["group mean"]["mse_rescaled"], (1,) * 3, rtol=1e-4)
    np.testing.assert_allclose(got.moments["group mean"].scale, 0.75, rtol=1e-5)
    assert got.parts["rloo"]["bias_square"] == (0, 0, 0)
    assert got.moments["rloo"].bias_norm == 0


def test_off_policy_the_reference_is_weighted():
    """Answers of another policy: bias and scale agree with enumeration, at 99.9 percent; unweighted they do not."""
    rng = np.random.default_rng(3)
    with jax.enable_x64(True):
        behaviour = np.log(np.asarray([0.1, 0.15, 0.3, 0.45]))[:, None]
        probs, features = np.asarray([0.4, 0.3, 0.2, 0.1]), rng.normal(size=(4, 6))
        table = OutcomeTable(probs, features - probs @ features, [1.0, 0, 0.5, 0.2], behaviour_logp=behaviour)
        exact = moments(leave_one_out(), table, 2)
        scores, rewards = np.asarray(table.scores), np.asarray(table.rewards)
    drawn = rng.choice(4, (2000, 2), p=np.exp(behaviour[:, 0]))
    gram = gram_of(jnp.asarray(scores[drawn][:, :, None], jnp.float32))
    rollout = bare_rollout(jnp.asarray(rewards[drawn], jnp.float32))
    of = lambda x: jnp.asarray(x[drawn][..., None], jnp.float32)  # noqa: E731
    tokens = bare_tokens(rollout.acted, logp=of(np.log(probs)), behaviour_logp=of(behaviour[:, 0]))
    settings = {"level": 0.999, "replicates": 500}

    def inside(got, field):
        low, high = got.moments["rloo"].intervals[field]
        return low <= getattr(exact, field) <= high

    rloo = {"rloo": ESTIMATORS["rloo"]}
    weighted = compare_scores(rloo, gram, rollout, tokens, off_policy=True, **settings)
    assert all(inside(weighted, f) for f in ("bias_norm", "scale", "trace_var", "cos"))
    assert not inside(compare_scores(rloo, gram, rollout, **settings), "scale")
    with pytest.raises(ValueError, match=r"not from `params`: .* say off_policy=True"):
        compare_scores(rloo, gram, rollout, tokens)


def test_what_the_data_do_not_resolve_is_said_to_be_so(pool):
    """Rewards that have nothing to do with the scores: no signal, so no scale and no cosine."""
    gram, rollout = frozen(pool, 4, 0)
    noise = jnp.asarray(np.random.default_rng(8).normal(size=rollout.reward.shape), jnp.float32)
    noise = noise - jnp.mean(noise)
    got = compare_scores(ESTIMATORS, gram, dataclasses.replace(rollout, reward=noise))
    grpo = got.moments["grpo"]
    assert all(math.isnan(x) for x in (grpo.cos, grpo.scale, grpo.mse_rescaled, grpo.useful_snr))
    assert grpo.intervals["cos"] == (-1, 1)
    assert grpo.intervals["scale"] == (-math.inf, math.inf)
    assert grpo.trace_var > 0
    assert "— " in got.markdown()
    assert got.ratios["grpo"]["mse_rescaled"][1:] == (0, math.inf)


def test_tables_hold_what_was_found_and_no_spread_without_bias(pool, tmp_path):
    gram, rollout = frozen(pool, 6, 0)
    got = compare_scores(ESTIMATORS, gram, rollout, group_size=3)
    text = got.markdown()
    for part in ("P=160", "B=1", "G=3", "rewards", "95%", "baseline: rloo", "| grpo | no |", "| rloo | yes |"):
        assert part in text
    console = rich.console.Console(width=250, file=io.StringIO())
    console.print(got.table())
    assert "group mean" in console.file.getvalue()
    rows = list(csv.DictReader(io.StringIO(got.csv().split("\n", 1)[1])))
    assert [row["scheme"] for row in rows] == list(ESTIMATORS)
    assert float(rows[2]["trace_var"]) == got.moments["grpo"].trace_var
    assert float(rows[2]["ratio_upper"]) == got.ratios["grpo"]["trace_var"][2]
    assert float(rows[2]["within"]) == got.parts["grpo"]["within"][0]
    got.plot(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    with pytest.raises(ValueError, match=r"'trace_var' without 'bias' would mislead.*add bias, cos"):
        got.markdown(columns=("scale", "trace_var"))
    with pytest.raises(ValueError, match="'ratio' without 'scale'"):
        got.table(columns=("bias", "cos", "ratio"))
    with pytest.raises(ValueError, match="there is no 'trace'; did you mean 'trace_var'"):
        got.table(columns=("trace",))


def test_wrong_uses_are_refused(pool):
    gram, rollout = frozen(pool, 4, 0)
    one = {"rloo": ESTIMATORS["rloo"]}
    tokens = bare_tokens(rollout.acted, logp=jnp.zeros(rollout.acted.shape))

    def refused(match, estimators=None, known=None, batch=rollout, **settings):
        with pytest.raises(ValueError, match=match):
            compare_scores(one if estimators is None else estimators, gram, batch, known, **settings)

    refused("estimators is empty", {})
    refused("settings: there is no 'groupsize'; did you mean 'group_size'", groupsize=2)
    refused("baseline must be one of the estimators, not 'rlo'; did you mean 'rloo'", baseline="rlo")
    refused("group_size must be from 2, .* not 1", group_size=1)
    refused("to the 4 answers there are, not 5", group_size=5)
    refused("160 prompts make 7 units of 21, and an interval needs 8", prompts=21)
    refused("level must be between 0 and 1", level=95.0)
    refused("rloo is unbiased only for answers drawn independently, and these are coupled", coupled=True)
    pairs = AdvantageTransform(
        tuple, leave_one_out().update, dataclasses.replace(leave_one_out().traits, minimum_group=3)
    )
    refused("pairs needs groups of 3 answers, not 2", {"pairs": Estimator(pairs)}, group_size=2)
    refused("reads 'greedy_reward', which is not in rollout.extras", {"remax": Estimator(greedy())})
    unit = AdvantageTransform(tuple, leave_one_out().update, dataclasses.replace(leave_one_out().traits, domain="unit"))
    refused("defined for rewards of the domain 'unit'", {"unit": Estimator(unit)})
    plain = Objective(surrogate=reinforce(), aggregate=answer_sum())
    refused("has an objective, which weighs tokens", {"x": Estimator(leave_one_out(), plain)})
    held = dataclasses.replace(plain, penalties=(Penalty(k1, 0.1, "reward", True),))
    refused("x compares with a reference", {"x": Estimator(leave_one_out(), held)}, tokens)
    bonus = dataclasses.replace(plain, penalties=(Penalty(lambda t: -t.entropy, 0.1, "loss", False),))
    refused("the gradient of x is not a sum of scores", {"x": Estimator(leave_one_out(), bonus)}, tokens)
    refused("off_policy needs `tokens`", off_policy=True)
    invalid = dataclasses.replace(rollout, valid=rollout.valid.at[0, 0].set(False))
    refused("an answer is not valid", batch=invalid)


def test_coupled_answers_are_measured_against_the_plain_reward(pool):
    """The reference reads no other answer of the group: for independent draws it finds the same gradient."""
    gram, rollout = frozen(pool, 4, 0)
    plain = {"none": Estimator(no_baseline())}
    got = compare_scores(plain, gram, rollout, coupled=True)
    assert got.parts["none"]["bias_square"] == (0, 0, 0)
    apart = compare_scores(plain, gram, rollout)
    assert apart.parts["none"]["bias_square"] != (0, 0, 0)


def graded(policy, params, prompts=24, answers=4, lost=((2, 1),)):
    """A rollout whose answers a bigram policy could have drawn, as far as log-probabilities tell."""
    rollout = tiny.ragged(policy, params, prompts_of=prompts, answers=answers, length=4)
    keep = jnp.ones(rollout.valid.shape, bool)
    for at in lost:
        keep = keep.at[at].set(False)
    reward = jnp.asarray(np.random.default_rng(0).normal(size=keep.shape), jnp.float32)
    return dataclasses.replace(rollout, valid=keep, reward=reward)


def test_a_policy_is_compared_on_a_batch():
    """Scores, tokens and floor of a policy: exact scores give what `compare_scores` gives; a sketch comes near, within
    five of the deviations sqrt(2/16384) that a square of it has."""
    policy, params = tiny.bigram()
    rollout = graded(policy, params)
    objective = Objective(surrogate=reinforce(), aggregate=answer_mean())
    estimators = {"rloo": Estimator(leave_one_out()), "grpo": Estimator(ESTIMATORS["grpo"].advantage, objective)}
    settings = {"group_size": 2, "seed": 4}
    got = compare(estimators, policy, params, rollout, backend=empirical_backends.exact(), segments=4, **settings)
    assert (got.units, got.backend) == (23, "exact")
    whole = only_valid(rollout)
    gram = score_gram(policy, params, whole, backend=empirical_backends.exact(), segments=4)
    again = compare_scores(estimators, gram, whole, tokens_at(policy, params, whole), **settings)
    assert got.parts == again.parts
    assert all(0 <= got.floor[name] < 1e-8 * got.moments[name].trace_var for name in estimators)
    assert set(got.precision) == set(estimators)
    assert any(note.startswith("bfloat16 moves") for note in got.notes())
    assert max(got.coarse.values()) == 0
    assert got.claims == {"rloo": "yes", "grpo": "no (credit)"}
    rough = compare(estimators, policy, params, rollout, **settings)
    assert rough.backend == "count sketch 16384"
    for name in estimators:
        np.testing.assert_allclose(
            rough.moments[name].trace_var, got.moments[name].trace_var, rtol=5 * (2 / 16384) ** 0.5
        )


def test_a_batch_that_is_cut_over_devices_has_the_same_figures():
    """Two prompts on each of eight devices, sketched there; units of two prompts are drawn across them. float32."""
    policy, params = tiny.bigram()
    rollout = graded(policy, params, prompts=16, lost=())
    estimators = {"others": Estimator(other_prompts_mean())}
    settings = {"backend": empirical_backends.count_sketch(size=64), "group_size": 2, "prompts": 2, "floor": False}
    alone = compare(estimators, policy, params, rollout, **settings)
    mesh = make_mesh(MeshShape(data=8))
    there = place(rollout, by_prompt(mesh))
    assert len(there.reward.sharding.device_set) == 8
    spread = compare(estimators, policy, place(params, replicated(mesh)), there, **settings)
    size = alone.moments["others"].trace_var
    for part, expected in alone.parts["others"].items():
        np.testing.assert_allclose(spread.parts["others"][part], expected, rtol=0, atol=1e-5 * size, err_msg=part)
