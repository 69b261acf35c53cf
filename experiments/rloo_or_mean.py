"""Is leave-one-out anything but a longer step?

r_i - mean_{j != i} r_j = G/(G-1) (r_i - mean_j r_j) in a full group: the two credits differ by a constant. Plain SGD
takes it for a learning rate, and AdamW divides it out.

    python experiments/rloo_or_mean.py [--smoke] [--out DIR]      # five arms of 16 seeds: ten minutes on two cores
"""

import pathlib
import sys

if __name__ == "__main__":
    sys.path[0] = str(pathlib.Path(__file__).parents[1])

import dataclasses

import numpy as np

from experiments.experiment import Experiment, Verdict
from experiments.present import Findings
from jaxrl_llm.advantages import group_mean, per_token
from jaxrl_llm.config import Config, WarmUp
from jaxrl_llm.policies.config import DecoderConfig
from jaxrl_llm.recipes import rloo

G = 4
RLOO = rloo()
MEAN = dataclasses.replace(RLOO, spec="rloo with group_mean", advantage=per_token(group_mean()))
SGD = {"optimizer": "sgd", "max_grad_norm": 0.0}  # a bound on the norm would divide the constant out, too
RATE = 0.002
MARGIN = 0.02  # of held-out accuracy: less does not count as a difference


def decide(findings: Findings) -> Verdict:
    """Reproduced: the first gradients differ by (G-1)/G to 1e-4, and at matched step size both pairs of arms end within
    the margin, with their whole interval. Refuted: the gradients differ otherwise, or an interval is outside of it.
    A first gradient of 0 tells nothing."""
    first = [findings.curve(arm, "grad_norm")[1][:, 0] for arm in ("mean, SGD", "RLOO, SGD")]
    ratio = np.divide(first[0], first[1], out=np.full(len(first[1]), np.nan), where=first[1] > 0)
    off = float(np.max(np.abs(ratio - (G - 1) / G)))
    pairs = {
        "SGD": findings.difference("mean, SGD, rate x G/(G-1)", "RLOO, SGD"),
        "AdamW": findings.difference("mean, AdamW", "RLOO, AdamW"),
    }
    shrunk = findings.difference("mean, SGD", "RLOO, SGD")
    reason = (
        f"The first gradient of the group mean is {ratio.mean():.6f} times that of RLOO ((G-1)/G = {(G - 1) / G}). "
        f"Accuracy of the mean less that of RLOO, by seed: {pairs['SGD']} for SGD at the matched rate, "
        f"{pairs['AdamW']} for AdamW at one rate, {shrunk} for SGD at one rate."
    )
    if off > 1e-4 or any(pair.low > MARGIN or pair.high < -MARGIN for pair in pairs.values()):
        return Verdict("refuted", reason)
    if off <= 1e-4 and all(pair.low > -MARGIN and pair.high < MARGIN for pair in pairs.values()):
        return Verdict("reproduced", reason)
    return Verdict("undecided", reason)


EXPERIMENT = Experiment(
    name="rloo_or_mean",
    question="Is RLOO better than the group mean as a baseline when the step size is matched?",
    claim="No: RLOO is G/(G-1) times the mean-centred credit, which the learning rate absorbs (Liu et al., 2025, "
    "arXiv 2503.20783, of Dr. GRPO and RLOO).",
    base=Config(
        **{"task": "addition,digits=2,heldout=256", "steps": 200, "prompts_per_step": 64, "answers_per_prompt": G},
        **{"schedule": "constant,warmup=0", "eval_every": 20, "eval_problems": 256, "eval_samples": 4},
        model=DecoderConfig(layers=2, width=64, heads=2, kv_heads=1, head_size=32, mlp_width=128),
        warmup=WarmUp(accuracy=0.3, max_steps=3000, check_every=25, learning_rate=2e-3),
        learning_rate=RATE,
    ),
    arms={
        "RLOO, SGD": {"recipe": RLOO, **SGD},
        "mean, SGD, rate x G/(G-1)": {"recipe": MEAN, "learning_rate": RATE * G / (G - 1), **SGD},
        "mean, SGD": {"recipe": MEAN, **SGD},
        "RLOO, AdamW": {"recipe": RLOO, "learning_rate": 2e-4},
        "mean, AdamW": {"recipe": MEAN, "learning_rate": 2e-4},
    },
    seeds=range(16),
    decide=decide,
)

if __name__ == "__main__":
    EXPERIMENT.main()
