"""A byte-level vocabulary inside a GGUF file, against reference tokenizers that are built without its reader."""

import json
import random

import pytest
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers

from jaxrl_llm.policies.hub.gguf_file import GgufFile
from jaxrl_llm.policies.hub.gguf_vocabulary import load_gguf_tokenizer

NORMAL, CONTROL = 1, 3
MARKS = ["<|begin|>", "<|end|>"]
LLAMA3 = ["llama-bpe", "llama3", "llama-v3", "falcon3"]
TEXTS = [
    *(
        "hello world, it's 1234567 + 89",
        "naïve café Ωμέγα",
        "日本語のテキスト",
        "مرحبا بالعالم",
        "привет мир",
    ),
    *("😀👨‍👩‍👧‍👦🇫🇷", "\n\t  \r\n x", "e\u0301 é", "WE'LL don't I'M", "<|begin|>", "<|im", "_end|>", "\x00", "\u200b"),
]
# As the published tokenizer.json files have them; typed here a second time on purpose.
WORDS, REST = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
LLAMA3_CUT, QWEN2_CUT = WORDS + r"\p{N}{1,3}" + REST, WORDS + r"\p{N}" + REST


class Header(GgufFile):
    """The fields of a file's header, without the file."""

    def __init__(self, **fields):
        given = {"model": "gpt2", "bos_token_id": 0, "eos_token_id": 1} | fields
        self.architecture, self.path = "llama", "m.gguf"
        self.fields = {f"tokenizer.ggml.{name}": value for name, value in given.items()}

    def field(self, name):
        return self.fields.get(name)


def toy(**fields):
    """Four letters and two words: "bc" merges first, so "abc" is spelled "a bc", though "abc" is a token too."""
    tokens = [*MARKS, "a", "b", "c", "d", "bc", "ab", "abc", "abcd", "Ġ"]
    kinds = [CONTROL] * 2 + [NORMAL] * (len(tokens) - 2)
    merges = ["b c", "a b", "ab c"]
    return load_gguf_tokenizer(Header(tokens=tokens, token_type=kinds, merges=merges, **fields))


@pytest.mark.parametrize("name", LLAMA3)
def test_a_word_that_is_a_token_is_not_merged_by_llama3(name):
    assert toy(pre=name).encode("abc") == [8], "by its merges it would be a, bc"
    assert toy(pre=name).encode("abcd") == [9], "no merge leads to it"
    assert toy(pre=name).encode("dabc") == [5, 2, 6], "a piece that is no token goes by the merges"
    assert toy(pre=name, add_bos_token=False).encode("abc") == [8]


@pytest.mark.parametrize("name", ["gpt-2", "default", "smollm", "qwen2"])
def test_others_merge_every_word(name):
    assert toy(pre=name).encode("abc") == [2, 6]
    assert toy(pre=name).encode("abcd") == [2, 6, 5]


@pytest.mark.parametrize(
    ("fields", "opening"),
    [
        *[({"pre": name}, (0,)) for name in LLAMA3],
        *[({"pre": name, "add_bos_token": False}, ()) for name in LLAMA3],
        *[({"pre": name}, ()) for name in ("gpt-2", "smollm", "qwen2")],
        ({"pre": "qwen2", "add_bos_token": True}, (0,)),
        ({}, ()),
    ],
)
def test_bos_stands_in_front_where_the_file_or_the_way_says_so(fields, opening):
    assert toy(**fields).opening == opening


def test_another_way_to_cut_is_refused():
    with pytest.raises(ValueError, match=r"m\.gguf: tokenizer\.ggml\.pre 'llama-bp' is not known.*llama-bpe"):
        toy(pre="llama-bp")


def corpus(count):
    draw = random.Random(0)
    parts = [text[i : i + 5] for text in TEXTS for i in range(0, len(text), 2)]
    return TEXTS + ["".join(draw.choice(parts) for _ in range(draw.randint(0, 12))) for _ in range(count)]


def reference(name):
    """A trained tokenizer, put together as the published files are."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=name in ("gpt-2", "smollm"))
    first = {
        "smollm": [pre_tokenizers.Digits(individual_digits=True)],
        "llama-bpe": [pre_tokenizers.Split(Regex(LLAMA3_CUT), behavior="isolated")],
        "qwen2": [pre_tokenizers.Split(Regex(QWEN2_CUT), behavior="isolated")],
    }.get(name, [])
    made = tokenizers.Tokenizer(models.BPE(ignore_merges=name == "llama-bpe"))
    made.normalizer = normalizers.NFC() if name == "qwen2" else None
    made.pre_tokenizer = pre_tokenizers.Sequence([*first, byte_level])
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator(TEXTS * 20, trainer)
    made.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in MARKS])
    return made


@pytest.mark.parametrize("name", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_ids_are_those_of_an_independent_tokenizer(name):
    wanted = reference(name)
    saved = json.loads(wanted.to_str())["model"]
    tokens = [wanted.id_to_token(i) for i in range(wanted.get_vocab_size())]
    ends = {f"{mark}_token_id": wanted.token_to_id(text) for mark, text in zip(("bos", "eos"), MARKS, strict=True)}
    merges = [" ".join(pair) for pair in saved["merges"]]
    kinds = [CONTROL if token in MARKS else NORMAL for token in tokens]
    found = load_gguf_tokenizer(Header(tokens=tokens, merges=merges, token_type=kinds, pre=name, **ends))
    wanted.encode_special_tokens = True  # text spells marks, as the law of tokenizers has it
    assert len(merges) > 100
    for text in corpus(400):
        ids = wanted.encode(text, add_special_tokens=False).ids
        assert found.encode(text) == ids, text
        assert found.decode(ids) == wanted.decode(ids)


BYTES = {"tokens": ["<|begin|>", "<|end|>", "a", "b", "ab"], "token_type": [3, 3, 1, 1, 1], "merges": ["a b"]}
PIECES = {"model": "llama", "tokens": ["<unk>", "</s>", "a", "b", "ab"], "token_type": [2, 3, 1, 1, 1]}
PIECES |= {"scores": [0.0, 0.0, -1.0, -2.0, -3.0]}


def test_the_vocabularies_that_are_damaged_below_are_good():
    assert load_gguf_tokenizer(Header(**BYTES)).encode("ab") == [4]
    assert load_gguf_tokenizer(Header(**PIECES, add_space_prefix=False)).encode("ab") == [4]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (BYTES | {"model": "gpt"}, "tokenizer.ggml.model 'gpt' is not known.*gpt2"),
        (BYTES | {"tokens": None}, "tokenizer.ggml.tokens must be a list of strings"),
        (BYTES | {"tokens": ["a", "b", "c", "b"]}, "tokenizer.ggml.tokens holds 'b' twice"),
        (BYTES | {"merges": ["a"]}, "tokenizer.ggml.merges must be a list of pairs"),
        (BYTES | {"merges": ["a z"]}, "tokenizer.ggml.merges do not suit tokenizer.ggml.tokens: .*`z`"),
        (BYTES | {"eos_token_id": 5}, r"stops \[5\] lies outside of the vocabulary of 5"),
        (BYTES | {"eos_token_id": None}, "there must be an EOS token"),
        (BYTES | {"bos_token_id": 99}, r"bos \[99\] lies outside"),
        (PIECES | {"scores": None}, "tokenizer.ggml.scores must hold a finite number for each token"),
        (PIECES | {"scores": [0.0] * 4}, "tokenizer.ggml.scores must hold a finite number for each token"),
        (PIECES | {"scores": [0.0] * 4 + [float("nan")]}, "tokenizer.ggml.scores must hold a finite number"),
        (PIECES | {"token_type": [1]}, "tokenizer.ggml.token_type must hold a number for each token"),
        (PIECES | {"unknown_token_id": 5}, "tokenizer.ggml.unknown_token_id 5 lies outside of the 5 tokens"),
        (PIECES | {"tokens": ["<unk>", "</s>", "a", "b", "a" * 5000]}, "the piece 'aaaaaaa.* has 5000 letters"),
    ],
)
def test_a_damaged_vocabulary_is_named(fields, words):
    with pytest.raises(ValueError, match=f"^m.gguf: {words}"):
        load_gguf_tokenizer(Header(**fields))


def test_a_template_that_is_no_text_is_named():
    header = Header(**BYTES)
    header.fields["tokenizer.chat_template"] = 7
    with pytest.raises(ValueError, match=r"m\.gguf: tokenizer\.chat_template must be text, not 7"):
        load_gguf_tokenizer(header)
