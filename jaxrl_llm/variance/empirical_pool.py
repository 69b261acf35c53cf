"""One frozen pool of answers, many estimators: exact knowledge of a policy that is the pool itself."""

from collections.abc import Mapping

from jaxrl_llm.losses.tokens import Tokens
from jaxrl_llm.policies.policy import Params, Policy
from jaxrl_llm.random import Stream, stream_key
from jaxrl_llm.types import Rollout
from jaxrl_llm.variance.credit import Estimator, segment_means
from jaxrl_llm.variance.empirical import score_gram, tokens_at
from jaxrl_llm.variance.empirical_backends import Backend, count_sketch
from jaxrl_llm.variance.empirical_compare import claim_of, coding_of, parts_of, ratios_of
from jaxrl_llm.variance.empirical_tables import Comparison
from jaxrl_llm.variance.empirical_units import Settings, only_valid, refuse_estimator
from jaxrl_llm.variance.gram import ScoreGram, pool_measured


def compare_pool(
    estimators: Mapping[str, Estimator],
    policy: Policy,
    params: Params,
    rollout: Rollout,
    settings: Settings,
    *,
    backend: Backend | None = None,
    segments: int = 1,
) -> Comparison:
    """As `compare`, for the policy that draws the M answers of each prompt with equal probability.

    Its true gradient is known, so bias, cosine and scale are resolved however weak the signal is; what the figures say
    of the policy that wrote the answers is left to the reader, and M says how much. The prompts are those of the batch:
    the spread is that over answers alone. Of `settings`, `group_size` (None: half of M), `baseline`, `level`, `seed`
    and `replicates`, the number of batches drawn, are read; all estimators see the same draws. There is no floor.
    """
    backend = backend or count_sketch()
    rollout = only_valid(rollout)
    tokens = tokens_at(policy, params, rollout)
    gram = score_gram(policy, params, rollout, backend=backend, segments=segments, seed=settings.seed)
    return compare_pool_scores(estimators, gram, rollout, tokens, settings, backend.name)


def compare_pool_scores(
    estimators: Mapping[str, Estimator],
    gram: ScoreGram,
    rollout: Rollout,
    tokens: Tokens | None,
    settings: Settings,
    source: str = "scores as given",
) -> Comparison:
    """`compare_pool` from scores, rewards and tokens that are there already; all answers must be valid.

    Raises ValueError where an estimator has no meaning on the batch of all prompts.
    """
    p, m = rollout.reward.shape
    group = settings.group_size or max(m // 2, 2)
    if group < 2:
        raise ValueError(f"group_size must be 2 or more, not {group}")
    whole = Settings(prompts=p, group_size=group, baseline=settings.baseline, level=settings.level)
    results, coarse = {}, {}
    for name, estimator in estimators.items():
        refuse_estimator(name, estimator, rollout, tokens, whole)
        results[name] = pool_measured(
            gram,
            estimator,
            rollout,
            group,
            key=stream_key(settings.seed, Stream.VARIANCE),
            replicates=settings.replicates,
            level=settings.level,
            tokens=tokens,
        )
        credit = estimator.coefficients(rollout, tokens)
        coarse[name] = float(segment_means(credit, rollout.acted, gram.sizes[2])[1])
    first = next(iter(estimators)) if settings.baseline is None else settings.baseline
    return Comparison(
        moments={name: result.moments() for name, result in results.items()},
        ratios={name: ratios_of(result, results[first], settings.level) for name, result in results.items()},
        parts={name: parts_of(result) for name, result in results.items()},
        claims={name: claim_of(estimator) for name, estimator in estimators.items()},
        coarse=coarse,
        floor={},
        precision={},
        baseline=first,
        units=settings.replicates,
        groups=1,
        prompts=p,
        group_size=group,
        level=settings.level,
        backend=source,
        rewards=coding_of(rollout),
        pool=m,
    )
