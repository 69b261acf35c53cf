"""`jaxrl-llm train` in which one process becomes odd in the middle of the run.

python odd_rank.py RANK DEED train ...

flip    a bit of a parameter on its devices flips after step 2
raise   its grader raises in step 2
"""

import sys

import jax
import numpy as np

RANK, DEED = int(sys.argv[1]), sys.argv[2]


def flipped(x: jax.Array) -> jax.Array:
    """The array, where the devices of this process have another lowest bit in the first number."""
    parts = []
    for shard in x.addressable_shards:
        raw = np.asarray(shard.data).copy()
        raw.view(np.uint32).ravel()[0] ^= 1
        parts.append(jax.device_put(raw, shard.device))
    return jax.make_array_from_single_device_arrays(x.shape, x.sharding, parts)


def main() -> None:
    from jaxrl_llm import cli
    from jaxrl_llm.programs import Programs

    learn, sample = Programs.learn, Programs.sample
    steps = []

    def odd_learn(self, *inputs):
        state, metrics, credit = learn(self, *inputs)
        if DEED == "flip" and jax.process_index() == RANK and len(steps) == 2:
            state.params["final_norm"]["scale"] = flipped(state.params["final_norm"]["scale"])
        return state, metrics, credit

    def odd_sample(self, params, step):
        steps.append(step)
        if DEED == "raise" and jax.process_index() == RANK and len(steps) == 2:
            object.__setattr__(self.task, "reward", None)
        return sample(self, params, step)

    Programs.learn, Programs.sample = odd_learn, odd_sample
    cli.main(sys.argv[3:])


main()
