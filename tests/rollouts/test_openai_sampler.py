"""A sampler behind which a server stands: its answers, its failures, and what is refused."""

import contextlib
import dataclasses
import functools
import json
import socket
import string
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from stub_server import EOS, VOCAB, Stub, fair, reply, serving

from jaxrl_llm import random
from jaxrl_llm.policies.config import DecoderConfig
from jaxrl_llm.policies.hub.config_json import Hub
from jaxrl_llm.policies.hub.load import load_folder
from jaxrl_llm.policies.logp import answer_logp
from jaxrl_llm.rollouts.completions import PassingError, SamplerError, Server
from jaxrl_llm.rollouts.hand_over import by_folder, vllm_order
from jaxrl_llm.rollouts.openai_sampler import OpenAISampler, Patience
from jaxrl_llm.rollouts.sampler import Sampler, on_device
from jaxrl_llm.rollouts.sampling import GREEDY, SamplingRules
from jaxrl_llm.rollouts.stopping import Stopping, StopStrings
from jaxrl_llm.sharding import MeshShape, make_mesh, state_shardings
from jaxrl_llm.tokenizers import CharTokenizer

P, G, L, T = 3, 4, 5, 6
STOPPING = Stopping(eos=(EOS,), pad=0, length=T)
QUICK = Patience(seconds=5.0, tries=3, wait=0.01, together=8)


@functools.cache
def asked(step=0, seed=0):
    prompt, mask = tiny.prompts((2, 5, 3), L, VOCAB)
    keys = random.answer_keys(random.stream_key(seed, random.Stream.ROLLOUT), step, jnp.arange(P) + 7, G)
    return prompt, mask, keys


@pytest.fixture(scope="module")
def wanted():
    """What a server gives that never fails."""
    with serving(Stub()) as url:
        return sample(url)[1]


def sample(url, rules=None, params=None, patience=QUICK, step=0, **options):
    sampler = OpenAISampler(Server(url=url, model="m"), VOCAB, patience=patience, **options)
    return sampler, sampler(params, *asked(step), rules or SamplingRules(), STOPPING)


def test_answers_are_those_of_the_server_and_no_text_is_read():
    stub = Stub(patience=10.0)
    with serving(stub) as url:
        sampler, out = sample(url, patience=dataclasses.replace(QUICK, seconds=30.0))
    prompt, mask, keys = asked()
    seeds = np.asarray(random.answer_seeds(keys))
    for p in range(P):
        for g in range(G):
            ids = np.asarray(prompt)[p][np.asarray(mask)[p]].tolist()
            wanted, logp = fair({"prompt": ids, "seed": int(seeds[p, g]), "max_tokens": T})
            size = len(wanted)
            assert out.answer[p, g].tolist() == wanted + [0] * (T - size)
            assert out.acted[p, g].tolist() == [True] * size + [False] * (T - size)
            np.testing.assert_allclose(out.policy_logp[p, g, :size], logp, rtol=1e-6)
            assert not out.policy_logp[p, g, size:].any()
            assert bool(out.truncated[p, g]) == (wanted[-1] != EOS)
    np.testing.assert_array_equal(out.behaviour_logp, out.policy_logp)
    assert out.truncated.any()
    assert not out.truncated.all()
    assert sampler.counts == {"requests": P * G, "timeouts": 0, "errors": 0, "malformed": 0, "failed": 0}
    assert 1 < stub.most <= QUICK.together
    body = stub.asked[0][2]
    assert {"model": "m", "n": 1, "max_tokens": T, "stop_token_ids": [EOS], "top_k": -1}.items() <= body.items()
    assert {"stop": [], "include_stop_str_in_output": True, "no_stop_trim": True}.items() <= body.items()
    assert {"temperature": 1.0, "top_p": 1.0, "return_token_ids": True, "logprobs": 1}.items() <= body.items()
    assert stub.asked[0][0] == "/v1/completions"
    assert "Authorization" not in stub.asked[0][1]


def test_stop_strings_and_limits_are_those_of_each_answer():
    """The server is told both, and what it gives back is held against both."""
    letters = CharTokenizer(string.ascii_letters[: VOCAB - 3])
    strings = StopStrings.of(letters, ("cd", "f"))
    stopping = dataclasses.replace(STOPPING, strings=strings)
    limit = jnp.asarray([[1, 2, 3, 9], [6, 5, 4, 6], [6, 6, 6, 2]])
    c, d, f, x = letters.encode("cdfx")

    def behave(body, path, tries):
        """Answers of each kind: c d, an f at the limit, x up to the limit; first one that goes on or breaks off."""
        most = body["max_tokens"]
        kinds = [[c, d], [x] * (most - 1) + [f], [x] * most]
        ids = kinds[body["seed"] % 3][:most]
        wrong = [[f, x], [x] * (most + 1), [c] * max(most - 1, 0)][body["seed"] % 3]
        ids = wrong if tries == 1 else ids
        return 200, reply(body, ids, [-1.0] * len(ids))

    with serving(Stub(behave)) as url:
        stub_sampler = OpenAISampler(Server(url=url, model="m"), VOCAB, patience=QUICK)
        out = stub_sampler(None, *asked(), SamplingRules(), stopping, limit)
    seeds, most = np.asarray(random.answer_seeds(asked()[2])) % 3, np.minimum(limit, T)
    assert set(seeds.ravel()) == {0, 1, 2}
    np.testing.assert_array_equal(out.acted.sum(axis=-1), np.where(seeds == 0, np.minimum(2, most), most))
    np.testing.assert_array_equal(out.truncated, (seeds == 2) | (seeds == 0) & (most == 1))
    assert stub_sampler.counts["malformed"] == P * G


def test_the_device_sampler_has_the_same_signature():
    policy, params = tiny.bigram(VOCAB)
    sampler = on_device(policy)
    assert isinstance(sampler, Sampler)
    assert isinstance(OpenAISampler(Server(url="http://a:1", model="m"), VOCAB), Sampler)
    out = sampler(params, *asked(), SamplingRules(), STOPPING)
    assert out.answer.shape == (P, G, T)


def test_seeds_differ_by_step_prompt_and_answer_and_are_the_same_again():
    seeds = [np.asarray(random.answer_seeds(asked(step)[2])) for step in (0, 1)]
    assert len(np.unique(seeds)) == 2 * P * G
    assert np.min(seeds) >= 0
    np.testing.assert_array_equal(seeds[0], random.answer_seeds(asked(0)[2]))
    fewer = random.answer_keys(random.stream_key(0, random.Stream.ROLLOUT), 0, jnp.arange(2) + 8, G - 1)
    np.testing.assert_array_equal(random.answer_seeds(fewer), seeds[0][1:, : G - 1])


def failing(content, status=200, tries=1):
    """The first tries of the first prompt fail, by `content(body, ids, logp)`; all else is as it should be."""
    first = np.asarray(asked()[0])[0][-2:].tolist()

    def behave(body, path, number):
        ids, logp = fair(body)
        if body["prompt"] == first and number <= tries:
            return status, content(body, ids, logp)
        return 200, reply(body, ids, logp)

    return behave


def slow(body, ids, logp):
    time.sleep(10)  # nobody waits for it
    return {}


# What fails -> the reply, its status, and under what it is counted.
PASSING = {
    "slow": (slow, 200, "timeouts"),
    "overloaded": (lambda *_: {"error": "busy"}, 503, "errors"),
    "too many": (lambda *_: {"error": "busy"}, 429, "errors"),
    "no JSON": (lambda *_: b"<html>", 200, "malformed"),
    "cut JSON": (lambda *x: json.dumps(reply(*x)).encode()[:-9], 200, "malformed"),
    "a list": (lambda *_: [1], 200, "malformed"),
    "deep": (lambda *_: b"[" * 100_000, 200, "malformed"),
    "no choice": (lambda *_: {"choices": []}, 200, "malformed"),
    "two choices": (lambda *x: {"choices": reply(*x)["choices"] * 2}, 200, "malformed"),
    "id too large": (lambda b, i, p: reply(b, [VOCAB] * T, [-1.0] * T), 200, "malformed"),
    "id below 0": (lambda b, i, p: reply(b, [-1] * T, [-1.0] * T), 200, "malformed"),
    "id no number": (lambda b, i, p: reply(b, ["7"] * T, [-1.0] * T), 200, "malformed"),
    "id true": (lambda b, i, p: reply(b, [True] * T, [-1.0] * T), 200, "malformed"),
    "too long": (lambda b, i, p: reply(b, [7] * (T + 1), [-1.0] * (T + 1)), 200, "malformed"),
    "empty": (lambda b, i, p: reply(b, [], []), 200, "malformed"),
    "broken off": (lambda b, i, p: reply(b, [7], [-1.0]), 200, "malformed"),
    "goes on": (lambda b, i, p: reply(b, [EOS, 7], [-1.0, -1.0]), 200, "malformed"),
    "another number": (lambda b, i, p: reply(b, i, [*p, -1.0]), 200, "malformed"),
    "positive": (lambda b, i, p: reply(b, i, [0.5] * len(i)), 200, "malformed"),
    "not a number": (lambda b, i, p: reply(b, i, [float("nan")] * len(i)), 200, "malformed"),
    "infinite": (lambda b, i, p: reply(b, i, [float("-inf")] * len(i)), 200, "malformed"),
    "huge": (lambda b, i, p: reply(b, i, [-(10**400)] * len(i)), 200, "malformed"),
    "null": (lambda b, i, p: reply(b, i, [None] * len(i)), 200, "malformed"),
}


@pytest.mark.parametrize("name", PASSING)
def test_what_passes_is_asked_again_and_what_stays_is_invalid(name, wanted):
    content, status, kind = PASSING[name]
    patience = dataclasses.replace(QUICK, seconds=2.0) if name == "slow" else QUICK
    with serving(Stub(failing(content, status))) as url:
        sampler, out = sample(url, patience=patience)
    jax.tree.map(np.testing.assert_array_equal, out, wanted)
    assert sampler.counts == {"timeouts": 0, "errors": 0, "malformed": 0} | {
        **{"requests": P * G + G, kind: G, "failed": 0}
    }
    with serving(Stub(failing(content, status, tries=99))) as url:
        sampler, out = sample(url, patience=patience)
    assert not out.acted[0].any()
    assert not out.truncated[0].any()
    np.testing.assert_array_equal(out.answer[1:], wanted.answer[1:])
    assert (sampler.counts["failed"], sampler.counts[kind]) == (G, G * QUICK.tries)
    assert sampler.last_error


REFUSED = {
    "no ids": (lambda *x: reply(*x, token_ids=None), 200, "the server returns no token ids"),
    "text for ids": (lambda *x: reply(*x, token_ids=None), 200, "text is never tokenised again"),
    "no log-probabilities": (lambda *x: reply(*x, logprobs=None), 200, "returns no log-probabilities"),
    "another prompt": (lambda *x: reply(*x, prompt_token_ids=[1, 2]), 200, r"has read another prompt: \[1, 2\]"),
    "bad request": (lambda *_: {"error": "no model m"}, 404, "answers 404: .*no model m"),
    "not allowed": (lambda *_: {"error": "who?"}, 401, "answers 401"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_server_that_is_set_up_otherwise_is_refused_at_once(name):
    content, status, words = REFUSED[name]
    stub = Stub(failing(content, status, tries=99))
    with serving(stub) as url, pytest.raises(SamplerError, match=words):
        sample(url)
    assert len(stub.asked) <= P * G, "it was asked again"


def test_a_server_that_is_not_there_is_an_error_and_not_a_batch_without_answers():
    with serving(Stub()) as url:
        pass
    with pytest.raises(SamplerError, match=r"none of 12 answers has come: .*/v1/completions: ConnectionRefused"):
        sample(url)


def test_a_reply_that_trickles_runs_out_of_time():
    """A byte now and then keeps a connection awake, and an answer waiting for ever."""
    trickle = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b" " * 900
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve():
            connection, _ = listening.accept()
            with connection, contextlib.suppress(OSError):
                for byte in trickle:
                    connection.sendall(bytes([byte]))
                    time.sleep(0.01)

        threading.Thread(target=serve, daemon=True).start()
        start = time.monotonic()
        with pytest.raises(PassingError) as error:
            Server(url=f"http://127.0.0.1:{listening.getsockname()[1]}", model="m").post("/v1", {}, 0.7)
    assert error.value.kind == "timeouts"
    assert time.monotonic() - start < 3


def test_older_vllm_spells_its_ids(wanted):
    def behave(body, path, tries):
        ids, logp = fair(body)
        said = reply(body, ids, logp)
        choice = said["choices"][0]
        del choice["token_ids"], choice["prompt_token_ids"]
        choice["logprobs"]["tokens"] = [f"token_id:{i}" for i in ids]
        return 200, said

    with serving(Stub(behave)) as url:
        jax.tree.map(np.testing.assert_array_equal, sample(url)[1], wanted)


def test_other_rules_need_both_log_probabilities():
    policy, params = tiny.bigram(VOCAB)
    rules = SamplingRules(temperature=0.7, top_k=5)
    rescore = jax.jit(lambda *inputs: answer_logp(policy, *inputs)[0])
    stub = Stub()
    with serving(stub) as url:
        with pytest.raises(SamplerError, match="needs `rescore`"):
            sample(url, rules)
        _, out = sample(url, rules, params, rescore=rescore)
        _, greedy = sample(url, GREEDY, params, rescore=rescore)
    assert stub.asked[0][2]["top_k"] == 5
    prompt, mask, _ = asked()
    wanted = answer_logp(policy, params, prompt, mask, out.answer, out.acted)[0]
    np.testing.assert_allclose(out.policy_logp, wanted, rtol=1e-6)
    assert (out.behaviour_logp != out.policy_logp).any()
    assert not greedy.behaviour_logp.any()


def test_weights_are_handed_over_once_a_version(tmp_path):
    config = DecoderConfig(layers=1, width=16, heads=2, kv_heads=1, head_size=8, mlp_width=16)
    hub = Hub(config=config, family="llama", vocab_size=VOCAB, max_length=64, bos=1, eos=(EOS,), pad=0)
    versions = [
        tiny.decoder(VOCAB, seed, **{f.name: getattr(config, f.name) for f in dataclasses.fields(config)})[1]
        for seed in (0, 1)
    ]
    seen = []

    def behave(body, path, tries):
        if path == "/v1/completions":
            return 200, reply(body, *fair(body))
        mesh = make_mesh(MeshShape(), jax.devices()[:1])
        place = lambda policy: state_shardings(mesh, policy.init, jax.random.key(0))  # noqa: E731
        seen.append(load_folder(body["model_path"], place)[1])
        return 200, {"success": True}

    with serving(Stub(behave)) as url:
        server = Server(url=url, model="m", token="secret")  # noqa: S106
        sampler = OpenAISampler(server, VOCAB, patience=QUICK, hand_over=by_folder(server, hub, tmp_path))
        for params in (versions[0], versions[0], versions[1]):
            sampler(params, *asked(), SamplingRules(), STOPPING)
    assert "secret" not in repr(server)
    for found, wanted in zip(seen, versions, strict=True):
        jax.tree.map(np.testing.assert_array_equal, found, wanted)
    assert [path.name for path in tmp_path.iterdir()] == ["version-1"]
    assert vllm_order("/x")[1]["kwargs"] == {"weights_path": "/x"}


@pytest.mark.parametrize(("status", "content"), [(200, {"success": False, "message": "no"}), (500, {}), (404, {})])
def test_weights_that_are_not_taken_stop_the_run(status, content, tmp_path):
    config = DecoderConfig(layers=1, width=16, heads=2, kv_heads=1, head_size=8, mlp_width=16)
    hub = Hub(config=config, family="llama", vocab_size=VOCAB, max_length=64, bos=1, eos=(EOS,), pad=0)
    params = tiny.decoder(VOCAB, **{f.name: getattr(config, f.name) for f in dataclasses.fields(config)})[1]
    with serving(Stub(lambda *_: (status, content))) as url, pytest.raises(SamplerError):
        by_folder(Server(url=url, model="m"), hub, tmp_path)(params)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://a", "http://", "http://a?x=1", "file:///etc"])
def test_a_wrong_address_is_refused(url):
    with pytest.raises(ValueError, match="url must be http"):
        Server(url=url, model="m")


@pytest.mark.parametrize("wrong", [{"seconds": 0.0}, {"tries": 0}, {"together": 0}, {"wait": -1.0}])
def test_wrong_patience_is_refused(wrong):
    with pytest.raises(ValueError, match="must be above 0"):
        Patience(**wrong)
