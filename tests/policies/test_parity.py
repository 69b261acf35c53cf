"""Logits of every family against `transformers`, on small random models with all odd features on."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jaxrl_llm.policies.hub.load import load_folder, save_folder
from jaxrl_llm.policies.policy import Policy
from jaxrl_llm.sharding import MeshShape, make_mesh, state_shardings

torch = pytest.importorskip("torch", reason="parity with transformers: pip install -e '.[parity]'")
transformers = pytest.importorskip("transformers", reason="parity with transformers: pip install -e '.[parity]'")

P, G, L, T = 3, 2, 9, 8
COMMON = {
    **{"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64, "rms_norm_eps": 1e-5},
    **{"attn_implementation": "eager", "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
}
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 3.0}
LLAMA3 |= {"original_max_position_embeddings": 16}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
GEMMA = {"sliding_window": 4, "query_pre_attn_scalar": 24}
CASES = {
    "llama": ("Llama", {"tie_word_embeddings": True, "rope_theta": 1e5}),
    "llama untied, llama3": ("Llama", {"rope_theta": 5e3, "rope_scaling": LLAMA3}),
    "llama linear": ("Llama", {"rope_theta": 5e3, "rope_scaling": {"rope_type": "linear", "factor": 2.5}}),
    "qwen2 windows, yarn": (
        "Qwen2",
        {
            "use_sliding_window": True,
            "sliding_window": 5,
            "max_window_layers": 2,
            "rope_theta": 1e4,
            "rope_scaling": YARN,
        },
    ),
    "qwen3": ("Qwen3", {"tie_word_embeddings": True, "rope_theta": 1e6}),
    "qwen3 yarn": (
        "Qwen3",
        {"rope_scaling": YARN | {"truncate": False, "mscale": 0.7, "mscale_all_dim": 1.3}, "rope_theta": 1e4},
    ),
    "gemma2": ("Gemma2", GEMMA | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "rope_theta": 1e4}),
    "gemma3": (
        "Gemma3",
        GEMMA
        | {"sliding_window_pattern": 3, "rope_theta": 1e6, "rope_local_base_freq": 1e4}
        | {"rope_scaling": {"rope_type": "linear", "factor": 8.0}, "final_logit_softcapping": 5.0},
    ),
}


def theirs(case):
    """A random model whose every parameter matters: biases and norms too."""
    name, changes = CASES[case]
    kind = "Gemma3TextConfig" if name == "Gemma3" else f"{name}Config"
    config = getattr(transformers, kind)(**COMMON | changes)
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return model


@pytest.fixture(scope="module", params=CASES)
def pair(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model = theirs(request.param)
    model.save_pretrained(folder)
    mesh = make_mesh(MeshShape())
    hub, params = load_folder(folder, lambda policy: state_shardings(mesh, policy.init, jax.random.key(0)))
    return model, hub, params, folder


def asked():
    draw = np.random.default_rng(0)
    prompt, mask = tiny.prompts((3, 6, 9), L)
    prompt = np.where(mask, draw.integers(3, 61, (P, L)), 0)
    return jnp.asarray(prompt), mask, jnp.asarray(draw.integers(3, 61, (P, G, T)))


def their_logits(model, prompt, mask, answer):
    """Logits of every token of every answer, one sequence at a time without padding [P G T V]."""
    out = []
    for p in range(P):
        real = np.asarray(prompt)[p][np.asarray(mask)[p]]
        for g in range(G):
            ids = torch.tensor(np.concatenate([real, np.asarray(answer)[p, g]]))[None]
            with torch.no_grad():
                out.append(model(ids).logits[0, len(real) - 1 : -1].numpy())
    return np.stack(out).reshape(P, G, T, -1)


def test_logits_are_those_of_transformers(pair):
    model, hub, params, _ = pair
    policy = Policy(hub.config, hub.vocab_size)
    prompt, mask, answer = asked()
    expected = their_logits(model, prompt, mask, answer)
    assert expected.std() > 0.5

    @tiny.jit
    def all_at_once(params):
        return policy.logits(params, policy.score(params, policy.prefill(params, prompt, mask), answer))

    @tiny.jit
    def one_by_one(params):
        prefix = policy.prefill(params, prompt, mask)
        first = jnp.broadcast_to(prefix.last[:, None, None], (P, G, 1))
        token = jnp.concatenate([first, answer[..., :-1]], axis=-1)

        def step(cache, t):
            logits, cache = policy.step(params, prefix, cache, token[..., t], t)
            return cache, logits

        return jnp.moveaxis(jax.lax.scan(step, policy.empty_cache(P, G, T), jnp.arange(T))[1], 0, 2)

    np.testing.assert_allclose(all_at_once(params), expected, atol=1e-4, rtol=0)
    np.testing.assert_allclose(one_by_one(params), expected, atol=1e-4, rtol=0)


def test_a_saved_folder_is_read_back_bit_by_bit_and_by_transformers(pair, tmp_path):
    model, hub, params, _ = pair
    save_folder(tmp_path, hub, params)
    mesh = make_mesh(MeshShape())
    again, same = load_folder(tmp_path, lambda policy: state_shardings(mesh, policy.init, jax.random.key(0)))
    assert again == hub
    jax.tree.map(np.testing.assert_array_equal, params, same)
    other = type(model).from_pretrained(tmp_path, attn_implementation="eager").eval()
    ids = torch.arange(3, 23)[None]
    with torch.no_grad():
        torch.testing.assert_close(other(ids).logits, model(ids).logits, rtol=0, atol=0)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == hub.family
