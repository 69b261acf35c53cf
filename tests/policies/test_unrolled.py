"""Decoding with the layers written out gives what the scan gives."""

import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jaxrl_llm import random
from jaxrl_llm.policies import unrolled
from jaxrl_llm.policies.unrolled import Unrolled, for_decoding
from jaxrl_llm.rollouts.generate import generate
from jaxrl_llm.rollouts.sampling import SamplingRules
from jaxrl_llm.rollouts.stopping import Stopping

P, G, T = 4, 4, 9
PROMPT, MASK = tiny.prompts((1, 2, 3, 3), 3)
KEYS = random.answer_keys(random.stream_key(0, random.Stream.ROLLOUT), 1, jnp.arange(P), G)
SHAPES = {
    "plain": {},
    "gemma": {
        **{"window": 3, "windowed": (True, False), "scaled_embedding": True, "post_norms": True, "norm_offset": True},
        **{"tied": False, "qk_norm": True, "logit_cap": 20.0, "local_rope_base": 500.0},
    },
}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_same_answers_whether_scanned_or_written_out(shape, monkeypatch):
    model = tiny.decoder(seed=4, **SHAPES[shape])
    stopping = Stopping(eos=(2,), pad=0, length=T, bucket=4)
    outs = []
    for least in (unrolled.LEAST, 0):
        monkeypatch.setattr(unrolled, "LEAST", least)
        assert isinstance(for_decoding(*model, model[0].prefill(model[1], PROMPT, MASK))[0], Unrolled) == (least == 0)
        decode = tiny.jit(generate, static_argnums=(0, 5, 6))
        outs.append(decode(*model, PROMPT, MASK, KEYS, SamplingRules(temperature=1.2), stopping))
    assert len(np.unique(np.asarray(outs[0].acted).sum(-1))) > 3
    np.testing.assert_array_equal(outs[1].answer, outs[0].answer)
    np.testing.assert_allclose(outs[1].policy_logp, outs[0].policy_logp, atol=1e-5)
