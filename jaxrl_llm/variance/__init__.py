"""Bias and variance of gradient estimators: exactly on finite policies, measured on others.

`compare` and what scores need a policy network; they are imported when first asked for, so that the exact parts do
without flax.
"""

from typing import Any

from jaxrl_llm.variance import bernstein, binary, designs, exact, gram, moments, noise_scale, tables
from jaxrl_llm.variance.binary import BinaryMoments, Scheme, scheme_of
from jaxrl_llm.variance.exact import GradientMoments
from jaxrl_llm.variance.gram import ScoreGram, gram_of, pool_moments
from jaxrl_llm.variance.moments import RlooMoments, VarianceSplit
from jaxrl_llm.variance.tables import OutcomeTable, bernoulli, softmax_bandit, tabular_policy

LATER = {
    "compare": "empirical_compare",
    "compare_pool": "empirical_pool",
    "score_gram": "empirical",
}

__all__ = [
    "BinaryMoments",
    "GradientMoments",
    "OutcomeTable",
    "RlooMoments",
    "Scheme",
    "ScoreGram",
    "VarianceSplit",
    "bernoulli",
    "bernstein",
    "binary",
    "compare",
    "compare_pool",
    "designs",
    "exact",
    "gram",
    "gram_of",
    "moments",
    "noise_scale",
    "pool_moments",
    "scheme_of",
    "score_gram",
    "softmax_bandit",
    "tables",
    "tabular_policy",
]


def __getattr__(name: str) -> Any:
    if name not in LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{LATER[name]}"), name)
