"""What each metric of a run means."""

import difflib
import re

GLOSSARY: dict[str, str] = {
    "loss": "minimised objective with penalties, mean over the updates of the step; it may rise as the policy improves",
    "reward/mean": "mean reward of the valid answers of the step",
    "reward/std": "standard deviation of the reward over the valid answers of the step",
    "frac_reward_zero_std": "fraction of prompts whose answers all got the same reward: they carry no signal",
    "advantage/mean": "mean advantage over the tokens of the valid answers",
    "advantage/std": "standard deviation of the advantage over the tokens of the valid answers",
    "entropy": "entropy of the policy at temperature 1, nats per token, mean over the sampled tokens",
    "kl": "estimate of KL(policy || reference), nats per token",
    "clip_ratio/low": "fraction of tokens whose probability ratio is clipped from below",
    "clip_ratio/high": "fraction of tokens whose probability ratio is clipped from above",
    "completions/mean_length": "mean length of the sampled answers, tokens, EOS included",
    "completions/min_length": "length of the shortest sampled answer, tokens",
    "completions/max_length": "length of the longest sampled answer, tokens",
    "completions/clipped_ratio": "fraction of sampled answers that ran into the length limit before an EOS",
    "invalid_ratio": "fraction of sampled answers that could not be graded: they change nothing",
    "grad_norm": "Euclidean norm of the whole gradient before clipping",
    "learning_rate": "learning rate of the step",
    "sampling/logp_difference_mean": "mean |log-probability in the learner - in the sampler|, nats per token",
    "sampling/logp_difference_max": "largest |log-probability in the learner - in the sampler| of the step, nats",
    "sampling/weight_mean": "mean probability of a token in the learner over that in the sampler",
    "sampling/weight_max": "largest probability of a token in the learner over that in the sampler of the step",
    "nonfinite/skipped": "updates left out so far because a value in them was not finite, count",
    "nonfinite/streak": "updates left out in a row up to this step, count",
    "nonfinite/site": "where a value was not finite: 0 nowhere, 1 reward, 2 logit, 3 log-probability, 4 credit, "
    "5 loss, 6 gradient, 7 moment, 8 parameter",
    "answers_drawn": "answers drawn to a prompt until it had what it needs, mean over prompts",
    "num_tokens": "answer tokens sampled so far, count",
    "epoch": "passes over the training problems so far",
    "eval/accuracy": "fraction of held-out problems that the greedy answer solves",
    "eval/majority": "fraction of held-out problems that the most frequent sampled answer solves",
    "eval/mean_length": "mean length of the greedy held-out answers, tokens, EOS included",
    "eval/clipped_ratio": "fraction of greedy held-out answers that ran into the length limit before an EOS",
    "perf/step_seconds": "wall-clock time of the whole step, s",
    "perf/eval_seconds": "wall-clock time of the held-out evaluation, s",
    "perf/tokens_per_second": "answer tokens sampled per second of the whole step, tokens/s",
}
# Families of names: how the glossary spells the family, which names belong to it, and what they mean.
FAMILIES = (
    ("reward/component/NAME", r"reward/component/(\S+)", "mean over the valid answers of the reward component NAME"),
    ("ungraded/NAME", r"ungraded/(\S+)", "answers of all processes without a grade so far, counted by graders as NAME"),
    (
        "eval/pass@N",
        r"eval/pass@([1-9]\d*)",
        "unbiased estimate of the fraction of held-out problems that one of N sampled answers solves",
    ),
    (
        "variance/NAME/trace_var",
        r"variance/(\S+)/trace_var",
        "trace of the covariance of estimator NAME on one prompt group, prompts and answers drawn anew",
    ),
    ("variance/NAME/cos", r"variance/(\S+)/cos", "cosine of the mean of estimator NAME and the true gradient"),
    (
        "variance/NAME/useful_snr",
        r"variance/(\S+)/useful_snr",
        "squared mean of estimator NAME along the true gradient, divided by its trace of the covariance",
    ),
    (
        "variance/NAME/mse_ratio",
        r"variance/(\S+)/mse_ratio",
        "mean squared error of estimator NAME once its scale is divided out, over that of the first estimator",
    ),
)


def meaning(name: str) -> str:
    """What a metric is, in one line with its unit. Raises ValueError for a name that the glossary does not know."""
    for family, pattern, text in FAMILIES:
        if match := re.fullmatch(pattern, name):
            return re.sub(rf"\b{re.search('[A-Z]+', family)[0]}\b", lambda _: match[1], text)
    if name not in GLOSSARY:
        near = difflib.get_close_matches(name, GLOSSARY, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"metric {name!r} is not in jaxrl_llm.glossary.GLOSSARY: nothing is logged without a meaning{hint}"
        )
    return GLOSSARY[name]


def glossary_markdown() -> str:
    """The glossary as a Markdown table, one metric a row."""
    entries = [*GLOSSARY.items(), *((name, text) for name, _, text in FAMILIES)]
    rows = "".join(f"| `{name}` | {text.replace('|', chr(92) + '|')} |\n" for name, text in entries)
    return "| metric | meaning |\n|---|---|\n" + rows
