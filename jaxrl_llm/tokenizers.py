"""Text <-> token ids: one id per character, or SentencePiece.

Law: no text that a user can type ever encodes to a control id. "<s>", "</s>", "<pad>", "<unk>" and NUL are plain text
here, so a prompt cannot end an answer and an answer cannot forge a prompt.
"""

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import os
import pathlib
import tempfile
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import sentencepiece

from jaxrl_llm.types import Tokenizer

CONTROLS = 3
"""pad, bos and eos are the ids 0, 1 and 2 of every tokenizer that is made here."""

TRAINER = {
    "model_type": "bpe",
    "normalization_rule_name": "identity",  # with the next three: decode(encode(x)) == x, white space included
    "add_dummy_prefix": False,
    "remove_extra_whitespaces": False,
    "byte_fallback": True,
    "character_coverage": 1.0,
    "split_digits": True,  # one token per digit, so that a place of a number is a place of the answer
    "pad_id": 0,
    "bos_id": 1,
    "eos_id": 2,
    "unk_id": 3,
    "hard_vocab_limit": False,
    "num_threads": 1,  # with the next: the same texts give the same model, byte for byte
    "shuffle_input_sentence": False,
    "max_sentence_length": 1 << 24,
    "minloglevel": 2,
}

SPACE = "▁"  # U+2581: how SentencePiece spells a space, so that the character itself needs another spelling


@dataclasses.dataclass(frozen=True)
class CharTokenizer:
    """One id per character: pad 0, bos 1, eos 2, then the sorted distinct characters of `alphabet` from id 3."""

    alphabet: str
    pad: int = dataclasses.field(default=0, init=False)
    bos: int = dataclasses.field(default=1, init=False)
    eos: int = dataclasses.field(default=2, init=False)

    def __post_init__(self) -> None:
        """Two alphabets of the same characters are the same tokenizer."""
        object.__setattr__(self, "alphabet", "".join(sorted(set(self.alphabet))))

    @property
    def vocab_size(self) -> int:
        """3 control ids and the alphabet."""
        return CONTROLS + len(self.alphabet)

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        return {character: CONTROLS + index for index, character in enumerate(self.alphabet)}

    def encode(self, text: str) -> list[int]:
        """One id per character. Raises ValueError with the first character outside the alphabet and its position."""
        ids = self._ids
        for position, character in enumerate(text):
            if character not in ids:
                raise ValueError(_unspeakable(character, position))
        return [ids[character] for character in text]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids; control ids and ids out of range are left out."""
        return "".join(self.alphabet[i - CONTROLS] for i in map(int, ids) if CONTROLS <= i < self.vocab_size)


@dataclasses.dataclass(frozen=True)
class SentencePieceTokenizer:
    """A SentencePiece model, given as the bytes of its `.model` file.

    Ids are those of the model. Where it has no pad, or pads with its EOS, one more id stands for pad after its
    vocabulary: a mask made from `ids != pad` would drop the EOS otherwise. Raises ValueError for bytes that are not a
    model, and for a model without BOS or EOS.
    """

    model: bytes = dataclasses.field(repr=False)
    pad: int = dataclasses.field(init=False)
    bos: int = dataclasses.field(init=False)
    eos: int = dataclasses.field(init=False)
    vocab_size: int = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        """Reads the control ids out of the model."""
        pieces, size = self._pieces, self._pieces.get_piece_size()
        for name in ("bos", "eos"):
            if not 0 <= getattr(pieces, f"{name}_id")() < size:
                raise ValueError(f"the SentencePiece model has no {name} piece")
        pad, bos, eos = pieces.pad_id(), pieces.bos_id(), pieces.eos_id()
        has_pad = 0 <= pad < size and pad not in (bos, eos)
        fields = {"pad": pad if has_pad else size, "bos": bos, "eos": eos, "vocab_size": size + (not has_pad)}
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    @functools.cached_property
    def _pieces(self) -> Any:
        pieces = sentencepiece.SentencePieceProcessor()
        try:
            pieces.LoadFromSerializedProto(self.model)
        except RuntimeError as error:
            raise ValueError(f"not a SentencePiece model, or a damaged one ({error})") from error
        return pieces

    @functools.cached_property
    def _controls(self) -> frozenset[int]:
        """Ids that no text may produce: control and unknown pieces, and user-defined pieces in brackets.

        User-defined pieces match as typed, which is what models do for runs of white space and also, alas, for their
        turn marks: "<start_of_turn>" in a question must stay a question.
        """
        pieces = self._pieces
        special = {
            i
            for i in range(pieces.get_piece_size())
            if pieces.is_control(i) or pieces.is_unknown(i) or _is_typed_mark(pieces, i)
        }
        return frozenset(special | {self.pad, self.bos, self.eos})

    @functools.cached_property
    def _bytes(self) -> dict[int, int]:
        """Id of each byte; empty for a model without byte fallback."""
        pieces = self._pieces
        return {int(pieces.id_to_piece(i)[1:-1], 16): i for i in range(pieces.get_piece_size()) if pieces.is_byte(i)}

    def encode(self, text: str) -> list[int]:
        """Ids of the text. Raises ValueError with the character that the model cannot spell and its position."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(_unspeakable(text[error.start], error.start)) from error
        if SPACE in text and len(self._bytes) == 256:
            spelled = [self._bytes[byte] for byte in SPACE.encode()]
            first, *rest = (self.encode(part) for part in text.split(SPACE))
            return [*first, *(i for part in rest for i in (*spelled, *part))]
        ids = self._pieces.encode(text)
        if self._controls.isdisjoint(ids):
            return ids
        return [j for i in ids for j in (self._respell(i, text) if i in self._controls else (i,))]

    def _respell(self, control: int, text: str) -> list[int]:
        """Ids of the text of a control piece, byte by byte or else character by character."""
        pieces = self._pieces
        if pieces.is_unknown(control):
            position = next((k for k, c in enumerate(text) if control in pieces.encode(c)), 0)
            raise ValueError(_unspeakable(text[position], position))
        piece = pieces.id_to_piece(control)
        if len(self._bytes) == 256:
            return [self._bytes[byte] for byte in piece.replace(SPACE, " ").encode()]
        ids = [pieces.piece_to_id(character) for character in piece]
        if not self._controls.isdisjoint(ids):
            raise ValueError(f"{piece!r} at position {max(text.find(piece), 0)} is a control piece of this model")
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids; control ids and ids out of range are left out, bytes that are no UTF-8 become U+FFFD."""
        size, controls = self._pieces.get_piece_size(), self._controls
        return self._pieces.decode([i for i in map(int, ids) if 0 <= i < size and i not in controls])


def _is_typed_mark(pieces: Any, i: int) -> bool:
    """True for user-defined pieces in brackets. The model does not say which are user-defined, but they score 0."""
    piece = pieces.id_to_piece(i)
    bracketed = len(piece) > 2 and (piece[0], piece[-1]) in {("<", ">"), ("[", "]")}
    return bracketed and pieces.get_score(i) == 0 and not (pieces.is_byte(i) or pieces.is_unused(i))


def _unspeakable(character: str, position: int) -> str:
    return f"character {character!r} at position {position} is not in the tokenizer's alphabet"


def load_sentencepiece(path: str | os.PathLike[str]) -> SentencePieceTokenizer:
    """The tokenizer of a `.model` file. Raises OSError for a file that cannot be read, ValueError for a damaged one."""
    file = pathlib.Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"there is no SentencePiece model file {str(path)!r}")
    try:
        return SentencePieceTokenizer(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def smallest_vocabulary(texts: Iterable[str]) -> int:
    """The smallest `vocab_size` that `train_sentencepiece` takes: 4 control pieces, 256 bytes, and the characters."""
    return 4 + 256 + len(set().union(*texts))


def train_sentencepiece(
    texts: Sequence[str], vocab_size: int, cache_dir: str | os.PathLike[str] | None = None
) -> SentencePieceTokenizer:
    """A byte-pair SentencePiece model of the texts, with at most `vocab_size` pieces; decode(encode(x)) == x for any x.

    The same texts give the same model. It is kept in `cache_dir` (by default the user's cache folder) under a digest of
    the texts and the options. Raises ValueError for texts without a character and for a vocabulary too small for them.
    """
    if not any(texts):
        raise ValueError("there is no text to train a tokenizer on")
    if vocab_size < smallest_vocabulary(texts):
        raise ValueError(f"vocab_size {vocab_size} is too small: these texts need {smallest_vocabulary(texts)}")
    options = {**TRAINER, "vocab_size": vocab_size}
    digest = hashlib.sha256(json.dumps([sentencepiece.__version__, options, list(texts)]).encode()).hexdigest()
    file = _cache_folder(cache_dir) / f"{digest}.model"
    with contextlib.suppress(OSError, ValueError):  # absent or damaged: trained again
        return load_sentencepiece(file)
    model = io.BytesIO()
    lines = (text.replace("▅", " ") for text in texts)  # the trainer skips a text that holds its own mark, U+2585
    try:
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=lines, model_writer=model, **options)
    except RuntimeError as error:
        raise ValueError(f"SentencePiece cannot be trained on these texts: {error}") from error
    with contextlib.suppress(OSError):  # a folder that cannot be written costs the next run a training, nothing else
        _write_whole(file, model.getvalue())
    return SentencePieceTokenizer(model.getvalue())


def _cache_folder(chosen: str | os.PathLike[str] | None) -> pathlib.Path:
    if chosen is not None:
        return pathlib.Path(chosen)
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "jaxrl_llm"


def _write_whole(file: pathlib.Path, content: bytes) -> None:
    """Another process sees the old file or the whole new one, never a part."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as draft:
        draft.write(content)
    os.replace(draft.name, file)


def decode_answers(tokenizer: Tokenizer, answer: Any, acted: Any) -> list[list[str]]:
    """Texts [P][G] of the tokens of `answer` [P G T] where `acted` [P G T]."""
    answer, acted = np.asarray(answer), np.asarray(acted)
    return [
        [tokenizer.decode(ids[mask].tolist()) for ids, mask in zip(group, masks, strict=True)]
        for group, masks in zip(answer, acted, strict=True)
    ]
