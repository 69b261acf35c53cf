"""Instances of the token transforms that have arguments without a default. The name starts with the function's."""

from jaxrl_llm.advantages.tokens.confident_error_weights import confident_error_weights
from jaxrl_llm.advantages.tokens.gae import gae
from jaxrl_llm.advantages.tokens.optimal_token_baseline import optimal_token_baseline
from jaxrl_llm.advantages.tokens.prime import prime
from jaxrl_llm.advantages.tokens.reward_to_go import reward_to_go
from jaxrl_llm.advantages.tokens.span_credit import span_credit
from jaxrl_llm.advantages.tokens.token_whiten import token_whiten
from jaxrl_llm.advantages.tokens.top_entropy_mask import top_entropy_mask

INSTANCES = {
    "reward_to_go(discount=1)": lambda: reward_to_go(discount=1.0),
    "gae(discount=1, decay=1)": lambda: gae(discount=1.0, decay=1.0),
    'token_whiten(ddof=1, eps=1e-8, guard="variance")': lambda: token_whiten(ddof=1, eps=1e-8, guard="variance"),
    'token_whiten(ddof=0, eps=1e-4, guard="deviation")': lambda: token_whiten(ddof=0, eps=1e-4, guard="deviation"),
    "optimal_token_baseline(leave_one_out=True, zero_tail=True)": lambda: optimal_token_baseline(
        leave_one_out=True, zero_tail=True
    ),
    "optimal_token_baseline(leave_one_out=False, zero_tail=True)": lambda: optimal_token_baseline(
        leave_one_out=False, zero_tail=True
    ),
    "optimal_token_baseline(leave_one_out=False, zero_tail=False)": lambda: optimal_token_baseline(
        leave_one_out=False, zero_tail=False
    ),
    "prime(scale_by_batch_max=True)": lambda: prime(scale_by_batch_max=True),
    "prime(scale_by_batch_max=False)": lambda: prime(scale_by_batch_max=False, outcome_coefficient=1.0),
    "span_credit(suggested_length=2, slope=3)": lambda: span_credit(suggested_length=2, slope=3),
    "confident_error_weights(fraction=0.8, entropy_factor=0.8)": lambda: confident_error_weights(
        fraction=0.8, entropy_factor=0.8
    ),
    "top_entropy_mask(fraction=0.2)": lambda: top_entropy_mask(fraction=0.2),
}

# Those whose claim "no" on the bias cannot show in answers of one token, where they do nothing or nothing wrong.
LONGER_ANSWERS_ONLY = {
    "reward_to_go(discount=0.9)": lambda: reward_to_go(discount=0.9),
    "gae(discount=1, decay=0)": lambda: gae(discount=1.0, decay=0.0),
    "gae(discount=0.9, decay=0.8)": lambda: gae(discount=0.9, decay=0.8),
    "optimal_token_baseline(leave_one_out=True, zero_tail=False)": lambda: optimal_token_baseline(
        leave_one_out=True, zero_tail=False
    ),
}
