"""Ways to pay for the format of an answer besides its accuracy: additive, gated, a ladder, a product."""

from jaxrl_llm.rewards._base import RewardTransform, stateless


def additive_format(weight: float | int, *, accuracy: int = 0, format: int = 1) -> RewardTransform:
    """r = c_accuracy + weight · c_format.

    weight 1/2 in Observe-R1 (arXiv 2505.12432). A group without a right answer still varies by its format, and a std
    normalisation brings that to unit size whatever the weight.
    """
    return stateless(
        lambda rollout: rollout.components[..., accuracy] + weight * rollout.components[..., format],
        components=max(accuracy, format) + 1,
    )


def gated_format(*, accuracy: int = 0, format: int = 1) -> RewardTransform:
    """r = c_accuracy · c_format: right and well-formed ("Mirage or Method?", arXiv 2508.21188).

    A group without a right answer has no signal.
    """
    return stateless(
        lambda rollout: rollout.components[..., accuracy] * rollout.components[..., format],
        components=max(accuracy, format) + 1,
    )


def simplerl_independent(*, accuracy: int = 0, format: int = 1) -> RewardTransform:
    """r = 1 right and boxed, 1/2 right, -1/2 wrong and boxed, -1 wrong (SimpleRL-Zoo, arXiv 2503.18892, code cf1c785).

    That is 3/2 c_accuracy + 1/2 c_format - 1: under group mean and std the same as `additive_format(1/3)`.
    """
    return stateless(
        lambda rollout: 1.5 * rollout.components[..., accuracy] + 0.5 * rollout.components[..., format] - 1,
        components=max(accuracy, format) + 1,
    )


def consistent_result(*, format: int = 0, result: int = 1, consistency: int = 2) -> RewardTransform:
    """r = c_format / 2 + c_result (1 + c_consistency / 2)  (R1-Reward, arXiv 2505.02835, released code 3693413).

    Consistency is in {-1, 0, 1}; 0 where the judge failed. The release pays the full result where the verifier raises;
    here such an answer is invalid and gets nothing.
    """

    def fn(rollout):
        c = rollout.components
        return 0.5 * c[..., format] + c[..., result] * (1 + 0.5 * c[..., consistency])

    return stateless(fn, components=max(format, result, consistency) + 1)
