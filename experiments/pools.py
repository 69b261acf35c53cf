"""A small policy at moments of one run, and pools of its answers with the inner products of their scores.

A pool of M answers to a prompt, of equal probability and with scores less their mean, is a finite policy: its gradient
is known, and groups of any size can be drawn from it as often as one likes, without another backward pass.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.advantages import AdvantageTransform, bare_rollout
from jaxrl_llm.config import Config, WarmUp
from jaxrl_llm.evaluate import Evaluator
from jaxrl_llm.policies.config import DecoderConfig
from jaxrl_llm.policies.policy import Params
from jaxrl_llm.programs import Programs
from jaxrl_llm.types import Rollout
from jaxrl_llm.variance.empirical import score_gram
from jaxrl_llm.variance.empirical_backends import exact
from jaxrl_llm.variance_run import frozen_batch
from jaxrl_llm.warmup import warm_up

CACHE = pathlib.Path(__file__).parent / ".cache"
VERSION = 1  # of what the cache holds
BETWEEN = (0.1, 0.9)  # pass rates, on answers that are not in the pool, of the prompts that are taken


@dataclasses.dataclass(frozen=True, kw_only=True)
class Laboratory:
    """A run, the steps of it that are looked at, and the size of the pools there."""

    config: Config
    steps: tuple[int, ...]  # after warm-up, rising; 0: the base policy
    prompts: int  # of a pool
    answers: int  # to each of them
    screening: int = 64  # further answers, which only choose the prompts
    candidates: int = 4  # prompts asked for each that is taken
    cache: pathlib.Path = CACHE

    @property
    def digest(self) -> str:
        """The same for laboratories that hold the same numbers."""
        what = (VERSION, self.config.to_json(), [getattr(self, name) for name in SIZES], jax.__version__)
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]

    def folder(self) -> pathlib.Path:
        """Where what took long is kept; nothing in it is for git."""
        folder = self.cache / self.digest
        folder.mkdir(parents=True, exist_ok=True)
        (self.cache / ".gitignore").write_text("*\n", encoding="utf-8")
        return folder


SIZES = ("steps", "prompts", "answers", "screening", "candidates")
MODEL = DecoderConfig(layers=2, width=64, heads=4, kv_heads=2, head_size=16, mlp_width=128)
STANDARD = Laboratory(
    config=Config(
        task="addition,digits=2",
        recipe="rloo",
        steps=1600,
        prompts_per_step=64,
        learning_rate=3e-4,
        schedule="constant",
        measure_kl=False,
        eval_problems=256,
        warmup=WarmUp(accuracy=0.3, max_steps=4000, check_every=25),
        model=MODEL,
    ),
    steps=(0, 400, 1600),
    prompts=16,
    answers=256,
)
SMALL = dataclasses.replace(MODEL, layers=1, width=32, heads=2, kv_heads=1, mlp_width=64)


def smoke(cache: pathlib.Path) -> Laboratory:
    """The same, so small that it shows only that everything runs."""
    config = dataclasses.replace(
        STANDARD.config,
        task="addition,digits=1,heldout=16",
        steps=1,
        prompts_per_step=8,
        eval_problems=16,
        warmup=WarmUp(accuracy=0.3, max_steps=100, check_every=100, batch=32),
        model=SMALL,
    )
    return Laboratory(config=config, steps=(0,), prompts=6, answers=96, screening=32, cache=cache)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pool:
    """M answers to each of P prompts, float64; `step` [P] of the run."""

    step: np.ndarray
    reward: np.ndarray  # [P M]
    length: np.ndarray  # [P M] tokens
    token_energy: np.ndarray  # [P M T], of the logits; 0 behind the end of an answer
    scores: np.ndarray  # [P M M] <sᵢ, sⱼ> of the answers to one prompt

    @functools.cached_property
    def gram(self) -> np.ndarray:
        """[P M M] of scores less their mean over the pool."""
        half = self.scores - self.scores.mean(axis=1, keepdims=True)
        return half - half.mean(axis=2, keepdims=True)

    @functools.cached_property
    def energy(self) -> np.ndarray:
        """|s|² [P M] of these."""
        return np.einsum("pmm->pm", self.gram)

    @property
    def pass_rate(self) -> np.ndarray:
        """[P]."""
        return self.reward.mean(axis=1)

    @property
    def signal(self) -> np.ndarray:
        """|g|² [P] of g = 1/M Σ r s."""
        return np.einsum("pm,pmn,pn->p", self.reward, self.gram, self.reward) / self.reward.shape[1] ** 2

    def prompts(self, where: np.ndarray) -> "Pool":
        """Those of the prompts."""
        return Pool(**{field.name: getattr(self, field.name)[where] for field in dataclasses.fields(self)})

    def half(self, odd: bool) -> "Pool":
        """Every other answer, as a pool of its own."""
        part = slice(int(odd), None, 2)
        rows = {name: getattr(self, name)[:, part] for name in ("reward", "length", "token_energy")}
        return Pool(step=self.step, scores=self.scores[:, part, part], **rows)


def pools(lab: Laboratory) -> Pool:
    """The pools of all steps of the laboratory, one after another along the axis of prompts."""
    path = lab.folder() / "pools.npz"
    if not path.exists():
        programs = Programs(lab.config)
        parts = [_pool(lab, programs, params, step) for step, params in checkpoints(lab, programs).items()]
        joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        np.savez(path, **joined)
    with np.load(path) as file:
        return Pool(**{name: file[name].astype(np.float64) for name in file.files})


def checkpoints(lab: Laboratory, programs: Programs) -> dict[int, Params]:
    """Parameters after each of the steps."""
    path = lab.folder() / "checkpoints.npz"
    if not path.exists():
        np.savez(path, **_trained(lab, programs))
    tree = jax.tree.structure(jax.eval_shape(programs.policy.init, jax.random.key(0)))
    with np.load(path) as file:
        each = {step: [jnp.asarray(file[f"{step}/{i}"]) for i in range(tree.num_leaves)] for step in lab.steps}
    return {step: jax.tree.unflatten(tree, leaves) for step, leaves in each.items()}


def _trained(lab: Laboratory, programs: Programs) -> dict[str, np.ndarray]:
    c, kept = lab.config, {}
    evaluator = Evaluator(programs.policy, c.task, programs.mesh, c.seed, c.eval_problems, 1)
    params, outcome = warm_up(programs, evaluator, lambda *_: None, lambda: False)
    print(f"warm-up: {outcome}")

    def keep(step, params):
        if step in lab.steps:
            leaves = jax.tree.leaves(params)
            kept.update({f"{step}/{i}": np.asarray(leaf) for i, leaf in enumerate(leaves)})
            print(f"step {step}: held-out accuracy {evaluator(params, step)['eval/accuracy']:.3f}")

    keep(0, params)
    state = programs.start(programs.learner, params)
    for step in range(1, max(lab.steps) + 1):
        state, _, _ = programs.learn(state, None, programs.sample(state.params, step))
        keep(step, state.params)
    return kept


def _pool(lab: Laboratory, programs: Programs, params: Params, step: int) -> dict[str, np.ndarray]:
    """Prompts are chosen by their pass rate on answers that are then thrown away: the pool does not know of it."""
    asked, first = lab.prompts * lab.candidates, lab.screening
    # Steps that training never reaches: the answers are not those that the policy has learnt from.
    batch = frozen_batch(
        programs, params, 10**6 + step, prompts=asked, answers=first + lab.answers, needs=("token_energy",)
    )
    rate = np.asarray(batch.reward[:, :first]).mean(axis=1)
    inside = (rate >= BETWEEN[0]) & (rate <= BETWEEN[1])
    chosen = np.argsort(~inside, kind="stable")[: lab.prompts]
    print(f"step {step}: {inside.sum()} of {asked} prompts have a pass rate between {BETWEEN[0]} and {BETWEEN[1]}")
    rows = [_scored(programs, params, _one(batch, row, first)) for row in chosen]
    take = lambda x: np.asarray(x)[chosen, first:]  # noqa: E731
    acted = take(batch.acted)
    return {
        "step": np.full(len(chosen), step),
        "reward": take(batch.reward),
        "length": acted.sum(axis=-1),
        "token_energy": np.where(acted, take(batch.extras["token_energy"]), 0),
        "scores": np.stack(rows),
    }


def _one(batch: Rollout, row: int, first: int) -> Rollout:
    """The answers of one prompt that stand behind the first ones."""
    both = ("prompt", "prompt_mask", "prompt_id")
    values = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)} | {"extras": {}}
    cut = {name: x[row : row + 1] if name in both else x[row : row + 1, first:] for name, x in values.items() if len(x)}
    return Rollout(**(values | cut))


def _scored(programs: Programs, params: Params, one: Rollout) -> np.ndarray:
    return np.asarray(score_gram(programs.policy, params, one, backend=exact(max_bytes=2**32)).matrix)


@dataclasses.dataclass(frozen=True)
class Figures:
    """Of the estimate of one group, by prompt [P]: E ĝ and its spread, over groups drawn from the pool.

    variance     E|ĝ - Eĝ|²                 along   <Eĝ, g>
    mean_square  |Eĝ|², unbiased            signal  |g|²
    error        standard error of the variance, relative to it: how well the draws resolve it
    """

    variance: np.ndarray
    mean_square: np.ndarray
    along: np.ndarray
    signal: np.ndarray
    error: np.ndarray

    @property
    def cos(self) -> np.ndarray:
        """Of Eĝ and g, prompt by prompt."""
        return self.along / np.sqrt(np.maximum(self.mean_square, 1e-300) * self.signal)

    @property
    def scale(self) -> np.ndarray:
        """<Eĝ, g>/|g|²."""
        return self.along / self.signal

    @property
    def mse_rescaled(self) -> np.ndarray:
        """E|ĝ/scale - g|², the scale of each prompt divided out."""
        return (self.variance + self.mean_square) / self.scale**2 - self.signal


def resample(
    pool: Pool, estimators: dict[str, AdvantageTransform], group_size: int, *, draws: int, seed: int
) -> dict[str, Figures]:
    """Figures over groups drawn with replacement, equal draws for all estimators. Credit must be that of one group."""
    p, m = pool.reward.shape
    index = np.random.default_rng(seed).integers(0, m, (p, draws, group_size))
    rows = {name: [] for name in estimators}
    for i, chosen in enumerate(index):
        block = pool.gram[i][chosen[:, :, None], chosen[:, None, :]]
        tokens = pool.token_energy[i][chosen]
        acted = np.arange(tokens.shape[-1]) < pool.length[i][chosen][..., None]
        with jax.enable_x64(True):
            known = tuple(map(jnp.asarray, (pool.reward[i][chosen], tokens, pool.energy[i][chosen], acted)))
            credits = {name: np.asarray(_credit(transform, *known)) for name, transform in estimators.items()}
        target = pool.gram[i] @ pool.reward[i] / m
        signal = pool.reward[i] @ target / m
        for name, credit in credits.items():
            weights = credit / group_size
            squares = np.einsum("ri,rij,rj->r", weights, block, weights, optimize=True)
            mean = np.bincount(chosen.ravel(), weights.ravel(), m) / draws
            across = pool.gram[i] @ mean
            apart = squares - 2 * np.einsum("ri,ri->r", weights, across[chosen]) + mean @ across  # |ĝ - its mean|²
            variance = apart.mean() * draws / (draws - 1)
            error = apart.std() / np.sqrt(draws) / max(variance, 1e-300)
            rows[name].append((variance, squares.mean() - variance, mean @ target, signal, error))
    return {name: Figures(*np.transpose(row)) for name, row in rows.items()}


@functools.partial(jax.jit, static_argnums=0)
def _credit(transform: AdvantageTransform, reward, token_energy, energy, acted):
    rollout = bare_rollout(reward, acted=acted, token_energy=token_energy, energy=energy)
    return transform.update(reward, transform.init(), rollout)[0]
