"""Log-probability, entropy, squares and divergence by blocks of the vocabulary: the numbers and gradients of the plain
formulas, in memory that neither vocabulary nor their product with the tokens drives up."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxrl_llm.policies import readout
from jaxrl_llm.policies.readout import Head, Reading, read

P, G, T, E = 2, 3, 4, 8
SHAPE = (P, G, T)
# Vocabulary and number of blocks: one; a divisor; 13 times 8 is more than 97, so that some blocks lack a row.
CUTS = {"whole": (97, 1), "even": (96, 8), "ragged": (97, 13)}


def plain(cap, head, token, reference):
    """As `read`, with all logits, by automatic differentiation."""

    def every(head):
        logits = jnp.einsum("...e,ve->...v", head.hidden, head.table.astype(head.hidden.dtype))
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        return jax.nn.log_softmax(cap * jnp.tanh(logits / cap) if cap else logits, axis=-1)

    logp = every(head)
    p = jnp.exp(logp)
    chosen = jnp.take_along_axis(logp, token[..., None], axis=-1)[..., 0]
    gap = 0 if reference is None else logp - every(jax.lax.stop_gradient(reference))
    return Reading(chosen, *(jnp.sum(p * x, axis=-1) for x in (-logp, p, gap)))


def case(vocabulary, dtype=jnp.float32, shape=SHAPE):
    """Peaked distributions, and a reference that is another one."""
    draw = lambda n, scale, *size: (scale * jax.random.normal(jax.random.key(n), size)).astype(dtype)  # noqa: E731
    heads = [Head(draw(n, 1, *shape, E), draw(n + 1, 0.7, vocabulary, E).astype(jnp.float32)) for n in (0, 2)]
    token = jax.random.randint(jax.random.key(4), shape, 0, vocabulary)
    return heads[0], token, heads[1]


def weighed(function, cap, head, token, reference):
    """Values, and the gradient in the head of a sum that weighs every number differently, 0 for the last positions."""
    weights = jax.random.normal(jax.random.key(5), (4, *token.shape)).at[..., -1].set(0)

    def total(head):
        out = function(cap, head, token, reference)
        return sum(jnp.sum(w * x) for w, x in zip(weights, out, strict=True)), out

    (_, out), slope = jax.value_and_grad(total, has_aux=True)(head)
    return out, slope


def compiled(function, cap, head, token, reference):
    return tiny.jit(functools.partial(weighed, function, cap))(head, token, reference)


def blocks_of(monkeypatch, vocabulary, count, positions=P * G * T):
    monkeypatch.setattr(readout, "LEAST", 1)
    monkeypatch.setattr(readout, "LOGITS", -(-vocabulary // count) * positions)


def close(ours, expected, rtol):
    """Relative to the largest number of each array."""
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * float(jnp.max(jnp.abs(b)))), ours, expected
    )


@pytest.mark.parametrize("cap", [0.0, 2.0])
@pytest.mark.parametrize("cut", CUTS)
def test_values_and_gradients_are_those_of_log_softmax(monkeypatch, cut, cap):
    vocabulary, count = CUTS[cut]
    blocks_of(monkeypatch, vocabulary, count)
    assert readout._Blocks(vocabulary, P * G * T).count == count
    arguments = (cap, *case(vocabulary))
    (ours, slope), (expected, slope_expected) = compiled(read, *arguments), compiled(plain, *arguments)
    assert min(float(jnp.max(jnp.abs(x))) for x in (*expected, *slope_expected)) > 0.02
    close(ours, expected, 1e-5)
    close(slope, slope_expected, 1e-5)
    assert not np.any(np.asarray(slope.hidden)[..., -1, :]), "no gradient where the slopes are 0"


def test_bfloat16_is_as_near_as_its_digits(monkeypatch):
    """To float32 on the same rounded hidden states: 2^-8 for each rounding of the table and of the slopes."""
    blocks_of(monkeypatch, *CUTS["ragged"])
    head, token, reference = case(97, jnp.bfloat16)
    ours, slope = compiled(read, 0.0, head, token, reference)
    widened = [Head(x.hidden.astype(jnp.float32), x.table) for x in (head, reference)]
    expected, slope_expected = compiled(plain, 0.0, widened[0], token, widened[1])
    assert slope.hidden.dtype == jnp.bfloat16
    assert slope.table.dtype == ours.logp.dtype == jnp.float32
    close(ours, expected, 2e-2)
    close(jax.tree.map(lambda x: x.astype(jnp.float32), slope), slope_expected, 2e-2)


def test_huge_and_certain_logits_stay_finite_and_exact(monkeypatch):
    """One token has all the probability: log π and entropy 0, those of the others the gaps of the logits."""
    blocks_of(monkeypatch, 6, 3, positions=2)
    head = Head(jnp.ones((2, 1)), jnp.asarray([[3e4], [0.0], [-3e4], [2.0], [1.0], [0.0]]))
    out, slope = compiled(read, 0.0, head, jnp.asarray([0, 2]), Head(head.hidden, -head.table))
    np.testing.assert_array_equal(out.logp, [0, -6e4])
    np.testing.assert_array_equal(out.entropy, 0)
    np.testing.assert_array_equal(out.squares, 1)
    np.testing.assert_array_equal(out.divergence, 6e4)
    assert all(np.all(np.isfinite(x)) for x in slope)


def test_a_policy_does_not_diverge_from_itself(monkeypatch):
    blocks_of(monkeypatch, *CUTS["ragged"])
    head, token, _ = case(97)
    assert not np.any(np.asarray(compiled(read, 0.0, head, token, head)[0].divergence))


def test_vmap_and_checkpoint_and_gradients_of_both(monkeypatch):
    """Runs of a sweep, each with parameters of its own; the gradient of the vmapped sum, rematerialised."""
    blocks_of(monkeypatch, *CUTS["ragged"])
    runs = jax.tree.map(lambda *x: jnp.stack(x), *[jax.tree.map(lambda x, f=f: f * x, case(97)[0]) for f in (1.0, 0.5)])
    _, token, reference = case(97)

    def one(function, head):
        out = function(0.0, head, token, reference)
        return jnp.sum(out.logp * out.entropy + out.squares + out.divergence)

    def of_all(function):
        every = jax.vmap(jax.checkpoint(functools.partial(one, function)))
        return tiny.jit(jax.grad(lambda heads: jnp.sum(every(heads))))(runs)

    close(of_all(read), of_all(plain), 2e-5)
    close(tiny.jit(jax.vmap(jax.grad(functools.partial(one, read))))(runs), of_all(read), 1e-6)


# memory


def scratch(function, vocabulary, positions):
    """Bytes beside arguments and results of value and gradient together."""
    run = jax.jit(functools.partial(weighed, function, 0.0))
    shapes = jax.eval_shape(lambda: case(vocabulary, shape=(positions,)))
    return run.lower(*shapes).compile().memory_analysis().temp_size_in_bytes


def test_memory_does_not_grow_with_vocabulary_times_tokens(monkeypatch):
    """Sixteen times the logits take the same scratch, but for a few numbers a token."""
    monkeypatch.setattr(readout, "LEAST", 1)
    monkeypatch.setattr(readout, "LOGITS", 2**16)
    small, large = scratch(read, 1024, 256), scratch(read, 4096, 1024)
    assert large < small + 1024 * 4 * (4 * E + 40)
    assert large < 4 * 4 * 2**16 + 1024 * 4 * (4 * E + 40)
    assert scratch(plain, 4096, 1024) > 8 * scratch(plain, 1024, 256)  # the check sees what holds all logits


# eight devices

MESHES = {
    "prompts": ((8, 1, 1), PartitionSpec()),
    "prompts and width": ((1, 8, 1), PartitionSpec(None, "fsdp")),
    "all": ((2, 2, 2), PartitionSpec("tensor", "fsdp")),
    "vocabulary": ((1, 1, 8), PartitionSpec("tensor", None)),
}


def programs(mesh_shape, table, monkeypatch):
    """(compiled on the mesh, its arguments, those of one device)."""
    blocks_of(monkeypatch, 256, 8, positions=8 * 2 * 6)
    mesh = Mesh(
        np.asarray(jax.devices()).reshape(mesh_shape), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3
    )
    at = lambda spec: NamedSharding(mesh, spec)  # noqa: E731
    rows, whole = at(PartitionSpec(("data", "fsdp"))), case(256, shape=(8, 2, 6))
    head = Head(rows, at(table))
    placed = jax.device_put(whole, (head, rows, head))
    run = tiny.jit(functools.partial(weighed, read, 0.0), out_shardings=(rows, head))
    return run.lower(*placed).compile(), placed, whole


def moved(program):
    """Numbers that the results of each collective of a program hold on a device."""
    for line in program.as_text().splitlines():
        if found := re.search(r" = (.*?) (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)\(", line):
            shapes = re.findall(r"\w+\[([\d,]*)\]", found[1])
            yield max(int(np.prod([int(n) for n in shape.split(",") if n])) for shape in shapes)


@pytest.mark.parametrize("mesh", MESHES)
def test_on_eight_devices_it_is_the_same_and_gathers_a_block_at_most(monkeypatch, mesh):
    program, placed, whole = programs(*MESHES[mesh], monkeypatch)
    close(jax.device_get(program(*placed)), compiled(plain, 0.0, *whole), 1e-5)
    block, hidden_of_a_device = 256 // 8 * E, 8 * 2 * 6 * E // np.prod(MESHES[mesh][0][:2])
    assert max(moved(program)) <= max(block, hidden_of_a_device)


def test_the_count_of_what_moves_sees_a_gathered_batch(monkeypatch):
    """A table whose rows lie in contiguous blocks is gathered whole where the mesh cuts the vocabulary."""
    cut = readout._Blocks.cut
    contiguous = lambda self, table: jnp.swapaxes(cut(self, table).reshape(self.count, self.size, -1), 0, 1)  # noqa: E731
    monkeypatch.setattr(readout._Blocks, "cut", contiguous)
    program, _, _ = programs(*MESHES["vocabulary"], monkeypatch)
    assert max(moved(program)) > 256 // 8 * E and max(moved(program)) > 8 * 2 * 6 * E  # noqa: PT018
