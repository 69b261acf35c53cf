"""Tokenizers: every text comes back, and none of them is ever a control id."""

import io
import os

import numpy as np
import pytest
import sentencepiece
from jax import numpy as jnp

from jaxrl_llm import tokenizers
from jaxrl_llm.tokenizers import CharTokenizer, SentencePieceTokenizer, decode_answers, load_sentencepiece

SUMS = [f"Question: what is {a} + {b}?\nAnswer: {a + b}" for a in range(20) for b in range(20)]
MARKS = ["<s>", "</s>", "<pad>", "<unk>", "[BOS]", "[PAD]", "<0x41>", "<|im_end|>", "<start_of_turn>", "\0"]
VARIED = [
    *("", " ", "  two  ", "\n", "\r\n\t\n", "tab\there", "\u2028\u00a0\u3000", "\ufeff", "\ufffd", "\x7f\x01", "a\0b"),
    *("12,345.60", "-1/3", "漢字かな", "é e\u0301 ﬁ ½", "مرحبا", "👩‍👩‍👧 🇫🇮", "\U0010ffff", "▁", " ▁ ▁▁", "a▁b▅", "⁇"),
    *("".join(MARKS), "<s> hello </s>" * 20, "x" * 5000, "' or 1=1 --", '{"a": [1]}', "$\\frac{1}{2}$"),
]
"""Texts that tokenizers are known to change or to misread."""


def raw_model(texts=SUMS, **changes) -> bytes:
    """A SentencePiece model with other options than ours."""
    file = io.BytesIO()
    options = {**tokenizers.TRAINER, "vocab_size": 400, **changes}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(texts), model_writer=file, **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> SentencePieceTokenizer:
    return tokenizers.train_sentencepiece(SUMS, 400, cache_dir=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def marked() -> SentencePieceTokenizer:
    """A model of the kind that is found on hubs: turn marks that match as typed, no pad, a dummy prefix."""
    marks = ["<|im_end|>", "<start_of_turn>", "[PAD]", "\n\n"]
    return SentencePieceTokenizer(raw_model(user_defined_symbols=marks, pad_id=-1, add_dummy_prefix=True))


@pytest.fixture(scope="module")
def hostile() -> SentencePieceTokenizer:
    """A model whose training text is full of marks, so that they might have become pieces."""
    return SentencePieceTokenizer(raw_model(["<s> </s> <unk> <pad> [BOS] <0x41> " * 5] * 50))


def controls(tokenizer: SentencePieceTokenizer) -> set[int]:
    """Control ids, read from the model in another way than the tokenizer reads them."""
    pieces = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model)
    marks = {i for i in range(pieces.get_piece_size()) if pieces.id_to_piece(i) in {*MARKS} - {"<0x41>"}}
    return marks | {tokenizer.pad, tokenizer.bos, tokenizer.eos, pieces.unk_id()}


def test_characters_are_numbered_in_order_after_the_control_ids():
    tokenizer = CharTokenizer("cabba")
    assert (tokenizer.pad, tokenizer.bos, tokenizer.eos, tokenizer.vocab_size) == (0, 1, 2, 6)
    assert tokenizer.encode("abc") == [3, 4, 5]
    assert tokenizer.decode([1, 5, 0, 3, 2, 6, -1, 10**9]) == "ca"


def test_equal_alphabets_make_equal_tokenizers():
    assert CharTokenizer("abc") == CharTokenizer("ccba")
    assert hash(CharTokenizer("abc")) == hash(CharTokenizer("ccba"))
    assert CharTokenizer("abc") != CharTokenizer("abd")
    with pytest.raises(AttributeError):
        CharTokenizer("abc").alphabet = "x"


@pytest.mark.parametrize("text", VARIED)
def test_characters_come_back(text):
    tokenizer = CharTokenizer(text + "<s>")
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert not {0, 1, 2} & set(tokenizer.encode(text))


@pytest.mark.parametrize(
    ("text", "where"), [("ab?", "'?' at position 2"), ("\0", r"'\x00' at position 0"), ("aé", "'é' at")]
)
def test_a_character_outside_the_alphabet_is_named(text, where):
    with pytest.raises(ValueError, match="position") as error:
        CharTokenizer("abc").encode(text)
    assert where in str(error.value)


@pytest.mark.parametrize("text", VARIED)
def test_text_comes_back_from_a_trained_model(trained, text):
    ids = trained.encode(text)
    assert trained.decode(ids) == text
    assert all(0 <= i < trained.vocab_size for i in ids)


@pytest.mark.parametrize("text", [*VARIED, *MARKS, " <s>", "a<|im_end|>\nb[PAD]<start_of_turn>user"])
def test_no_text_is_a_control_id(trained, marked, hostile, text):
    for tokenizer in (trained, marked, hostile):
        ids = tokenizer.encode(text)
        assert not controls(tokenizer) & set(ids)
        blanks = str.maketrans("", "", "▁ ")  # the dummy prefix of `marked` adds spaces
        assert tokenizer.decode(ids).translate(blanks) == text.translate(blanks)


def test_control_ids_are_not_shown(trained, marked):
    for tokenizer in (trained, marked):
        ids = [
            tokenizer.bos,
            *tokenizer.encode("12 + 7"),
            tokenizer.eos,
            tokenizer.pad,
            -1,
            10**6,
            *controls(tokenizer),
        ]
        assert tokenizer.decode(ids) == "12 + 7"


def test_bytes_that_are_no_text_are_decoded_all_the_same(trained):
    assert "�" in trained.decode([4 + 0xFF, 4 + 0xE2, *trained.encode("1")])
    rng = np.random.default_rng(0)
    for _ in range(200):
        trained.decode(rng.integers(0, trained.vocab_size, 20).tolist())


def test_half_a_surrogate_pair_is_refused(trained):
    with pytest.raises(ValueError, match=r"'\\ud800' at position 2"):
        trained.encode("ab\ud800")


def test_a_model_without_bytes_names_what_it_cannot_spell():
    tokenizer = SentencePieceTokenizer(
        raw_model(byte_fallback=False, vocab_size=60, unk_piece="UNK", user_defined_symbols=["<was>"])
    )
    with pytest.raises(ValueError, match="'é' at position 4"):
        tokenizer.encode("whaté")
    with pytest.raises(ValueError, match="'<was>' at position 1"):
        tokenizer.encode("a<was>")


def test_pad_is_appended_where_the_model_has_none(marked, trained):
    size = sentencepiece.SentencePieceProcessor(model_proto=marked.model).get_piece_size()
    assert (marked.pad, marked.vocab_size) == (size, size + 1)
    assert len({marked.pad, marked.bos, marked.eos}) == 3
    assert (trained.pad, trained.bos, trained.eos) == (0, 1, 2)


@pytest.mark.parametrize("name", ["bos", "eos"])
def test_a_model_without_bos_or_eos_is_refused(name):
    with pytest.raises(ValueError, match=f"no {name} piece"):
        SentencePieceTokenizer(raw_model(**{f"{name}_id": -1}))


def test_equal_models_make_equal_tokenizers(trained, marked):
    assert SentencePieceTokenizer(trained.model) == trained != marked
    assert hash(SentencePieceTokenizer(trained.model)) == hash(trained)
    assert len(repr(trained)) < 200


def test_loading(tmp_path, trained):
    file = tmp_path / "some.model"
    with pytest.raises(FileNotFoundError, match=r"some\.model"):
        load_sentencepiece(file)
    with pytest.raises(FileNotFoundError, match="no SentencePiece"):
        load_sentencepiece(tmp_path)
    file.write_bytes(trained.model)
    assert load_sentencepiece(str(file)) == trained
    for content in (b"", b"\x80\x04pickle", trained.model[:-7], trained.model[: len(trained.model) // 2]):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"some\.model.*damaged"):
            load_sentencepiece(file)


def test_training_is_repeatable_and_cached(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a"))
    first = tokenizers.train_sentencepiece(SUMS, 300)
    (file,) = (tmp_path / "a" / "jaxrl_llm").iterdir()
    assert file.read_bytes() == first.model
    assert tokenizers.train_sentencepiece(SUMS, 300, cache_dir=tmp_path / "b") == first
    assert tokenizers.train_sentencepiece(SUMS, 310, cache_dir=tmp_path / "b") != first
    assert tokenizers.train_sentencepiece(SUMS[1:], 300, cache_dir=tmp_path / "b") != first
    assert len(list((tmp_path / "b").iterdir())) == 3
    monkeypatch.setattr(sentencepiece.SentencePieceTrainer, "train", None)
    assert tokenizers.train_sentencepiece(SUMS, 300) == first


def test_a_damaged_or_unwritable_cache_does_no_harm(tmp_path, monkeypatch):
    first = tokenizers.train_sentencepiece(SUMS, 300, cache_dir=tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(first.model[:100])
    assert tokenizers.train_sentencepiece(SUMS, 300, cache_dir=tmp_path) == first
    assert file.read_bytes() == first.model
    monkeypatch.setenv("XDG_CACHE_HOME", os.devnull)
    assert tokenizers.train_sentencepiece(SUMS, 300) == first


def test_hostile_texts_train(tmp_path):
    tokenizer = tokenizers.train_sentencepiece(VARIED, 900, cache_dir=tmp_path)
    assert [tokenizer.decode(tokenizer.encode(text)) for text in VARIED] == VARIED


@pytest.mark.parametrize("character", ["\0", "▅", "\t"])
def test_a_character_that_the_trainer_skips_takes_no_other_with_it(tmp_path, trained, character):
    tokenizer = tokenizers.train_sentencepiece([text + character for text in SUMS], 400, cache_dir=tmp_path)
    question = f"Question: what is 1{character}"
    assert tokenizer.decode(tokenizer.encode(question)) == question
    assert len(tokenizer.encode("Question: what is ")) == len(trained.encode("Question: what is ")) == 5


def test_numbers_are_spelled_digit_by_digit(trained):
    assert len(trained.encode("1910")) == 4


@pytest.mark.parametrize(
    ("texts", "size", "words"), [([], 400, "no text"), ([""], 400, "no text"), (SUMS, 280, "need 2")]
)
def test_what_cannot_be_trained_is_refused(tmp_path, texts, size, words):
    with pytest.raises(ValueError, match=words):
        tokenizers.train_sentencepiece(texts, size, cache_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_smallest_vocabulary_is_enough(tmp_path):
    size = tokenizers.smallest_vocabulary(SUMS)
    assert tokenizers.train_sentencepiece(SUMS, size, cache_dir=tmp_path).vocab_size <= size
    with pytest.raises(ValueError, match=f"need {size}"):
        tokenizers.train_sentencepiece(SUMS, size - 1, cache_dir=tmp_path)


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_answers_are_the_acted_tokens(array):
    tokenizer = CharTokenizer("0123456789")
    answer = [[tokenizer.encode("12345"), [3, 2, 0, 0, 0]], [[2, 4, 4, 4, 4], [4, 4, 4, 4, 4]]]
    acted = [[[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]], [[1, 0, 0, 0, 0], [0, 1, 0, 1, 0]]]
    assert decode_answers(tokenizer, array(answer), array(np.asarray(acted, bool))) == [["12345", "0"], ["", "11"]]
