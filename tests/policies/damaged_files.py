"""Good files of a small model and damaged ones, read one after the other within a limit of memory.

    python damaged_files.py COUNT FOLDER

writes COUNT damaged files of each kind, loads each, and prints as JSON how many loaded and were refused, by kind, and
the slowest load. Runs as a process of its own: what dies, hangs or asks for much memory takes no test session with it.
"""

import collections
import functools
import json
import pathlib
import random
import resource
import struct
import sys
import time

import gguf
import jax

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
import tiny
import tiny_hub
from gguf_files import write_gguf
from safetensors.numpy import load_file
from tokenizers import pre_tokenizers

from jaxrl_llm.policies.config import DecoderConfig
from jaxrl_llm.policies.hub import safetensors_save
from jaxrl_llm.policies.hub.config_json import Hub
from jaxrl_llm.policies.hub.gguf_file import GgufFile
from jaxrl_llm.policies.hub.gguf_vocabulary import load_gguf_tokenizer
from jaxrl_llm.policies.hub.load import load_folder, load_open_gguf, save_folder
from jaxrl_llm.policies.hub.safetensors_files import INDEX, SINGLE
from jaxrl_llm.published_tokenizer import load_published
from jaxrl_llm.sharding import MeshShape, make_mesh, state_shardings

CONFIG = DecoderConfig(layers=1, width=32, heads=2, kv_heads=1, head_size=16, mlp_width=32, norm_eps=1e-5)
HUB = Hub(config=CONFIG, family="llama", vocab_size=280, max_length=64, bos=1, eos=(2,), pad=0)
SECONDS = 5  # of one load
ROOM = 256 * 2**20  # bytes that a load may map; each file has some 100,000
MARKS = ["<unk>", "<s>", "</s>"]
ODD = [None, -1, 0, 2**70, 1e400, "x", [], {}, [[]], {"rope_type": "x"}, True, [1, "a"], 7, 3.5, 2**39, 2**30]


def shardings(policy):
    return state_shardings(make_mesh(MeshShape()), policy.init, jax.random.key(0))


def write_good(root: pathlib.Path) -> dict[str, pathlib.Path]:
    """A folder of one file, one with an index, one with a tokenizer, and GGUF files with either kind of vocabulary."""
    _, params = tiny.decoder(HUB.vocab_size, **{f: getattr(CONFIG, f) for f in CONFIG.__dataclass_fields__})
    for name, size in (("cut", 20_000), ("single", 2**30)):
        safetensors_save.FILE_BYTES = size
        save_folder(root / name, HUB, params)
    (root / "tokenizer").mkdir()
    tiny_hub.write_tokenizer(root / "tokenizer", ["What is 12 + 7? Answer: 19\n", "naïve 日本語"])
    tensors = load_file(root / "single" / SINGLE)
    for kind in ("gpt2", "llama"):
        vocabulary = functools.partial(_add_vocabulary, kind)
        write_gguf(root / f"{kind}.gguf", HUB, tensors, gguf.GGMLQuantizationType.Q8_0, vocabulary=vocabulary)
    return {name: root / name for name in ("cut", "single", "tokenizer", "gpt2.gguf", "llama.gguf")}


def _add_vocabulary(kind, write, hub):
    words = ["th", "the", "in", "an", "and", "er", "on"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet()) if kind == "gpt2" else [f"<0x{i:02X}>" for i in range(256)]
    tokens = [*MARKS, *letters, *words, *("▁thenaiodr" if kind == "llama" else "")]
    tokens += [f"[{i}]" for i in range(hub.vocab_size - len(tokens))]
    write.add_tokenizer_model(kind)
    write.add_token_list(tokens)
    write.add_token_types([3 if token in MARKS else 1 for token in tokens])
    if kind == "gpt2":
        write.add_tokenizer_pre("llama-bpe")
        write.add_token_merges(["t h", "th e", "i n", "a n", "an d", "e r", "o n"])
    else:
        write.add_token_scores([-float(i) for i in range(len(tokens))])
    write.add_unk_token_id(0)
    write.add_bos_token_id(1)
    write.add_eos_token_id(2)
    write.add_chat_template("{{ messages[0].content }}")


def damaged(content: bytes, seed: int, front: int = 4000) -> bytes:
    """One of: some bytes changed, all near the front; a number made huge; cut short; a part zeroed or doubled."""
    draw, data = random.Random(seed), bytearray(content)
    front = min(len(data), front)
    kind = seed % 5
    if kind == 0:
        for _ in range(draw.randint(1, 8)):
            data[draw.randrange(front)] = draw.randrange(256)
    elif kind == 1:
        at = draw.randrange(max(1, front - 8))
        data[at : at + 8] = struct.pack("<Q", draw.choice([2**63, 2**40, 2**31, 2**64 - 1, 0]))
    elif kind == 2:
        del data[draw.randrange(len(data)) :]
    elif kind == 3:
        at = draw.randrange(front)
        data[at : at + 64] = bytes(len(data[at : at + 64]))
    else:
        at = draw.randrange(front)
        data[at:at] = data[at : at + draw.randint(1, 64)]
    return bytes(data)


def damaged_gguf(content: bytes, seed: int, front: int) -> bytes:
    """Damage to the bytes; or letters changed, in names and tokens; or an odd number in the vocabulary's fields."""
    if seed % 3 == 0:
        return damaged(content, seed // 3, front)
    draw, data = random.Random(seed), bytearray(content)
    if seed % 3 == 1:
        letters = [i for i in range(front) if 97 <= data[i] < 123 or data[i] == 32]
        for _ in range(draw.randint(1, 8)):
            data[draw.choice(letters)] = draw.choice(b"abcxyz <\xc4")
        return bytes(data)
    name = draw.choice([name for name in (b"_token_id", b"ggml.scores", b"ggml.token_type") if name in data])
    at = content.index(name, draw.randrange(content.rindex(name) + 1)) + len(name) + 4  # behind the type
    if name != b"_token_id":
        at += 4 + 8 + 4 * draw.randrange(HUB.vocab_size)  # of a list
    data[at : at + 4] = draw.choice(
        [b"\xff" * 4, bytes(4), b"\0\0\xc0\x7f", b"\0\0\0\x80", struct.pack("<I", 280), b"abcd"]
    )
    return bytes(data)


def damaged_json(content: bytes, seed: int) -> bytes:
    """A field of some depth removed, renamed, or set to something odd; every third a damage to the bytes."""
    if seed % 3 == 0:
        return damaged(content, seed // 3, front=len(content))
    draw, fields = random.Random(seed), json.loads(content)
    at = fields
    while True:
        keys = sorted(at) if isinstance(at, dict) else list(range(len(at)))
        name = draw.choice(keys)
        if not isinstance(at[name], dict | list) or not at[name] or draw.random() < 0.3:
            break
        at = at[name]
    value = at.pop(name)
    if isinstance(at, list):
        at.insert(name, draw.choice(ODD))
    elif seed % 3 == 1:
        at[name] = draw.choice(ODD)
    elif draw.random() < 0.5:
        at[f"{name}_x"] = value
    return json.dumps(fields).encode()


def load_all_of_gguf(path):
    """Weights and vocabulary; each may be what is damaged."""
    with GgufFile(path) as file:
        spell(load_gguf_tokenizer(file), path)
        load_open_gguf(file, shardings)


def spell(tokenizer, path):
    """Use it: some damage shows only there, as a refusal of the text."""
    try:
        tokenizer.decode(tokenizer.encode("What is the end of 12?"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


# Kind -> good files, the damaged one of them, how it is damaged, and what loads them.
KINDS = {
    "safetensors": ("single", SINGLE, damaged, lambda path: load_folder(path, shardings)),
    "config.json": ("single", "config.json", damaged_json, lambda path: load_folder(path, shardings)),
    "index": ("cut", INDEX, damaged_json, lambda path: load_folder(path, shardings)),
    "tokenizer.json": ("tokenizer", "tokenizer.json", damaged_json, lambda path: spell(load_published(path), path)),
    "gguf": ("gpt2.gguf", None, damaged_gguf, load_all_of_gguf),
    "gguf of pieces": ("llama.gguf", None, damaged_gguf, load_all_of_gguf),
}


def outcome(load, path: pathlib.Path) -> str:
    """`loaded` or `refused`. Any error but a clear one that names the path is raised."""
    try:
        load(path)
    except (ValueError, OSError) as error:
        if str(path) not in str(error):
            raise AssertionError(f"an error does not name its file: {error!r}") from error
        if "MemoryError" in str(error) or "Cannot allocate" in str(error):
            raise AssertionError(f"more than {ROOM} bytes were asked for: {error!r}") from error
        return "refused"
    return "loaded"


def bounded() -> None:
    """No more than ROOM bytes may be mapped from here on."""
    mapped = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + ROOM, resource.getrlimit(resource.RLIMIT_AS)[1]))


def campaign(count: int, root: pathlib.Path) -> dict[str, dict[str, float]]:
    """Of every kind: how many loaded, were refused, and the slowest in seconds."""
    good, found = write_good(root), {}
    for folder, _, _, load in KINDS.values():
        load(good[folder])  # whatever is made once is made before the limit
    bounded()
    for kind, (source, name, damage, load) in KINDS.items():
        counts, slowest = collections.Counter(loaded=0, refused=0), 0.0
        for seed in range(count):
            print(f"{kind}, seed {seed}", file=sys.stderr, flush=True)  # the last line is where it died
            path = root / f"damaged {source}"
            _put(good[source], path, name, damage, seed)
            start = time.monotonic()
            counts[outcome(load, path)] += 1
            slowest = max(slowest, time.monotonic() - start)
            if slowest > SECONDS:
                raise AssertionError(f"a load took {slowest:.1f} s")
        found[kind] = {**counts, "slowest": round(slowest, 3)}
    return found


def _put(good: pathlib.Path, path: pathlib.Path, name: str | None, damage, seed: int) -> None:
    if name is None:
        content = good.read_bytes()
        path.write_bytes(damage(content, seed, front=len(content) - 16_000))
        return
    path.mkdir(exist_ok=True)
    for file in good.iterdir():
        content = file.read_bytes()
        (path / file.name).write_bytes(damage(content, seed) if file.name == name else content)


if __name__ == "__main__":
    print(json.dumps(campaign(int(sys.argv[1]), pathlib.Path(sys.argv[2]))))
