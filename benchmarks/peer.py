"""One step of RLOO in PyTorch, for the decoder, the task and the batch of a configuration: a plain, fair, batched loop.

As ours it samples with a KV cache, runs a prompt once for its group, stops when all answers have ended, grades on
arrays, and takes one step of AdamW on the sum of advantage times log-probability. It is eager: nothing is compiled.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch.nn import functional

from jaxrl_llm.config import Config
from jaxrl_llm.policies.logp import answer_logp
from jaxrl_llm.policies.policy import Policy

Cache = list[tuple[torch.Tensor, torch.Tensor]]


class TorchLoop:
    """The parameters of a policy as tensors, and the step that trains them."""

    def __init__(self, config: Config, params: Any):
        self.config, self.model, self.start = config, config.model, params
        task = config.task
        self.eos, self.pad, self.length = task.tokenizer.eos, task.tokenizer.pad, task.answer_length
        self.prompt = torch.from_numpy(np.asarray(task.train.prompt).astype(np.int64))
        self.mask = torch.from_numpy(np.asarray(task.train.prompt_mask).copy())
        self.right = torch.from_numpy(np.asarray(task.train.truth["answer"]).astype(np.int64))
        torch.manual_seed(0)
        self.reset()

    def reset(self) -> None:
        """Back to the parameters that were given."""
        self.weights = jax.tree.map(lambda x: torch.from_numpy(np.array(x)).requires_grad_(), self.start)
        c = self.config
        self.optimizer = torch.optim.AdamW(
            jax.tree.leaves(self.weights), lr=c.learning_rate, betas=(0.9, 0.99), weight_decay=c.weight_decay
        )

    def step(self, rows: np.ndarray) -> float:
        """Sample, grade and learn on the prompts of these rows; the mean reward."""
        at = torch.tensor(rows)
        prompt, mask, right = self.prompt[at], self.mask[at], self.right[at]
        with torch.inference_mode():
            answer, acted = self.sample(prompt, mask)
        answer, acted = answer.clone(), acted.clone()
        same = (acted == (right != self.pad)[:, None]) & (~acted | (answer == right[:, None]))
        reward = same.all(-1).float()
        group = reward.shape[1]
        advantage = (reward - reward.mean(1, keepdim=True)) * group / (group - 1)
        loss = -(advantage[..., None] * self.logp(prompt, mask, answer) * acted).sum() / reward.numel()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return float(reward.mean())

    def sample(self, prompt: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """G answers [P G T] to each prompt, and which of their tokens were drawn."""
        p, g = len(prompt), self.config.answers_per_prompt
        past, real = self.prefill(prompt, mask)
        shape = (p, g, self.length, self.model.kv_heads, self.model.head_size)
        cache = [(torch.zeros(shape), torch.zeros(shape)) for _ in past]
        answer = torch.full((p, g, self.length), self.pad)
        acted = torch.zeros(answer.shape, dtype=torch.bool)
        live, token = torch.ones((p, g), dtype=torch.bool), prompt[:, -1:].expand(p, g)
        for t in range(self.length):
            position = (real.sum(1) + t)[:, None, None].expand(p, g, 1)
            seen = torch.ones((1, t + 1), dtype=torch.bool)
            hidden = self.run(token[..., None], position, seen, past, real, cache, t)
            odds = functional.softmax(self.logits(hidden)[:, :, 0], dim=-1)
            token = torch.multinomial(odds.flatten(0, 1), 1).view(p, g)
            answer[..., t], acted[..., t] = torch.where(live, token, self.pad), live
            live = live & (token != self.eos)
            if not live.any():
                break
        return answer, acted

    def logp(self, prompt: torch.Tensor, mask: torch.Tensor, answer: torch.Tensor) -> torch.Tensor:
        """Log-probability of each answer token, all positions at once."""
        past, real = self.prefill(prompt, mask)
        p, g, t = answer.shape
        token = torch.cat([prompt[:, -1:, None].expand(p, g, 1), answer[..., :-1]], -1)
        position = real.sum(1)[:, None, None] + torch.arange(t).expand(p, g, t)
        hidden = self.run(token, position, torch.ones((t, t), dtype=torch.bool).tril(), past, real)
        logp = functional.log_softmax(self.logits(hidden), dim=-1)
        return logp.gather(-1, answer[..., None])[..., 0]

    def prefill(self, prompt: torch.Tensor, mask: torch.Tensor) -> tuple[Cache, torch.Tensor]:
        """Keys and values of the prompts without their last token, and which columns are real."""
        token, real = prompt[:, None, :-1], mask[:, :-1]
        position = (real.cumsum(1) - 1).clamp(min=0)[:, None]
        causal = torch.ones((token.shape[-1],) * 2, dtype=torch.bool).tril()
        emitted: Cache = []
        self.run(token, position, causal & real[:, None, None], None, None, emitted)
        return [(k[:, 0], v[:, 0]) for k, v in emitted], real

    def run(self, token, position, own_mask, past, real, cache=None, column=None) -> torch.Tensor:
        """Hidden states [P G S E]; with a `column` the cache is read and written there, else it collects."""
        x = self.weights["embedding"][token]
        blocks = self.weights["blocks"]
        for layer in range(self.model.layers):
            w = {name: leaf[layer] for name, leaf in blocks.items() if not isinstance(leaf, dict)}
            h = self.norm(x, blocks["attention_norm"]["scale"][layer])
            q, k, v = (torch.einsum("pgse,ehd->pgshd", h, w[name]) for name in ("query", "key", "value"))
            q, k = self.rotate(q, position), self.rotate(k, position)
            if column is not None:
                cache[layer][0][:, :, column], cache[layer][1][:, :, column] = k[:, :, 0], v[:, :, 0]
                k, v = (part[:, :, : column + 1] for part in cache[layer])
            elif cache is not None:
                cache.append((k, v))
            a = self.attend(q, k, v, own_mask, past and past[layer], real)
            x = x + torch.einsum("pgshd,hde->pgse", a, w["out"])
            h = self.norm(x, blocks["mlp_norm"]["scale"][layer])
            x = x + (functional.silu(h @ w["gate"]) * (h @ w["up"])) @ w["down"]
        return self.norm(x, self.weights["final_norm"]["scale"])

    def attend(self, q, k, v, own_mask, past, real) -> torch.Tensor:
        """Attention over the shared prompt and the own tokens; a prompt is read once for its group."""
        heads, groups = q.shape[-2], k.shape[-2]
        q = q.unflatten(-2, (groups, heads // groups)) * q.shape[-1] ** -0.5
        near = torch.einsum("pgskrd,pgtkd->pgkrst", q, k)
        # Own masks are [S T], or [P 1 S T] where prompts are ragged.
        near = near.masked_fill(~(own_mask if own_mask.ndim == 2 else own_mask[:, :, None, None]), -1e30)
        if past is None:
            out = torch.einsum("pgkrst,pgtkd->pgskrd", functional.softmax(near, -1), v)
            return out.flatten(-3, -2)
        far = torch.einsum("pgskrd,plkd->pgkrsl", q, past[0]).masked_fill(~real[:, None, None, None, None], -1e30)
        weights = functional.softmax(torch.cat([far, near], -1), -1)
        here = far.shape[-1]
        out = torch.einsum("pgkrsl,plkd->pgskrd", weights[..., :here], past[1])
        return (out + torch.einsum("pgkrst,pgtkd->pgskrd", weights[..., here:], v)).flatten(-3, -2)

    def norm(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """RMSNorm."""
        return functional.rms_norm(x, x.shape[-1:], scale, self.model.norm_eps)

    def rotate(self, x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """Rotary positions, halves rotated."""
        half = x.shape[-1] // 2
        angle = position[..., None, None] * self.model.rope.base ** (-torch.arange(half) / half)
        first, second = x[..., :half], x[..., half:]
        return torch.cat([first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()], -1)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """By the embedding, which is the head, too."""
        return hidden @ self.weights["embedding"].T

    def check(self) -> None:
        """The same log-probabilities as ours, to 1e-4 nats, of answers it has sampled: or it is another model."""
        prompt, mask = self.prompt[:8], self.mask[:8]
        with torch.no_grad():
            answer, acted = self.sample(prompt, mask)
            theirs = torch.where(acted, self.logp(prompt, mask, answer), 0.0).numpy()
        policy = Policy(self.model, self.config.vocab_size)
        arrays = [jnp.asarray(x.numpy()) for x in (prompt.int(), mask, answer.int(), acted)]
        ours, _ = jax.jit(lambda *a: answer_logp(policy, self.start, *a))(*arrays)
        gap = float(np.max(np.abs(np.asarray(ours) - theirs)))
        if not gap < 1e-4:
            raise AssertionError(f"log-probabilities differ by {gap} nats: the PyTorch loop runs another model")
