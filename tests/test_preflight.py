"""What a run needs of its devices' memory: read off the programs that it then takes, refused by field."""

import dataclasses

import jax
import jax.monitoring
import numpy as np
import pytest
import tiny

from jaxrl_llm import preflight
from jaxrl_llm.config import Config, ConfigError, WarmUp
from jaxrl_llm.evaluate import Evaluator
from jaxrl_llm.policies.config import DecoderConfig, Lora
from jaxrl_llm.preflight import require_room
from jaxrl_llm.programs import Programs
from jaxrl_llm.train import train

TINY = DecoderConfig(layers=1, width=16, heads=2, kv_heads=1, head_size=8, mlp_width=16)
CONFIG = Config(
    task="digit_sort,length=2,heldout=20",
    model=TINY,
    warmup=WarmUp(max_steps=0),
    prompts_per_step=8,
    answers_per_prompt=4,
    eval_problems=16,
    eval_samples=4,
)
COMPILED = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, *_, fun_name="?", **__: COMPILED.append(fun_name) if event.startswith("/jax/core/compile/") else None
)


def evaluator_of(programs, samples=4, batch=16):
    return Evaluator(programs.policy, programs.task, programs.mesh, 0, 16, samples, batch=batch)


@pytest.fixture(scope="module")
def looked():
    """The programs of a run on one device, and what they need: eval of 1, of 4, sampling, learning."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "jit", tiny.jit)
        programs = Programs(CONFIG, jax.devices()[:1])
        evaluator = evaluator_of(programs)
        return programs, evaluator, require_room(programs, evaluator)


def test_what_stays_is_what_a_run_holds(looked):
    programs, _, needs = looked
    params = programs.fresh_params()
    held = (*programs.begin(params), programs.problems)
    assert {need.stays for need in needs} == {sum(x.nbytes for x in jax.tree.leaves(held))}
    assert all(need.own > 0 for need in needs)


def test_a_run_takes_the_programs_that_were_looked_at(looked):
    programs, evaluator, _ = looked
    params = programs.fresh_params()
    state, reference = programs.begin(params)
    COMPILED.clear()
    evaluator(params, 0)
    rollout = programs.sample(state.params, 1)
    jax.block_until_ready(programs.learn(state, reference, rollout))
    assert "_grade_step" in COMPILED, "the counter counts what was not looked at"
    bare = {name.removeprefix("jit(").removesuffix(")") for name in COMPILED}
    assert not {"_decode_batch", "_sample_step", "_learn_step"} & bare


def test_the_field_to_change_is_named(looked, monkeypatch):
    programs, evaluator, (greedy, several, sampling, learning) = looked
    own = dict(zip([n.phase for n in (greedy, several, sampling, learning)], looked[2], strict=True))
    phases = list(own)
    calls = iter([])
    monkeypatch.setattr(preflight, "_own", lambda phase: own[next(calls)].own)

    def refusal(room, **changes):
        nonlocal calls
        calls = iter(phases)
        other = dataclasses.replace(CONFIG, **changes)
        monkeypatch.setattr(programs, "config", other)
        with pytest.raises(ConfigError) as error:
            require_room(programs, evaluator, int(room))
        return str(error.value)

    assert "lower model.width or model.layers" in refusal(learning.stays - 1)
    assert "lora.rank" in refusal(learning.stays - 1)
    assert "lower eval_batch=256 to about 10" in refusal(several.stays + several.own * 10.5 / evaluator.batch)
    said = refusal(learning.total - 1)
    assert said.startswith("memory: learning needs 0.000")
    assert "raise accumulation=1 to 2, which changes no number" in said
    assert "raise accumulation=1 to 8" in refusal(learning.stays + max(several.own, learning.own / 7))
    assert "lower answers_per_prompt=4" in refusal(learning.total - 1, accumulation=8)
    own[several.phase] = own[greedy.phase]
    assert "lower prompts_per_step=8 to about 7, or" in refusal(sampling.total - 1)


@pytest.mark.parametrize("rank", [0, 2])
def test_a_warm_up_is_looked_at_first_and_has_moments_of_all_parameters(rank, monkeypatch):
    monkeypatch.setattr(jax, "jit", tiny.jit)
    warm = dataclasses.replace(CONFIG, warmup=WarmUp(max_steps=5, batch=64), lora=Lora(rank=rank))
    programs = Programs(warm, jax.devices()[:1])
    state = programs.start(programs.imitator, programs.fresh_params())
    need = next(preflight._needs(programs, evaluator_of(programs), 0))
    assert need.phase == "warm-up"
    assert need.stays == sum(x.nbytes for x in jax.tree.leaves((state, programs.problems)))
    COMPILED.clear()
    jax.block_until_ready(programs.imitate(state, 1))
    assert "_imitate_step" not in {name.removeprefix("jit(").removesuffix(")") for name in COMPILED}
    with pytest.raises(ConfigError, match=r"memory: warm-up needs .* and problems\): lower warmup.batch=64 to about 3"):
        require_room(programs, evaluator_of(programs), int(need.stays + need.own / 2))


def test_more_micro_batches_need_less(looked, monkeypatch):
    monkeypatch.setattr(jax, "jit", tiny.jit)
    programs = Programs(dataclasses.replace(CONFIG, accumulation=4), jax.devices()[:1])
    program, arguments, staying = preflight._phases(programs, evaluator_of(programs))["learning"]
    assert preflight._own((program, arguments, staying)) < looked[2][-1].own


def test_a_compiler_without_room_is_understood(looked, monkeypatch):
    programs, evaluator, _ = looked

    class Full:
        def lower(self, *_):
            raise jax.errors.JaxRuntimeError(self.words)

    Full.words = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm"
    monkeypatch.setattr(programs, "_learn", Full())
    with pytest.raises(ConfigError, match=r"memory: learning needs more than the .* raise accumulation=1 to 8"):
        require_room(programs, evaluator, 10**9)
    Full.words = "INTERNAL: something else"
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        require_room(programs, evaluator, 10**9)


def test_a_run_without_room_is_refused_before_it_has_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "device_room", lambda mesh: 1000)
    with pytest.raises(ConfigError, match=r"memory: parameters and moments needs .* GiB on each device"):
        train(CONFIG, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_devices_share_the_memory_of_the_machine():
    one, eight = (preflight.device_room(Programs(CONFIG, jax.devices()[:n]).mesh) for n in (1, 8))
    assert np.isclose(one / eight, 8, rtol=0.5)
