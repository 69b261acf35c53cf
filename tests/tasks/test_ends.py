"""Texts that end an answer, and limits of the answers to single rows."""

import dataclasses
import re

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from host_texts import SUMS, prompts
from test_host_tasks import say

from jaxrl_llm import tasks
from jaxrl_llm.config import Config, WarmUp
from jaxrl_llm.evaluate import Evaluator
from jaxrl_llm.programs import Programs
from jaxrl_llm.rollouts.sampling import SamplingRules
from jaxrl_llm.rollouts.stopping import LIMIT
from jaxrl_llm.sharding import MeshShape
from jaxrl_llm.spec import build
from jaxrl_llm.tasks.rows import rows

LIMITED = [row | {"most": 2 + i % 3} for i, row in enumerate(SUMS)]


def grades(task, texts, **how):
    answer, acted = say(task, [texts], **how)
    return task.grade(answer, acted, {"row": np.asarray([12])})  # 2+2=


def test_a_text_ends_an_answer_and_is_not_read(built):
    task = built(until="</a>||;")
    texts = ["4</a>", "4;", "4", "5;", ";", "4;4", "4;;", "</a>4"]
    assert grades(task, texts, end=False).reward.tolist() == [[1, 1, 0, 0, 0, 0, 0, 0]]
    assert grades(task, ["4", "4;", "4</a>"]).reward.tolist() == [[1, 0, 0]]  # EOS ends one; two ends are none
    plain = built()
    assert plain.strings is None
    assert not set("</a>;") & {plain.tokenizer.decode([i]) for i in range(plain.tokenizer.vocab_size)}


def test_until_is_a_part_of_the_spec(write):
    task = rows(write(SUMS), until="</a>||;", workers=1)
    again = build(tasks, task.spec, "task")
    assert (again.strings.strings, again.spec) == (("</a>", ";"), task.spec)
    for made in (task, again):
        made.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"until": "||"}, "until must be ASCII texts with || between them, not '||'"),
        ({"until": "a||\N{LATIN SMALL LETTER E WITH ACUTE}"}, "until must be ASCII texts"),
        ({"until": "1"}, "data.jsonl: line 2: the answer holds '1', which ends it (until=1)"),
        ({"limit": "mots"}, "data.jsonl: line 1: there is no column 'mots'; did you mean 'most'?"),
        ({"limit": "prompt"}, "line 1: field 'prompt' must be a number of tokens, 1 or more, not '0+0='"),
    ],
)
def test_what_cannot_be_is_refused(built, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        built(LIMITED, **options)


@pytest.mark.parametrize("most", [0, -1, 1.5, True, "two", "9" * 400])
def test_a_limit_is_a_number_of_tokens(built, most):
    with pytest.raises(ValueError, match=re.escape("line 3: field 'most'")):
        built([*LIMITED[:2], LIMITED[2] | {"most": most}, *LIMITED[3:]], limit="most")


def test_a_limit_below_the_answer_is_refused(built):
    cut = [*LIMITED[:4], {"prompt": "a", "answer": "123", "most": 3}]
    with pytest.raises(ValueError, match="line 5: the answer has 4 tokens and its limit is 3"):
        built(cut, limit="most")


def test_every_sampler_keeps_the_limits_of_rows(built):
    """Of a step, of an evaluation and of greedy answers, wherever they are decoded."""
    table = [row | {"most": 3 + i % 3} for i, row in enumerate(SUMS)]
    task = built(table, limit="most", answer_length=8, heldout=10.0)
    most = {row["prompt"]: row["most"] for row in table}
    for problems in (task.train, task.heldout):
        asked = prompts(task, problems)
        assert [most[text] for text in asked] == problems.truth[LIMIT].tolist()
    endless = dataclasses.replace(task, stops=())
    config = Config(
        **{"task": endless, "recipe": "remax", "prompts_per_step": 8, "answers_per_prompt": 3, "model": tiny.SMALL},
        **{"mesh": MeshShape(data=1), "warmup": WarmUp(max_steps=0)},
    )
    programs = Programs(config)
    params = programs.fresh_params()
    rollout = programs.sample(params, 1)
    limit = np.asarray(task.train.truth[LIMIT])[np.asarray(rollout.prompt_id)]
    np.testing.assert_array_equal(rollout.acted.sum(axis=-1), np.broadcast_to(limit[:, None], (8, 3)))
    assert rollout.truncated.all()
    greedy = programs._greedy(params, rollout, {LIMIT: jnp.asarray(limit)})
    np.testing.assert_array_equal(greedy.acted.sum(axis=-1)[:, 0], limit)
    out, _ = Evaluator(programs.policy, endless, programs.mesh, 0, 10, 2).decode(params, 0, 2, SamplingRules())
    np.testing.assert_array_equal(out.acted.sum(axis=-1), np.asarray(task.heldout.truth[LIMIT])[:, None].repeat(2, 1))
