"""The learning step: exact accumulation, what must not matter, and the update against one written out by hand."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from learners import AGGREGATES, RECIPES, assert_close, assert_same, distance, learner, step, twice
from plain_decoder import plain_logp, plain_value

from jaxrl_llm import anchors, recipes
from jaxrl_llm.advantages import no_baseline, per_token
from jaxrl_llm.config import Config, WarmUp
from jaxrl_llm.learner import Learner
from jaxrl_llm.losses import Objective, cross_entropy, k1, kl, rao_blackwell, token_mean
from jaxrl_llm.losses import reinforce as log_prob
from jaxrl_llm.policies.config import DecoderConfig
from jaxrl_llm.policies.policy import Policy
from jaxrl_llm.programs import Programs, demonstration
from jaxrl_llm.sharding import MeshShape
from jaxrl_llm.trained import build_optimizer

POLICY, PARAMS = tiny.bigram()
REFERENCE = jax.tree.map(lambda x: 0.8 * x, PARAMS)
ROLLOUT = tiny.ragged(POLICY, PARAMS, noise=0.3)


@functools.cache
def any_aggregate(name, accumulation):
    """A step of a recipe whose aggregate is chosen at run time: one program for all four."""

    @tiny.jit
    def run(index, params, rollout):
        recipe = RECIPES[name]

        def aggregate(where):
            return jax.lax.switch(index, list(AGGREGATES.values()), where)

        objective = dataclasses.replace(recipe.objective, aggregate=aggregate)
        built = learner(POLICY, recipe, objective=objective, accumulation=accumulation)
        state, metrics, credit = built.learn(built.init(params), REFERENCE, rollout)
        return state.params, metrics, credit

    return run


@pytest.mark.parametrize("name", RECIPES)
def test_peer_defect_statistics_of_micro_batches(name):
    """Micro-batches of unequal lengths and unequal numbers of valid answers, under every aggregation."""
    runs = {accumulation: any_aggregate(name, accumulation) for accumulation in (1, 2, 4)}
    for index, aggregate in enumerate(AGGREGATES):
        whole = runs[1](index, PARAMS, ROLLOUT)
        assert distance(whole[0], PARAMS) > 1e-3, aggregate
        assert_close(runs[2](index, PARAMS, ROLLOUT), whole)
        assert_close(runs[4](index, PARAMS, ROLLOUT), whole)


def test_accumulation_through_the_decoder():
    policy, params = tiny.decoder()
    rollout = tiny.ragged(policy, params, noise=0.3)
    runs = [step(learner(policy, RECIPES["grpo"], accumulation=n), params, rollout, params) for n in (1, 4)]
    assert distance(runs[0][0], params) > 1e-2
    assert_close(*runs, atol=1e-5)


@pytest.mark.parametrize("index", range(len(AGGREGATES)), ids=list(AGGREGATES))
def test_a_mean_of_micro_batch_means_is_caught(index):
    """The broken member: each half is aggregated by itself, and the two gradients are averaged."""
    run = any_aggregate("grpo", 1)
    whole = run(index, PARAMS, ROLLOUT)[0]
    halves = [run(index, PARAMS, jax.tree.map(lambda x, a=at: x[a::2], ROLLOUT))[0] for at in (0, 1)]
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *halves)
    assert distance(mean, whole) > 1e-3


@pytest.mark.parametrize("name", ["rloo", "grpo", "dr_grpo"])
def test_peer_defect_an_extra_division_by_the_batch(name):
    """A batch that is repeated has the same mean: neither the policy's term nor that of the KL may shrink."""
    run = any_aggregate(name, 1)
    for index, aggregate in enumerate(AGGREGATES):
        once, again = (run(index, PARAMS, batch)[0] for batch in (ROLLOUT, twice(ROLLOUT)))
        assert distance(once, PARAMS) > 1e-3, aggregate
        assert_close(once, again)


def test_an_extra_division_by_the_batch_is_caught():
    recipe = RECIPES["grpo"]

    def marin(where):
        return token_mean()(where) / len(where)

    broken = learner(POLICY, recipe, objective=dataclasses.replace(recipe.objective, aggregate=marin))
    once, again = (step(broken, PARAMS, batch, REFERENCE)[0] for batch in (ROLLOUT, twice(ROLLOUT)))
    assert distance(once, again) > 1e-3


def test_an_exact_divergence_without_a_reference_is_refused():
    """As the program is traced; a reference that is handed over and one that the learner keeps both do."""
    penalties = (kl(k1, 0.1, "reward"), rao_blackwell(0.1, "loss"))
    objective = Objective(surrogate=log_prob(), aggregate=token_mean(), penalties=penalties)
    built = learner(POLICY, RECIPES["reinforce"], objective=objective)
    state = built.init(PARAMS)
    with pytest.raises(ValueError, match=r"rao_blackwell.*`reference`.*`anchor`"):
        jax.eval_shape(built.learn, state, None, ROLLOUT)
    jax.eval_shape(built.learn, state, REFERENCE, ROLLOUT)
    kept = dataclasses.replace(built, anchor=anchors.refreshed(every=2))
    jax.eval_shape(kept.learn, kept.init(PARAMS), None, ROLLOUT)


@pytest.mark.parametrize("name", RECIPES)
def test_invalid_answers_and_padding_change_no_bit(name):
    """Whatever stands there: other ids, NaN for a probability or a reward."""
    where = ROLLOUT.acted & ROLLOUT.valid[..., None]
    assert 0 < int(jnp.sum(~ROLLOUT.valid)) < ROLLOUT.valid.size

    def garbage(x, mask):
        return jnp.where(mask, x, jnp.nan)

    soiled = dataclasses.replace(
        ROLLOUT,
        prompt=jnp.where(ROLLOUT.prompt_mask, ROLLOUT.prompt, 7),
        answer=jnp.where(where, ROLLOUT.answer, (ROLLOUT.answer + 1) % tiny.VOCAB),
        behaviour_logp=garbage(ROLLOUT.behaviour_logp, where),
        policy_logp=garbage(ROLLOUT.policy_logp, where),
        reward=garbage(ROLLOUT.reward, ROLLOUT.valid),
        components=garbage(ROLLOUT.components, ROLLOUT.valid[..., None]),
    )
    for reference in (None, REFERENCE):
        built = learner(POLICY, RECIPES[name])
        clean, dirty = (step(built, PARAMS, batch, reference) for batch in (ROLLOUT, soiled))
        assert distance(clean[0], PARAMS) > 1e-3
        assert_same(clean, dirty)


def test_longer_padding_changes_nothing():
    def longer(x):
        return jnp.pad(x, ((0, 0), (0, 0), (0, 3)))

    fields = ("answer", "acted", "behaviour_logp", "policy_logp")
    padded = dataclasses.replace(ROLLOUT, **{name: longer(getattr(ROLLOUT, name)) for name in fields})
    for name in ("grpo", "bnpo"):
        short, long = (step(learner(POLICY, RECIPES[name]), PARAMS, batch, REFERENCE) for batch in (ROLLOUT, padded))
        assert_close(short, long)


def test_a_batch_without_a_valid_answer_changes_no_parameter():
    nothing = dataclasses.replace(ROLLOUT, valid=jnp.zeros_like(ROLLOUT.valid))
    params, metrics = step(learner(POLICY, RECIPES["grpo"]), PARAMS, nothing, REFERENCE)
    assert_same(params, PARAMS)
    assert all(bool(jnp.all(jnp.isfinite(x))) for x in metrics.values())
    assert int(metrics["nonfinite/skipped"]) == 0


def plain_grpo_loss(policy, params, reference, rollout):
    """GRPO as the paper writes it, answer by answer; G rewards of a prompt, their mean and deviation (ddof 1)."""
    tokens = (rollout.prompt, rollout.prompt_mask, rollout.answer)
    logp, anchor = plain_logp(policy.config, params, *tokens), plain_value(policy.config, reference, *tokens)
    acted, valid, reward = (np.asarray(x) for x in (rollout.acted, rollout.valid, rollout.reward))
    terms = []
    for p, g in zip(*np.nonzero(valid), strict=True):
        group = reward[p][valid[p]]
        spread = group.std(ddof=1) if len(group) > 1 else 0.0
        advantage = (reward[p, g] - group.mean()) / (spread + 1e-4)
        token_terms = []
        for t in np.flatnonzero(acted[p, g]):
            ratio = jnp.exp(logp[p, g, t] - rollout.behaviour_logp[p, g, t])
            policy_term = jnp.minimum(ratio * advantage, jnp.clip(ratio, 0.8, 1.2) * advantage)
            log_ratio = anchor[p, g, t] - logp[p, g, t]
            token_terms.append(policy_term - 0.3 * (jnp.exp(log_ratio) - log_ratio - 1))
        terms.append(sum(token_terms) / len(token_terms))
    return -sum(terms) / len(terms)


def test_the_update_equals_a_plain_step_on_a_plain_loss():
    policy, params = tiny.decoder()
    reference = jax.tree.map(lambda x: 0.9 * x, params)
    rollout = tiny.ragged(policy, params, prompts_of=2, answers=3, length=3, noise=0.3)
    optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.1, momentum=0.9))

    @tiny.jit
    def plain(params):
        loss, grads = jax.value_and_grad(lambda p: plain_grpo_loss(policy, p, reference, rollout))(params)
        updates, _ = optimizer.update(grads, optimizer.init(params))
        return loss, optax.apply_updates(params, updates)

    loss, moved = plain(params)
    ours, metrics = step(learner(policy, RECIPES["grpo"], optimizer), params, rollout, reference)
    assert distance(moved, params) > 1e-3
    assert_close(ours, moved, atol=1e-6)
    assert float(metrics["loss"]) == pytest.approx(float(loss), abs=1e-5)


def test_peer_defect_the_ratio_is_always_1():
    """EasyDeL never recomputes the probabilities of the sampler, so a second update on a batch knows no ratio."""
    on_policy = dataclasses.replace(ROLLOUT, behaviour_logp=ROLLOUT.policy_logp)
    optimizer = optax.sgd(5.0)
    built = learner(POLICY, recipes.grpo(kl_coefficient=0.0), optimizer)
    first, metrics = step(built, PARAMS, on_policy)
    assert float(metrics["clip_ratio/low"] + metrics["clip_ratio/high"]) == 0
    second, _ = step(built, first, on_policy)
    both, metrics = step(dataclasses.replace(built, epochs=2), PARAMS, on_policy)
    assert_close(both, second)
    assert float(metrics["clip_ratio/low"]) > 0
    assert float(metrics["clip_ratio/high"]) > 0
    assert float(metrics["sampling/logp_difference_max"]) < 1e-6, "the gap is that before the first update"
    without = dataclasses.replace(RECIPES["grpo"].objective, surrogate=log_prob(), penalties=())
    ignorant, _ = step(dataclasses.replace(built, epochs=2, objective=without), PARAMS, on_policy)
    assert distance(ignorant, both) > 1e-2


def test_imitation_is_the_cross_entropy_of_the_solutions():
    config = Config(
        task="addition,digits=1",
        model=tiny.SMALL,
        prompts_per_step=4,
        answers_per_prompt=2,
        warmup=WarmUp(max_steps=1, batch=4),
        mesh=MeshShape(),
    )
    imitator: Learner = Programs(config, jax.devices()[:1]).imitator
    assert imitator.objective == Objective(surrogate=cross_entropy, aggregate=imitator.objective.aggregate)
    rows = jnp.asarray([3, 1, 7, 2])
    chosen = jax.tree.map(lambda x: x[rows], config.task.train)
    assert len(np.unique(chosen.solution_mask.sum(-1))) > 1, "solutions of unequal lengths"
    policy, params = tiny.decoder(vocab=config.task.tokenizer.vocab_size)
    assert policy == imitator.policy
    logp = plain_value(policy.config, params, chosen.prompt, chosen.prompt_mask, chosen.solution[:, None])[:, 0]
    imitator = dataclasses.replace(imitator, optimizer=optax.sgd(1.0))
    moved, metrics = step(imitator, params, demonstration(chosen, rows))
    assert float(metrics["loss"]) == pytest.approx(-logp[np.asarray(chosen.solution_mask)].mean(), abs=1e-5)
    assert "kl" not in metrics
    assert float(metrics["grad_norm"]) == pytest.approx(float(optax.tree.norm(optax.tree.sub(moved, params))), rel=1e-4)


def test_learning_gives_credit_as_the_transform_does():
    built = dataclasses.replace(learner(POLICY, RECIPES["grpo"]), advantage=per_token(no_baseline()))
    state, metrics, credit = tiny.jit(built.learn)(built.init(PARAMS), None, ROLLOUT)
    np.testing.assert_allclose(credit, jnp.where(ROLLOUT.valid, ROLLOUT.reward, 0), atol=1e-6)
    assert int(state.step) == 1
    assert "kl" not in metrics


def test_an_update_holds_a_gradient_beside_what_it_moves_and_nothing_twice():
    shape = {"layers": 8, "width": 128, "heads": 2, "kv_heads": 1, "head_size": 8, "mlp_width": 2048}
    policy = Policy(DecoderConfig(**shape), tiny.VOCAB)
    shapes = nn.unbox(jax.eval_shape(policy.init, jax.random.key(0)))
    built = learner(policy, RECIPES["grpo"], build_optimizer(Config(), lambda _: 1e-3))
    state = jax.eval_shape(built.init, shapes)
    compiled = jax.jit(built.learn, donate_argnums=0).lower(state, None, ROLLOUT).compile()
    bytes_of_params = 4 * sum(x.size for x in jax.tree.leaves(shapes))
    assert compiled.memory_analysis().temp_size_in_bytes < 2 * bytes_of_params
