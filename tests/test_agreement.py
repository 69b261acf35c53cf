"""Processes that do not compute the same thing are found, and the odd one is named."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_hub

from jaxrl_llm import agreement, distributed, published
from jaxrl_llm import programs as programs_file
from jaxrl_llm.agreement import DisagreementError, StepCheck, bits_digest, data_digests, odd_one
from jaxrl_llm.config import Config, ConfigError, WarmUp
from jaxrl_llm.distributed import Processes, in_cluster, joined, share, summed, together
from jaxrl_llm.programs import Programs
from jaxrl_llm.sharding import MeshShape
from jaxrl_llm.tasks import addition


@pytest.mark.parametrize(
    ("values", "odd"),
    [
        ([1, 1, 1], None),
        ([1, 2, 1], (1, 1)),
        ([2, 1, 1], (0, 1)),
        ([1, 2], (1, 1)),
        ([3, 1, 2, 2], (0, 2)),
        ([1], None),
    ],
)
def test_the_odd_one_is_in_the_minority_and_process_0_is_right_in_a_tie(values, odd):
    assert odd_one(values) == odd


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int32])
def test_any_flipped_bit_changes_the_digest(dtype):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(7, 5)), dtype)
    digest = jax.jit(bits_digest)
    one = int(digest(x))
    size = x.dtype.itemsize
    for element in range(0, x.size, 3):
        for bit in range(0, 8 * size, 5):
            raw = np.asarray(x).copy().ravel().view(np.uint8)
            raw[element * size + bit // 8] ^= 1 << bit % 8
            assert int(digest(jnp.asarray(raw.view(x.dtype).reshape(x.shape)))) != one, (element, bit)
    order = np.asarray(x).ravel()[::-1].reshape(x.shape)
    assert int(digest(jnp.asarray(order))) != one


def test_other_data_has_another_digest():
    task = addition(digits=1)
    ours = data_digests(task)
    assert data_digests(addition(digits=1)) == ours
    truth = {name: x.at[3].add(1) for name, x in task.train.truth.items()}
    other = dataclasses.replace(task, train=dataclasses.replace(task.train, truth=truth))
    assert {name for name, digest in data_digests(other).items() if digest != ours[name]} == {"train"}


@pytest.mark.parametrize("deed", ["flip", "cut", "absent", "more"])
def test_a_process_with_another_weights_file_is_named(deed, tmp_path, monkeypatch):
    """Parameters that are sharded lie once, so that no step compares them: their files are compared at the start."""
    ours, theirs = (tiny_hub.write_model(tmp_path / name) for name in ("ours", "theirs"))
    weights = theirs / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-9] ^= deed == "flip"
    weights.write_bytes(content[:-4] if deed == "cut" else content)
    name = "file model.safetensors of pretrained"
    if deed == "absent":
        weights.unlink()
    if deed == "more":
        name = "file more.safetensors of pretrained"
        (theirs / "more.safetensors").write_bytes(content)
    config = Config(task=addition(digits=1), warmup=WarmUp(max_steps=0))
    object.__setattr__(config, "pretrained", str(ours))
    other = agreement.file_digests(str(theirs))
    monkeypatch.setattr(distributed, "several", lambda: True)

    def told(text):
        facts = {name: x for name, x in json.loads(text).items() if " of pretrained" not in name}
        return [text, text, json.dumps(facts | other)]

    monkeypatch.setattr(distributed, "told", told)
    with pytest.raises(DisagreementError, match=f"process 2 was started with {name} "):
        agreement.require_equal_start(config)


def test_of_a_large_file_blocks_from_its_first_to_its_last_are_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(published, "BLOCK", 10)
    monkeypatch.setattr(published, "BLOCKS", 4)
    seen = {}
    for size in (40, 100):
        path = tmp_path / f"{size}.gguf"
        content = bytearray(range(size))
        path.write_bytes(content)
        whole = published.digests(str(path))
        assert whole.keys() == {path.name}
        seen[size] = []
        for place in range(size):
            content[place] ^= 1
            path.write_bytes(content)
            seen[size] += [place] if published.digests(str(path)) != whole else []
            content[place] ^= 1
    assert seen[40] == list(range(40))
    assert seen[100] == [*range(10), *range(30, 40), *range(60, 70), *range(90, 100)]


def test_versions_that_compute_the_numbers_are_told():
    assert set(agreement.versions()) == {"python", "jax", "jaxlib", "flax", "optax"}


@pytest.fixture(scope="module")
def checked():
    """Programs of a mesh of 2 x 2 x 2, their parameters, and the check, as if each two devices were a process."""
    config = Config(
        task=addition(digits=1),
        model=tiny.SMALL,
        warmup=WarmUp(max_steps=0),
        mesh=MeshShape(data=2, fsdp=2, tensor=2),
        prompts_per_step=8,
    )
    programs = Programs(config)
    params = programs.fresh_params()
    check = StepCheck(programs, params)
    check._owners = [device // 2 for device in range(8)]
    return check, params


def with_flipped_bit(params, leaf, device):
    """The same tree, where one device has one bit of one leaf otherwise."""

    def flip(x):
        parts = [shard.data for shard in x.addressable_shards]
        raw = np.asarray(parts[device]).copy()
        raw.view(np.uint32).ravel()[1] ^= 1
        parts[device] = jax.device_put(raw, parts[device].device)
        return jax.make_array_from_single_device_arrays(x.shape, x.sharding, parts)

    leaves, structure = jax.tree.flatten(params)
    return jax.tree.unflatten(structure, [flip(x) if i == leaf else x for i, x in enumerate(leaves)])


def test_equal_processes_agree_and_hear_of_a_stop(checked):
    check, params = checked
    assert check(0, params, False) is False
    assert check(3, params, False) is False
    assert check(4, params, True) is True
    check.finish()


@pytest.mark.parametrize(("leaf", "device"), [(0, 7), (0, 5), (3, 6)])
def test_a_process_with_another_parameter_is_named(checked, leaf, device):
    check, params = checked
    name = jax.tree_util.keystr(jax.tree_util.tree_flatten_with_path(params)[0][leaf][0])
    with pytest.raises(DisagreementError) as caught:
        check(3, with_flipped_bit(params, leaf, device), False)
    assert f"step 3: process {device // 2} disagrees with the others in parameter {name}" in str(caught.value)


@pytest.mark.parametrize(("column", "what"), [(0, "step"), (2, "the prompts of the step")])
def test_a_process_at_another_step_is_named(checked, column, what):
    check, params = checked
    table = np.array(check._digests((params, agreement.of_each_device(check._mesh, agreement._numbers(3, 0)))))
    assert check._read(table.copy()) is False
    table[4:6, column] += 1
    with pytest.raises(DisagreementError, match=f"process 2 disagrees with the others in {what}"):
        check._read(table)


def test_accelerators_are_looked_at_one_step_late(checked, monkeypatch):
    check, params = checked
    monkeypatch.setattr(check, "_late", True)
    assert check(1, params, True) is False
    assert check(2, params, False) is True
    assert check(3, with_flipped_bit(params, 0, 7), False) is False
    with pytest.raises(DisagreementError, match="step 3: process 3"):
        check.finish()
    check._pending = None


def test_shares_of_a_batch_are_blocks_in_order(monkeypatch):
    for processes in (1, 2, 3, 4):
        monkeypatch.setattr(jax, "process_count", lambda n=processes: n)
        for rows in (4, 7, 8, 12):
            cut = []
            for rank in range(processes):
                monkeypatch.setattr(jax, "process_index", lambda r=rank: r)
                cut += range(rows)[share(rows)]
                if rows % processes == 0:
                    assert {i * processes // rows for i in range(rows)[share(rows)]} == {rank}
            assert cut == list(range(rows))


def test_one_process_asks_nobody(monkeypatch):
    monkeypatch.setattr(distributed, "told", None)
    assert together(lambda: 3) == 3
    assert joined({"a": 1}, 1) == {"a": 1}
    with pytest.raises(KeyError):
        together(lambda: {}["x"])
    monkeypatch.undo()
    assert summed({"timeouts": 2}) == {"timeouts": 2}
    assert summed({}) == {}


def test_a_sampler_elsewhere_is_for_one_process(monkeypatch):
    monkeypatch.setattr(programs_file, "several", lambda: True)
    with pytest.raises(ConfigError, match="a single process only"):
        Programs(Config(task=addition(digits=1), model=tiny.SMALL), sampler=lambda *_: None)


@pytest.mark.parametrize(
    ("environment", "several"),
    [
        ({}, False),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}, False),  # a shell in an allocation
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, True),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, False),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "a"}, False),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False),
    ],
)
def test_clusters_are_seen_by_what_their_launchers_say(environment, several):
    assert in_cluster(environment) is several


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"coordinator": "a:1"}, "given together"),
        ({"process_id": 0}, "given together"),
        ({"coordinator": "a:1", "num_processes": 2, "process_id": 2}, "from 0 to 1, not 2"),
        ({"coordinator": "a", "num_processes": 2, "process_id": 0}, "HOST:PORT, not 'a'"),
        ({"heartbeat_timeout": 0}, "heartbeat_timeout"),
    ],
)
def test_wrong_flags_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Processes(**wrong)
