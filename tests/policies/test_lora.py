"""Adapters: merged equals unmerged equals the sum by hand, gradients follow from the full one, folders are PEFT's."""

import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from learners import assert_close, assert_same, distance
from safetensors.numpy import load_file, save_file

from jaxrl_llm.policies.config import LINEARS, DecoderConfig, Lora, read_lora
from jaxrl_llm.policies.hub.config_json import Hub, family_of
from jaxrl_llm.policies.hub.load import load_folder, save_folder
from jaxrl_llm.policies.hub.peft_folder import CONFIG, WEIGHTS, load_adapter, save_adapter
from jaxrl_llm.policies.logp import answer_logp
from jaxrl_llm.policies.lora import AdaptedPolicy, beside, merged
from jaxrl_llm.policies.policy import Policy
from jaxrl_llm.sharding import MeshShape, make_mesh, state_shardings

GEMMA = {"post_norms": True, "norm_offset": True, "activation": "gelu", "scaled_embedding": True, "query_scale": 8.0}
FAMILIES = {
    "llama, tied": {},
    "qwen2, untied": {"tied": False, "qkv_bias": True},
    "gemma 2": GEMMA | {"windowed": (True, False), "window": 2, "attention_cap": 5.0, "logit_cap": 5.0},
}
EVERY = (*LINEARS, "head")
LORA = Lora(rank=3, alpha=5.0)
PROMPT, MASK = tiny.prompts((1, 3), 4)
ANSWER = jnp.asarray(np.random.default_rng(0).integers(0, tiny.VOCAB, (2, 2, 4)), jnp.int32)


def adapted(lora=LORA, **changes):
    """A policy of adapters, its trunk, and adapters that both matter."""
    policy, trunk = tiny.decoder(**changes)
    adapters = AdaptedPolicy(policy.config, policy.vocab_size, lora)
    rng = np.random.default_rng(1)
    some = jax.tree.map(lambda x: jnp.asarray(rng.normal(scale=0.2, size=x.shape), jnp.float32), adapters.shapes())
    return policy, trunk, adapters.on(trunk), some


def logp(policy, params):
    return answer_logp(policy, params, PROMPT, MASK, ANSWER, jnp.ones(ANSWER.shape, bool))[0]


plain_logp = tiny.jit(logp, static_argnums=0)


def adapted_logp(policy, trunk, adapter):
    return tiny.jit(lambda trunk, adapter: logp(policy.on(trunk), adapter))(trunk, adapter)


def by_hand(lora, trunk, adapter):
    """W + alpha/rank A B with loops over layers, heads flattened."""
    moved = jax.tree.map(np.array, trunk)
    for name, pair in adapter.get("blocks", {}).items():
        a, b = (np.asarray(pair[side], np.float64) for side in "ab")
        for n in range(len(a)):
            product = a[n].reshape(-1, lora.rank) @ b[n].reshape(lora.rank, -1)
            moved["blocks"][name][n] += (lora.alpha / lora.rank * product).reshape(moved["blocks"][name][n].shape)
    if "head" in adapter:
        moved["head"] += (lora.alpha / lora.rank * np.asarray(adapter["head"]["a"] @ adapter["head"]["b"])).T
    return moved


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_is_unmerged_is_by_hand(family):
    changes = FAMILIES[family]
    lora = dataclasses.replace(LORA, targets=LINEARS if changes.get("tied", True) else EVERY)
    policy, trunk, adapters, some = adapted(lora, **changes)
    ours = adapted_logp(adapters, trunk, some)
    weights = merged(lora, trunk, some)
    assert_close(weights, by_hand(lora, trunk, some), atol=1e-6)
    np.testing.assert_allclose(ours, plain_logp(policy, weights), atol=2e-5)
    assert float(jnp.max(jnp.abs(ours - plain_logp(policy, trunk)))) > 0.1
    # broken members: the scale forgotten, and merged twice
    forgotten = merged(dataclasses.replace(lora, alpha=float(lora.rank)), trunk, some)
    twice = merged(lora, weights, some)
    for broken in (forgotten, twice):
        assert float(jnp.max(jnp.abs(ours - plain_logp(policy, broken)))) > 0.02


def test_a_target_alone_moves_the_policy_and_the_rest_of_the_trunk_is_no_copy():
    policy, trunk, _, _ = adapted(tied=False)
    start = plain_logp(policy, trunk)
    for name in EVERY:
        lora = dataclasses.replace(LORA, targets=(name,))
        _, _, adapters, some = adapted(lora, tied=False)
        weights = merged(lora, trunk, some)
        assert float(jnp.max(jnp.abs(plain_logp(policy, weights) - start))) > 1e-3, name
        same = jax.tree.map(lambda x, y: x is y, trunk, weights)
        assert len([x for x in jax.tree.leaves(same) if not x]) == 1
        assert jax.tree.structure(adapters.shapes()) == jax.tree.structure(some)


def test_fresh_adapters_change_nothing_and_are_drawn_by_name():
    policy, trunk, adapters, _ = adapted()
    fresh = nn.unbox(adapters.init(jax.random.key(0)))
    assert_same(merged(LORA, trunk, fresh), trunk)
    np.testing.assert_array_equal(adapted_logp(adapters, trunk, fresh), plain_logp(policy, trunk))
    assert not any(bool(jnp.any(pair["b"])) for pair in fresh["blocks"].values())
    wide = AdaptedPolicy(dataclasses.replace(policy.config, width=256), tiny.VOCAB, dataclasses.replace(LORA, rank=64))
    drawn = nn.unbox(wide.init(jax.random.key(0)))["blocks"]
    for name, inputs in (("query", 256), ("down", 32), ("out", 32)):
        assert float(jnp.std(drawn[name]["a"])) * inputs**0.5 == pytest.approx(1, abs=0.05), name
    alone = AdaptedPolicy(policy.config, tiny.VOCAB, dataclasses.replace(LORA, targets=("value",)))
    np.testing.assert_array_equal(
        nn.unbox(alone.init(jax.random.key(0)))["blocks"]["value"]["a"], fresh["blocks"]["value"]["a"]
    )


def test_gradients_follow_from_the_full_one_by_the_chain_rule():
    """dA = alpha/rank dW Bᵀ and dB = alpha/rank Aᵀ dW, with dW at W + alpha/rank A B; the trunk gets none."""
    policy, trunk, adapters, some = adapted(dataclasses.replace(LORA, targets=EVERY), tied=False)
    weight = jnp.asarray(np.random.default_rng(2).normal(size=ANSWER.shape), jnp.float32)
    lora = adapters.lora

    @tiny.jit
    def ours(trunk, some):
        return jax.grad(lambda t, s: jnp.sum(weight * logp(adapters.on(t), s)), argnums=(0, 1))(trunk, some)

    of_trunk, found = ours(trunk, some)
    full = tiny.jit(jax.grad(lambda p: jnp.sum(weight * logp(policy, p))))(merged(lora, trunk, some))
    assert not any(bool(jnp.any(x)) for x in jax.tree.leaves(of_trunk))
    scale = lora.alpha / lora.rank
    for name in LINEARS:
        pair, slope = some["blocks"][name], full["blocks"][name]
        flat = slope.reshape(len(slope), int(np.prod(pair["a"].shape[1:-1])), -1)
        a, b = pair["a"].reshape(len(slope), -1, lora.rank), pair["b"].reshape(len(slope), lora.rank, -1)
        expected = {
            "a": scale * jnp.einsum("nio,nro->nir", flat, b).reshape(pair["a"].shape),
            "b": scale * jnp.einsum("nir,nio->nro", a, flat).reshape(pair["b"].shape),
        }
        assert_close(found["blocks"][name], expected, atol=1e-5, rtol=1e-4)
        assert float(jnp.max(jnp.abs(expected["a"]))) > 1e-2
    head = {"a": scale * full["head"].T @ some["head"]["b"].T, "b": scale * some["head"]["a"].T @ full["head"].T}
    assert_close(found["head"], head, atol=1e-5, rtol=1e-4)


@pytest.mark.long
def test_a_full_rank_follows_full_training():
    """With A the identity and alpha = rank, the step of B is the step of W."""
    policy, trunk = tiny.decoder(seed=3)
    lora = Lora(rank=16, alpha=16.0, targets=("gate",))
    adapters = AdaptedPolicy(policy.config, policy.vocab_size, lora)
    zeros = jnp.zeros(adapters.shapes()["blocks"]["gate"]["b"].shape)
    eye = {"blocks": {"gate": {"a": jnp.broadcast_to(jnp.eye(16), (2, 16, 16)), "b": zeros}}}
    slope = tiny.jit(jax.grad(lambda s: jnp.sum(logp(adapters.on(trunk), s))))(eye)["blocks"]["gate"]["b"]
    full = tiny.jit(jax.grad(lambda p: jnp.sum(logp(policy, p))))(trunk)["blocks"]["gate"]
    np.testing.assert_allclose(slope, full, atol=1e-5)


@pytest.mark.long
def test_bfloat16_stays_near():
    policy, trunk, adapters, some = adapted(bfloat16=True)
    exact = dataclasses.replace(policy.config, bfloat16=False)
    wide = plain_logp(Policy(exact, policy.vocab_size), merged(LORA, trunk, some))
    np.testing.assert_allclose(adapted_logp(adapters, trunk, some), wide, atol=0.15)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rank": -1}, "lora.rank must be 1 or more"),
        ({"rank": True}, "lora.rank must be 1 or more"),
        ({"rank": 4, "alpha": 0.0}, "lora.alpha must be a finite number above 0"),
        ({"rank": 4, "targets": ("q_proj", "query")}, "no linear map 'q_proj'"),
        ({"rank": 4, "targets": ("vlaue",)}, "did you mean 'value'"),
        ({"rank": 4, "targets": ()}, "name each linear map once and one at least"),
        ({"rank": 4, "targets": ("up", "up")}, "name each linear map once"),
    ],
)
def test_adapters_that_cannot_be_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Lora(**fields)


def test_a_tied_head_takes_no_adapter():
    lora = Lora(rank=1, targets=("head",))
    lora.check(DecoderConfig(tied=False))
    with pytest.raises(ValueError, match="head of a tied model"):
        lora.check(DecoderConfig())
    assert read_lora(**json.loads(json.dumps(dataclasses.asdict(lora)))) == lora


# folders


def places(policy):
    return state_shardings(make_mesh(MeshShape()), policy.init, jax.random.key(0))


def hub_of(policy):
    return Hub(
        config=policy.config, family=family_of(policy.config), vocab_size=tiny.VOCAB, max_length=64, bos=0, eos=(1,)
    )


def test_an_adapter_folder_holds_what_peft_reads(tmp_path):
    """Names, orientation and scale, by what they must do: their matrices on the tensors of the trunk's own folder."""
    lora = dataclasses.replace(LORA, targets=EVERY)
    policy, trunk, adapters, some = adapted(lora, tied=False, qkv_bias=True)
    save_folder(tmp_path / "model", hub_of(policy), trunk)
    save_adapter(tmp_path / "adapter", policy.config, lora, some, base="somewhere/trunk")
    fields = json.loads((tmp_path / "adapter" / CONFIG).read_text())
    assert (fields["peft_type"], fields["r"], fields["lora_alpha"]) == ("LORA", 3, 5)
    assert fields["target_modules"] == [
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head")
    ]
    tensors, weights = load_file(tmp_path / "adapter" / WEIGHTS), load_file(tmp_path / "model" / "model.safetensors")
    name = "base_model.model.model.layers.1.mlp.down_proj"
    assert tensors[f"{name}.lora_A.weight"].shape == (3, 32)
    assert tensors[f"{name}.lora_B.weight"].shape == (16, 3)
    stems = {key.rpartition(".lora_")[0] for key in tensors}
    assert len(stems) == 7 * 2 + 1
    for stem in stems:
        scale = fields["lora_alpha"] / fields["r"]
        product = tensors[f"{stem}.lora_B.weight"] @ tensors[f"{stem}.lora_A.weight"]
        weights[f"{stem.removeprefix('base_model.model.')}.weight"] += scale * product
    save_file(weights, tmp_path / "model" / "model.safetensors")
    _, moved = load_folder(tmp_path / "model", places)
    assert_close(moved, merged(lora, trunk, some), atol=1e-6)
    np.testing.assert_allclose(plain_logp(policy, moved), adapted_logp(adapters, trunk, some), atol=2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_adapter_and_merged_folders_are_read_back(family, tmp_path):
    policy, trunk, _, some = adapted(**FAMILIES[family])
    save_adapter(tmp_path, policy.config, LORA, some)
    lora, again = load_adapter(tmp_path, policy.config, tiny.VOCAB, places)
    assert lora == LORA
    assert_same(again, some)
    save_folder(tmp_path / "merged", hub_of(policy), merged(LORA, trunk, some))
    assert_same(load_folder(tmp_path / "merged", places)[1], merged(LORA, trunk, some))


DAMAGED = {
    "dora": ({"use_dora": True}, "use_dora=True is not known here"),
    "other ranks": ({"rank_pattern": {"q_proj": 8}}, "rank_pattern="),
    "more that was trained": ({"modules_to_save": ["lm_head"]}, "modules_to_save="),
    "biases": ({"bias": "all"}, "bias 'all'"),
    "another method": ({"peft_type": "IA3"}, "peft_type must be LORA, not 'IA3'"),
    "a changed trunk": ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' changes the weights"),
    "no rank": ({"r": 0}, "r must be a positive whole number"),
    "another rank": ({"r": 2}, r"lora_A.weight is of another shape: \[3, 16\] instead of \[2, 16\]"),
    "a huge rank": ({"r": 2**39}, "r must be a positive whole number below"),
    "fewer modules": ({"target_modules": ["q_proj"]}, "have no place in this model"),
    "unknown modules": ({"target_modules": ["q_prj"]}, "did you mean 'q_proj'"),
    "a pattern": ({"target_modules": ".*q"}, "must be a list of names"),
    "no name": ({"target_modules": [["q_proj"]]}, "no linear map"),
    "no alpha": ({"lora_alpha": None}, "lora_alpha is missing"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_adapters_of_another_kind_are_refused_by_name(kind, tmp_path):
    changes, message = DAMAGED[kind]
    policy, _, _, some = adapted()
    save_adapter(tmp_path, policy.config, LORA, some)
    fields = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(fields | changes))
    with pytest.raises(ValueError, match=message) as refused:
        load_adapter(tmp_path, policy.config, tiny.VOCAB, places)
    assert str(tmp_path) in str(refused.value)


def test_weights_that_are_damaged_are_refused(tmp_path):
    policy, _, _, some = adapted()
    save_adapter(tmp_path, policy.config, LORA, jax.tree.map(lambda x: x * jnp.nan, some))
    with pytest.raises(ValueError, match="not finite"):
        load_adapter(tmp_path, policy.config, tiny.VOCAB, places)
    (tmp_path / WEIGHTS).write_bytes(b"\0" * 40)
    with pytest.raises(ValueError, match="no readable safetensors"):
        load_adapter(tmp_path, policy.config, tiny.VOCAB, places)


def test_idle_fields_and_rank_stabilised_adapters_are_read(tmp_path):
    policy, _, _, some = adapted()
    save_adapter(tmp_path, policy.config, LORA, some)
    fields = json.loads((tmp_path / CONFIG).read_text())
    fields |= {"use_rslora": True, "lora_dropout": 0.1, "peft_version": "0.18.0", "layers_to_transform": None}
    (tmp_path / CONFIG).write_text(json.dumps(fields | {"init_lora_weights": True, "alpha_pattern": {}}))
    lora, again = load_adapter(tmp_path, policy.config, tiny.VOCAB, places)
    assert lora.scale == pytest.approx(5 / 3**0.5)
    assert distance(again, some) == 0


def test_beside_is_a_tree_that_any_function_of_parameters_takes():
    policy, trunk, adapters, some = adapted()
    np.testing.assert_array_equal(plain_logp(policy, beside(LORA, trunk, some)), adapted_logp(adapters, trunk, some))
