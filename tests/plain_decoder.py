"""The decoder once more, in plain operations on one unpadded sequence: no scan, no cache, no shared prefix.

`xp` is numpy, for values in float64, or jax.numpy, for gradients.
"""

import jax
import jax.numpy as jnp
import numpy as np


def rms_norm(x, scale, eps):
    return x / ((x**2).mean(-1, keepdims=True) + eps) ** 0.5 * scale


def rotate_half(xp, x):
    left, right = xp.split(x, 2, axis=-1)
    return xp.concatenate([-right, left], axis=-1)


def rope(xp, x, base):
    """Rotary positions of x [S H D], as in the Llama of the transformers library."""
    size = x.shape[-1]
    inverse = 1.0 / base ** (np.arange(0, size, 2) / size)
    angle = np.outer(np.arange(len(x)), inverse)
    angle = np.concatenate([angle, angle], axis=-1)[:, None, :]
    return x * np.cos(angle) + rotate_half(xp, x) * np.sin(angle)


def plain_logits(xp, config, params, tokens):
    """Logits [S V] behind every token of a sequence [S]."""
    x = params["embedding"][tokens]
    mask = np.tril(np.ones((len(tokens), len(tokens)), bool))
    for layer in range(config.layers):
        w = jax.tree.map(lambda leaf, at=layer: leaf[at], params["blocks"])
        h = rms_norm(x, w["attention_norm"]["scale"], config.norm_eps)
        q, k, v = (xp.einsum("se,ehd->shd", h, w[name]) for name in ("query", "key", "value"))
        q, k = rope(xp, q, config.rope.base), rope(xp, k, config.rope.base)
        k, v = (xp.repeat(y, config.heads // config.kv_heads, axis=1) for y in (k, v))
        heads = []
        for head in range(config.heads):
            odds = xp.where(mask, xp.exp(q[:, head] @ k[:, head].T / config.head_size**0.5), 0)
            heads.append(odds / odds.sum(-1, keepdims=True) @ v[:, head])
        x = x + xp.einsum("shd,hde->se", xp.stack(heads, axis=1), w["out"])
        h = rms_norm(x, w["mlp_norm"]["scale"], config.norm_eps)
        gate = h @ w["gate"]
        x = x + (gate / (1 + xp.exp(-gate)) * (h @ w["up"])) @ w["down"]
    x = rms_norm(x, params["final_norm"]["scale"], config.norm_eps)
    return x @ (params["embedding"] if config.tied else params["head"]).T


def plain_answer_logits(config, params, prompt, prompt_mask, answer, xp=np):
    """Logits [P G T V] that predict every answer token, one sequence after the other."""
    prompt, prompt_mask, answer = (np.asarray(x) for x in (prompt, prompt_mask, answer))
    if xp is np:
        params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    rows = []
    with jax.numpy_rank_promotion("allow"):
        for p, g in np.ndindex(answer.shape[:2]):
            real = prompt[p][prompt_mask[p]]
            logits = plain_logits(xp, config, params, np.concatenate([real, answer[p, g]]))
            rows.append(logits[len(real) - 1 : -1])
    return xp.stack(rows).reshape(*answer.shape, -1)


def plain_value(config, params, prompt, prompt_mask, answer):
    """log π of every answer token [P G T], in float64."""
    logits = plain_answer_logits(config, params, prompt, prompt_mask, answer)
    probability = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    return np.log(np.take_along_axis(probability, np.asarray(answer)[..., None], axis=-1)[..., 0])


def plain_logp(config, params, prompt, prompt_mask, answer):
    """log π of every answer token [P G T], to be differentiated."""
    logits = plain_answer_logits(config, params, prompt, prompt_mask, answer, xp=jnp)
    return jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.asarray(answer)[..., None], axis=-1)[..., 0]
