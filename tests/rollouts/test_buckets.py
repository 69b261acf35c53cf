"""Loops that shrink with what is left to do give the answers of one plain loop."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxrl_llm import random
from jaxrl_llm.policies.policy import Policy
from jaxrl_llm.rollouts import generate as module
from jaxrl_llm.rollouts.generate import generate
from jaxrl_llm.rollouts.sampling import SamplingRules
from jaxrl_llm.rollouts.stopping import Stopping

P, G, L, T, V = 8, 4, 5, 21, 11
EOS, PAD = (2,), 0
RULES = SamplingRules(temperature=1.2, top_p=0.95)
PLAIN = Stopping(eos=EOS, pad=PAD, length=T)
CUT = dataclasses.replace(PLAIN, bucket=4)
PROMPT, MASK = tiny.prompts(np.arange(P) % L + 1, L, vocab=V)
KEYS = random.answer_keys(random.stream_key(0, random.Stream.ROLLOUT), 1, jnp.arange(P), G)
LIMIT = jnp.asarray(np.random.default_rng(1).integers(1, T + 5, (P, G)), jnp.int32)
decode = tiny.jit(generate, static_argnums=(0, 5, 6))


class Counted(Policy):
    """Adds up the rows and the columns of the decoding steps that are really taken."""

    work = (0, 0, 0)

    def step(self, params, prefix, cache, token, column, read=None):
        rows = token.shape[0] * token.shape[1]
        jax.debug.callback(lambda: setattr(Counted, "work", tuple(np.add(Counted.work, (1, rows, rows * read)))))
        return super().step(params, prefix, cache, token, column, read)


@pytest.fixture(scope="module")
def model():
    policy, params = tiny.decoder(vocab=V, seed=4)
    params["embedding"] = params["embedding"].at[EOS[0]].mul(0.5)  # ends are rare enough
    return Counted(policy.config, V), params


def work_of(model, stopping, limit=LIMIT):
    Counted.work = (0, 0, 0)
    out = jax.block_until_ready(decode(*model, PROMPT, MASK, KEYS, RULES, stopping, limit))
    jax.effects_barrier()
    return out, Counted.work


@pytest.fixture(scope="module")
def plain(model):
    return work_of(model, PLAIN)


def assert_same(ours, theirs):
    for field in ("answer", "acted", "truncated"):
        np.testing.assert_array_equal(getattr(ours, field), getattr(theirs, field))
    for field in ("behaviour_logp", "policy_logp"):
        np.testing.assert_allclose(getattr(ours, field), getattr(theirs, field), atol=1e-5)


@pytest.mark.parametrize("parts", [0, 1, 2], ids=["buckets", "and halves", "and halves of two parts"])
def test_a_loop_that_shrinks_gives_the_same_answers_for_less_work(model, plain, parts):
    out, (steps, rows, columns) = work_of(model, dataclasses.replace(CUT, parts=parts))
    assert_same(out, plain[0])
    assert steps == plain[1][0], "it goes on as long"
    assert columns < 0.8 * plain[1][2]
    assert (rows == plain[1][1]) if parts == 0 else (rows < 0.8 * plain[1][1])


def test_rows_that_come_back_to_a_wrong_place_are_seen(model, plain, monkeypatch):
    put = module._put
    monkeypatch.setattr(module, "_put", lambda whole, part, rows: put(whole, part, rows[:, ::-1]))
    changed = dataclasses.replace(CUT, bucket=5)  # compiled anew
    with pytest.raises(AssertionError):
        assert_same(work_of(model, changed)[0], plain[0])


def test_where_one_bucket_holds_all_the_program_is_a_single_loop(model):
    policy = tiny.decoder(vocab=V)[0]

    def text(stopping):
        return str(jax.make_jaxpr(lambda w: generate(policy, w, PROMPT, MASK, KEYS, RULES, stopping))(model[1]))

    assert text(PLAIN) == text(dataclasses.replace(PLAIN, bucket=T, parts=0))
    assert text(CUT).count("while[") > text(PLAIN).count("while[") == 1


def test_parts_on_devices_of_their_own(model, plain):
    """The samples of 8 devices are those of one, and no device sees rows of another's cache."""
    mesh = Mesh(np.asarray(jax.devices()[:4]), ("data",))
    split, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    stopping = dataclasses.replace(CUT, parts=4)
    run = tiny.jit(lambda w, *xs: generate(tiny.decoder(vocab=V)[0], w, *xs[:3], RULES, stopping, xs[3]))
    args = (jax.device_put(model[1], whole), *(jax.device_put(x, split) for x in (PROMPT, MASK, KEYS, LIMIT)))
    assert_same(jax.device_get(run(*args)), plain[0])
