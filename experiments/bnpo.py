"""Does BNPO end with a better policy than its peers at equal samples, and is its gradient norm steadier?

python experiments/bnpo.py [--smoke] [--out DIR]      # six arms of 9 seeds and their tuning: 15 minutes on two cores
"""

import pathlib
import sys

if __name__ == "__main__":
    sys.path[0] = str(pathlib.Path(__file__).parents[1])

from experiments.decisions import decide as decided
from experiments.experiment import Experiment, Verdict
from experiments.present import Findings
from experiments.standard import BASE, TUNED, log_ratio, part, unsteadiness

PEERS = {
    "REINFORCE": {"recipe": "reinforce"},
    "GRPO": {"recipe": "grpo,kl_coefficient=0.0"},
    "Dr. GRPO": {"recipe": "dr_grpo"},
    "REINFORCE++": {"recipe": "reinforce_pp"},
    "ReMax": {"recipe": "remax"},
}


def decide(findings: Findings) -> Verdict:
    """Of each peer: the accuracy of BNPO less that of the peer, by seed, is above 0, and the coefficient of variation
    of its gradient norm over the second half of the run is below that of the peer, each with its whole interval."""
    own, parts = unsteadiness(findings, "BNPO"), []
    for name in PEERS:
        parts.append(part(f"accuracy less that of {name}", findings.difference("BNPO", name), "above", 0))
        spread = log_ratio(own, unsteadiness(findings, name))
        parts.append(part(f"log ratio of the gradient norm's variation to that of {name}", spread, "below", 0))
    return Verdict(*decided(parts))


EXPERIMENT = Experiment(
    name="bnpo",
    question="Does BNPO end with a better policy than its peers at equal samples, and is its gradient norm steadier?",
    claim="BNPO is more accurate than REINFORCE, ReMax, GRPO and REINFORCE++ and its gradient norm is the steadiest "
    "(Xiao et al., 2025, arXiv 2506.02864). Dr. GRPO is added here; ReMax decodes one more answer a prompt.",
    base=BASE,
    arms={"BNPO": {"recipe": "bnpo"}} | PEERS,
    decide=decide,
    **TUNED,
)

if __name__ == "__main__":
    EXPERIMENT.main()
