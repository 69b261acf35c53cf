"""Decoding: where an answer ends, what is recorded of it, and what it may depend on."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import tiny

from jaxrl_llm import random
from jaxrl_llm.policies.logp import answer_logp
from jaxrl_llm.policies.policy import Policy
from jaxrl_llm.random import Stream
from jaxrl_llm.rollouts.generate import generate
from jaxrl_llm.rollouts.sampling import GREEDY, SamplingRules
from jaxrl_llm.rollouts.stopping import Stopping

P, G, L, T, V = 4, 6, 5, 6, 5
PAD, EOS = 0, 2
STOPPING = Stopping(eos=(EOS,), pad=PAD, length=T)
PLAIN = SamplingRules()
decode = tiny.jit(generate, static_argnums=(0, 5, 6))


@pytest.fixture(scope="module")
def model():
    return tiny.decoder(vocab=V, seed=4)


def keys_of(step=1, rows=range(P), answers=G, seed=0):
    return random.answer_keys(random.stream_key(seed, Stream.ROLLOUT), step, jnp.asarray(list(rows)), answers)


PROMPT, MASK = tiny.prompts((1, 3, 5, 5), L, vocab=V)
PROMPT, MASK = PROMPT.at[3].set(PROMPT[2]), MASK.at[3].set(MASK[2])  # the same question twice


@pytest.fixture(scope="module")
def sampled(model):
    return decode(*model, PROMPT, MASK, keys_of(), PLAIN, STOPPING)


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def cut(answers, prompts=slice(None), group=slice(None)):
    return jax.tree.map(lambda x: x[prompts, group], answers)


def test_an_answer_ends_with_its_eos_and_padding_follows(sampled):
    answer, acted = np.asarray(sampled.answer), np.asarray(sampled.acted)
    assert answer.shape == (P, G, T)
    lengths = set()
    for p, g in np.ndindex(P, G):
        ends = np.flatnonzero(answer[p, g] == EOS)
        length = ends[0] + 1 if len(ends) else T
        lengths.add((int(length), bool(len(ends))))
        np.testing.assert_array_equal(acted[p, g], np.arange(T) < length)
        np.testing.assert_array_equal(answer[p, g, length:], PAD)
        assert bool(sampled.truncated[p, g]) == (not len(ends))
    assert {(1, True), (T, False)} <= lengths, "the cases: EOS at once, and none at all"
    assert len(lengths) > 3


def test_peer_defect_the_eos_is_dropped(sampled):
    """Tunix's own sampler cuts before the EOS, so the decision to stop is never trained."""
    ended = ~np.asarray(sampled.truncated)
    last = np.take_along_axis(np.asarray(sampled.answer), np.asarray(sampled.acted).sum(-1, keepdims=True) - 1, axis=-1)
    assert np.all(last[ended] == EOS)
    assert np.all(last[~ended] != EOS)
    assert np.all(np.asarray(sampled.behaviour_logp)[np.asarray(sampled.answer == EOS)] < 0)


def test_peer_defect_an_eos_at_position_0_is_no_eos(sampled):
    """lmpo takes such an answer for one without an end."""
    at_once = np.asarray(sampled.answer[..., 0] == EOS)
    assert at_once.any()
    assert np.all(np.asarray(sampled.acted)[at_once].sum(-1) == 1)
    assert not np.any(np.asarray(sampled.truncated)[at_once])


def test_log_probabilities_are_0_off_acted_and_only_there(sampled):
    for logp in (sampled.behaviour_logp, sampled.policy_logp):
        np.testing.assert_array_equal(np.asarray(logp) != 0, sampled.acted)


class Counted(Policy):
    """Counts the decoding steps that are really taken."""

    steps = 0

    def step(self, *args):
        jax.debug.callback(Counted.count)
        return super().step(*args)

    @classmethod
    def count(cls):
        cls.steps += 1


def test_stopping_early_changes_not_one_bit(model, sampled):
    """On the rows whose first answer ends before T."""
    rows = np.flatnonzero(~np.asarray(sampled.truncated[:, 0]))
    longest = int(jnp.max(jnp.sum(sampled.acted[rows, 0], axis=-1)))
    assert len(rows) > 1
    assert 1 < longest < T
    policy = Counted(model[0].config, V)
    outs = []
    for early, steps in ((True, longest), (False, T)):
        Counted.steps = 0
        stopping = dataclasses.replace(STOPPING, early=early)
        keys = keys_of(rows=rows, answers=1)
        outs.append(jax.block_until_ready(decode(policy, model[1], PROMPT[rows], MASK[rows], keys, PLAIN, stopping)))
        jax.effects_barrier()
        assert Counted.steps == steps
    assert_same(*outs)


def test_neither_the_order_nor_the_size_of_a_batch_changes_a_sample(model, sampled):
    order = np.asarray([2, 0, 3, 1])
    assert_same(decode(*model, PROMPT[order], MASK[order], keys_of(rows=order), PLAIN, STOPPING), cut(sampled, order))
    for half in (slice(0, 2), slice(2, 4)):
        rows = range(P)[half]
        part = decode(*model, PROMPT[half], MASK[half], keys_of(rows=rows), PLAIN, STOPPING)
        np.testing.assert_array_equal(part.answer, sampled.answer[half])
        np.testing.assert_allclose(part.behaviour_logp, sampled.behaviour_logp[half], atol=1e-5)


def test_a_smaller_group_holds_the_first_answers_of_a_larger_one(model, sampled):
    few = decode(*model, PROMPT, MASK, keys_of(answers=2), PLAIN, STOPPING)
    np.testing.assert_array_equal(few.answer, sampled.answer[:, :2])
    np.testing.assert_allclose(few.policy_logp, sampled.policy_logp[:, :2], atol=1e-5)


def test_peer_defect_the_same_noise_at_every_step(model, sampled):
    """Tunix folds keys by position only, from PRNGKey(0) for an unset seed: steps and rows share their noise."""
    later = decode(*model, PROMPT, MASK, keys_of(step=2), PLAIN, STOPPING)
    reseeded = decode(*model, PROMPT, MASK, keys_of(seed=1), PLAIN, STOPPING)
    for other in (later, reseeded):
        assert np.mean(np.any(np.asarray(other.answer != sampled.answer), axis=-1)) > 0.5
    assert len(np.unique(np.asarray(sampled.answer[0]), axis=0)) > G // 2, "answers of a group differ"
    assert not np.array_equal(sampled.answer[2], sampled.answer[3]), "two prompts of the same text differ"


@pytest.mark.parametrize("unset", [None, True])
def test_peer_defect_an_unset_seed_is_a_fixed_one(unset):
    with pytest.raises(TypeError, match="seed"):
        random.stream_key(unset, Stream.ROLLOUT)


def test_the_learner_sees_the_log_probabilities_of_the_sampler(model, sampled):
    logp, _ = tiny.jit(answer_logp, static_argnums=0)(*model, PROMPT, MASK, sampled.answer, sampled.acted)
    np.testing.assert_allclose(sampled.policy_logp, logp, atol=1e-5)
    np.testing.assert_array_equal(sampled.policy_logp, sampled.behaviour_logp)


def test_truncation_and_temperature_part_the_two_log_probabilities(model):
    rules = SamplingRules(temperature=0.8, top_k=3, top_p=0.9)
    out = decode(*model, PROMPT, MASK, keys_of(), rules, STOPPING)
    logp, _ = tiny.jit(answer_logp, static_argnums=0)(*model, PROMPT, MASK, out.answer, out.acted)
    np.testing.assert_allclose(out.policy_logp, logp, atol=1e-5)
    assert float(jnp.max(jnp.abs(out.behaviour_logp - out.policy_logp))) > 0.1


def test_greedy_answers_need_no_key_and_are_certain(model):
    out = decode(*model, PROMPT, MASK, keys_of(), GREEDY, STOPPING)
    assert_same(out, decode(*model, PROMPT, MASK, keys_of(step=7), GREEDY, STOPPING))
    np.testing.assert_array_equal(out.behaviour_logp, np.zeros((P, G, T)))
    np.testing.assert_array_equal(out.answer[:, 1:], out.answer[:, :-1])
    np.testing.assert_array_equal(out.answer[2], out.answer[3])


def enumerate_answers(model, prompt, mask):
    """Every answer of up to two tokens [N 2], and its probability under the policy."""
    answers = [(EOS, PAD)] + [(a, b) for a in range(V) if a != EOS for b in range(V)]
    answer = jnp.asarray(answers, jnp.int32)[None]
    acted = jnp.asarray([[True, a != EOS] for a, _ in answers])[None]
    logp, _ = tiny.jit(answer_logp, static_argnums=0)(*model, prompt[None], mask[None], answer, acted)
    return answers, np.exp(np.asarray(logp[0], np.float64).sum(-1))


def test_whole_answers_have_the_distribution_of_the_policy(model):
    """20,000 answers of at most two tokens against the enumeration of all 21, chi-square at 1e-4."""
    draws = 20_000
    answers, probability = enumerate_answers(model, PROMPT[1], MASK[1])
    assert probability.sum() == pytest.approx(1, abs=1e-5)
    keys = keys_of(rows=[1], answers=draws)
    out = decode(*model, PROMPT[1:2], MASK[1:2], keys, PLAIN, dataclasses.replace(STOPPING, length=2))
    index = {answer: i for i, answer in enumerate(answers)}
    seen = np.bincount([index[tuple(row)] for row in np.asarray(out.answer[0]).tolist()], minlength=len(answers))
    assert scipy.stats.chisquare(seen, probability / probability.sum() * draws).pvalue > 1e-4
    recorded = np.exp(np.asarray(out.behaviour_logp[0], np.float64).sum(-1))
    np.testing.assert_allclose(
        recorded, probability[[index[tuple(row)] for row in np.asarray(out.answer[0]).tolist()]], rtol=2e-5
    )
    shifted = np.roll(probability, 1)
    assert scipy.stats.chisquare(seen, shifted / shifted.sum() * draws).pvalue < 1e-4, "another policy is caught"
