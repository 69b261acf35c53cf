"""Answers from a server of the OpenAI completions protocol, such as vLLM or SGLang, with their log-probabilities.

Prompts go out as token ids and answers come back as token ids: text is never tokenised again. Both servers return ids
for `return_token_ids` (vLLM from 0.10.2 on, SGLang from mid-2026 on); older vLLM spells them in `logprobs.tokens`.

Which log-probability comes back is the server's choice, and at temperature 1 without top-k or top-p all are the same:

    vLLM     of the policy itself; of what is really sampled from with `--logprobs-mode processed_logprobs`
    SGLang   at the temperature, before top-p; of the policy itself with SGLANG_RETURN_ORIGINAL_LOGPROB=1

So with other rules start the server for what is sampled from, and give the sampler a `rescore` that gives the rest.
"""

import concurrent.futures
import dataclasses
import functools
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from jaxrl_llm import random
from jaxrl_llm.policies.policy import Params
from jaxrl_llm.rollouts.completions import PassingError, SamplerError, Server
from jaxrl_llm.rollouts.generate import Answers
from jaxrl_llm.rollouts.sampling import SamplingRules
from jaxrl_llm.rollouts.stopping import Stopping
from jaxrl_llm.sharding import fetch

ROUNDING = 1e-3
"""Nats by which rounding may lift a log-probability above 0; such a one is taken as 0."""

LEAST = -1e6
"""Nats; a token that was drawn has more. NaN is not above it, and an infinity not below."""

Rescore = Callable[
    [Params, Int[Array, "P L"], Bool[Array, "P L"], Int[Array, "P G T"], Bool[Array, "P G T"]], Float[Array, "P G T"]
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Patience:
    """How long and how often an answer is asked for, and how many at a time."""

    seconds: float = 600.0  # for one try
    tries: int = 4  # the first one included
    wait: float = 1.0  # seconds before the second try; twice as long before each further one
    together: int = 64  # requests in flight

    def __post_init__(self):
        if not 0 < self.seconds < math.inf or not 0 <= self.wait < math.inf or min(self.tries, self.together) < 1:
            raise ValueError(f"seconds, tries and together must be above 0 and wait not below, not {self}")


class OpenAISampler:
    """A `Sampler`: one request an answer, whose seed is derived from the answer's key.

    Asked again, up to `patience.tries` times: what runs out of time ("timeouts"), connections that break and statuses
    408, 425, 429 and 5xx ("errors"), and replies that are no JSON or hold an answer that cannot be one ("malformed":
    no token or too many, ids out of range, an answer that neither ends nor fills its length or goes on behind its end,
    log-probabilities that are positive, not finite or of another number). Then the answer is given up: it has no acted
    token, so that it is invalid and no zero, and counts as "failed". Refused at once, by SamplerError: any other
    status, a reply without token ids or log-probabilities, a server that has read another prompt, and a batch without
    a single answer.

    server      where it is
    vocab_size  ids that the policy has
    hand_over   called with the parameters before the first answer of theirs; None: the server keeps what it has
    rescore     log-probabilities of the policy itself, for rules that are not temperature 1 of all tokens
    """

    def __init__(
        self,
        server: Server,
        vocab_size: int,
        *,
        patience: Patience | None = None,
        hand_over: Callable[[Params], None] | None = None,
        rescore: Rescore | None = None,
    ) -> None:
        self.server, self.vocab_size, self.patience = server, vocab_size, patience or Patience()
        self.hand_over, self.rescore = hand_over, rescore
        self.counts: Counter[str] = Counter(requests=0, timeouts=0, errors=0, malformed=0, failed=0)
        self.last_error = ""
        self._given, self._lock = None, threading.Lock()

    def __call__(
        self,
        params: Params,
        prompt: Int[Array, "P L"],
        prompt_mask: Bool[Array, "P L"],
        keys: Key[Array, "P G"],
        rules: SamplingRules,
        stopping: Stopping,
        limit: Int[Array, "P G"] | None = None,
    ) -> Answers:
        """Answers in the order of the keys. Raises SamplerError; see above."""
        plain = rules == SamplingRules()
        if not plain and self.rescore is None:
            raise SamplerError(
                f"{rules} needs `rescore`: a server gives one log-probability a token, and two are needed"
            )
        if self.hand_over and params is not self._given:
            self.hand_over(params)
            self._given = params
        ids, mask, seeds = fetch((prompt, prompt_mask, random.answer_seeds(keys)))
        common = self._asked(rules, stopping)
        most = np.full(keys.shape, stopping.length) if limit is None else np.minimum(fetch(limit), stopping.length)
        bodies = [
            common | {"prompt": row[real].tolist(), "seed": int(seed), "max_tokens": int(tokens)}
            for row, real, group, sizes in zip(ids, mask, seeds, most, strict=True)
            for seed, tokens in zip(group, sizes, strict=True)
        ]
        with concurrent.futures.ThreadPoolExecutor(min(self.patience.together, len(bodies))) as threads:
            found = list(threads.map(functools.partial(self._answer, stopping=stopping), bodies))
        if not any(found):
            raise SamplerError(f"none of {len(found)} answers has come: {self.last_error}")
        out = _assembled(found, keys.shape, stopping)
        if plain:
            return out
        policy_logp = jnp.where(out.acted, self.rescore(params, prompt, prompt_mask, out.answer, out.acted), 0)
        behaviour = jnp.zeros_like(policy_logp) if rules.temperature == 0 else out.behaviour_logp
        return dataclasses.replace(out, behaviour_logp=behaviour, policy_logp=policy_logp)

    def _asked(self, rules: SamplingRules, stopping: Stopping) -> dict[str, Any]:
        """What all requests have in common. Everything is said: servers take what is not from the model's folder."""
        return {
            **{"model": self.server.model, "n": 1, "stop_token_ids": list(stopping.eos)},
            **{"stop": list(stopping.strings.strings) if stopping.strings else []},
            **{"include_stop_str_in_output": True, "no_stop_trim": True},  # the latter is what SGLang calls the former
            **{"temperature": rules.temperature, "top_p": rules.top_p, "top_k": rules.top_k or -1, "min_p": 0.0},
            **{"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0},
            **{"logprobs": 1, "return_token_ids": True, "return_tokens_as_token_ids": True},
            **{"skip_special_tokens": False, "stream": False},
        }

    def _answer(self, body: Mapping[str, Any], stopping: Stopping) -> tuple[list[int], list[float]] | None:
        """Ids and log-probabilities, or None where the answer is given up."""
        for attempt in range(self.patience.tries):
            if attempt:
                time.sleep(self.patience.wait * 2 ** (attempt - 1))
            self._count("requests")
            try:
                reply = self.server.post("/v1/completions", body, self.patience.seconds)
                return read_answer(reply, body, stopping, self.vocab_size)
            except PassingError as error:
                self._count(error.kind, str(error))
        self._count("failed")
        return None

    def _count(self, kind: str, reason: str = "") -> None:
        with self._lock:
            self.counts[kind] += 1
            self.last_error = reason or self.last_error


def read_answer(
    reply: Mapping[str, Any], asked: Mapping[str, Any], stopping: Stopping, vocab_size: int
) -> tuple[list[int], list[float]]:
    """Ids, the one that ends the answer included, and their log-probabilities in nats, of the reply to a request.

    Raises PassingError for an answer that cannot be one, SamplerError for a server that does not tell enough.
    """
    choices = reply.get("choices")
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise PassingError("malformed", f"the reply has no single choice: {str(reply)[:200]}")
    choice, prompt = choices[0], asked["prompt"]
    seen = choice.get("prompt_token_ids") or reply.get("prompt_token_ids")
    if seen is not None and seen != prompt:
        raise SamplerError(f"the server has read another prompt: {str(seen)[:200]} instead of {str(prompt)[:200]}")
    told = choice.get("logprobs")
    logp = told.get("token_logprobs") if isinstance(told, dict) else None
    if logp is None:
        raise SamplerError(
            "the server returns no log-probabilities (logprobs.token_logprobs): it cannot be learnt from"
        )
    ids = choice.get("token_ids")
    ids = _spelled(told.get("tokens")) if ids is None else ids
    if ids is None:
        raise SamplerError(
            "the server returns no token ids, and text is never tokenised again: it needs return_token_ids "
            "(vLLM 0.10.2 or newer, SGLang of July 2026 or newer)"
        )
    reason = _flaw(ids, logp, vocab_size) or _wrong_end(ids, stopping, asked["max_tokens"])
    if reason:
        raise PassingError("malformed", reason)
    return ids, [min(x, 0.0) for x in logp]


def _spelled(tokens: Any) -> list[int] | None:
    """Ids out of "token_id:17", as vLLM writes them on request."""
    mark = "token_id:"
    if not isinstance(tokens, list) or not tokens:
        return None
    if not all(isinstance(t, str) and t.startswith(mark) and t[len(mark) :].isdecimal() for t in tokens):
        return None
    return [int(token[len(mark) :]) for token in tokens]


def _flaw(ids: Any, logp: Any, vocab_size: int) -> str | None:
    """Why this is no answer."""
    if not isinstance(ids, list) or not all(type(i) is int and 0 <= i < vocab_size for i in ids):
        return f"token ids must be whole numbers below {vocab_size}, not {str(ids)[:200]}"
    if not isinstance(logp, list) or len(logp) != len(ids):
        return f"{len(ids)} tokens have the log-probabilities {str(logp)[:200]}"
    if not all(type(x) in (int, float) and LEAST < x <= ROUNDING for x in logp):
        return f"log-probabilities must be finite and not above 0: {str(logp)[:200]}"
    return None


def _wrong_end(ids: Sequence[int], stopping: Stopping, most: int) -> str | None:
    """Why no answer of this length could be."""
    if not 1 <= len(ids) <= most:
        return f"an answer has 1 to {most} tokens, not {len(ids)}"
    ends = np.flatnonzero(_ends(ids, stopping))
    if len(ends) and ends[0] != len(ids) - 1:
        return f"the answer goes on behind token {ids[ends[0]]}, which ends it"
    if not len(ends) and len(ids) < most:
        return f"the answer breaks off after {len(ids)} of {most} tokens, with {ids[-1]}, which ends nothing"
    return None


def _ends(ids: Sequence[int], stopping: Stopping) -> np.ndarray:
    """Which tokens of an answer end it."""
    ends = np.isin(ids, stopping.eos)
    if stopping.strings:
        ends |= stopping.strings.completed_by(np.asarray(ids), np.ones(len(ids), bool))
    return ends


def _assembled(
    found: Sequence[tuple[list[int], list[float]] | None], shape: tuple[int, ...], stopping: Stopping
) -> Answers:
    """[P G T] of answers in the order of their keys [P G]; zeros, pads and nothing acted where there is none."""
    answer = np.full((len(found), stopping.length), stopping.pad, np.int32)
    acted, logp = np.zeros(answer.shape, bool), np.zeros(answer.shape, np.float32)
    truncated = np.zeros(len(found), bool)
    for row, one in enumerate(found):
        if one is not None:
            size = len(one[0])
            answer[row, :size], logp[row, :size], acted[row, :size] = one[0], one[1], True
            truncated[row] = not _ends(one[0], stopping).any()
    whole = lambda x: jnp.asarray(x.reshape(*shape, *x.shape[1:]))  # noqa: E731
    logp = whole(logp)
    return Answers(
        answer=whole(answer), acted=whole(acted), behaviour_logp=logp, policy_logp=logp, truncated=whole(truncated)
    )
