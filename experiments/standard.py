"""What the training experiments share: the policy and the batch that they start from, and parts of a claim about arms.

AdamW without a bound on the gradient divides out any constant factor of a credit, so that arms need no common scale;
where an experiment tunes the learning rate of each arm, it does so on other seeds.
"""

import numpy as np

from experiments.decisions import Part
from experiments.intervals import Estimate, interval, mean
from experiments.present import Findings
from jaxrl_llm.config import Config, WarmUp
from jaxrl_llm.policies.config import DecoderConfig

BASE = Config(
    **{"task": "addition,digits=2,heldout=256", "steps": 200, "prompts_per_step": 32, "answers_per_prompt": 8},
    **{"schedule": "constant,warmup=0", "eval_every": 40, "eval_problems": 256, "eval_samples": 4},
    **{"max_grad_norm": 0.0, "measure_kl": False},
    model=DecoderConfig(layers=2, width=64, heads=2, kv_heads=1, head_size=32, mlp_width=128),
    warmup=WarmUp(accuracy=0.3, max_steps=3000, check_every=25, learning_rate=2e-3),
)
RATES = (1e-5, 3e-5, 1e-4)
TUNING, SEEDS = range(100, 103), range(9)
TINY = 1e-12
TUNED = {"rates": RATES, "tuning": TUNING, "seeds": SEEDS, "chunk": 9}  # one shape of program for both


def part(what: str, estimate: Estimate, side: str, bound: float) -> Part:
    """The part of a claim that an estimate decides."""
    return Part(what, (estimate.point, estimate.low, estimate.high), side, bound)


def gained(findings: Findings, arm: str, figure: str = "") -> Estimate:
    """Mean over the seeds of a held-out figure after RL less before."""
    name = figure or findings.score
    return interval(findings.scores(arm, name) - np.asarray([r["before"][name] for r in findings.of(arm)]), mean)


def unsteadiness(findings: Findings, arm: str) -> np.ndarray:
    """Standard deviation over mean of the gradient norm over the second half of a run, by seed [runs]."""
    _, norms = findings.curve(arm, "grad_norm")
    late = norms[:, norms.shape[1] // 2 :]
    return np.std(late, axis=1) / np.maximum(np.mean(late, axis=1), TINY)


def log_ratio(above: np.ndarray, below: np.ndarray) -> Estimate:
    """Mean over the seeds of log above/below, which they share; a smoke run may have no gradient at all."""
    return interval(np.log(np.maximum(above, TINY) / np.maximum(below, TINY)), mean)
