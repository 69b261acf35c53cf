"""Tokenizers of published models: `tokenizer.json`, `tokenizer.model`, or the vocabulary of a GGUF file; and their
chat templates.

The law of `tokenizers` holds: text never encodes to a control id. What a template writes does, and what a user wrote
inside it does not, so a question that spells "<|im_end|>" stays a question.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from jaxrl_llm.chat import render
from jaxrl_llm.json_files import read_json
from jaxrl_llm.published_pieces import added_controls, definition_of_pieces

PIECES = "tokenizer.model"
MARKS = ("eos", "bos", "pad", "unk")
PRIVATE = range(0xE000, 0xF8FF)  # code points without meaning, to mark places in a rendered template


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublishedTokenizer:
    """A `tokenizer.json` with the marks of its model.

    definition  text of the tokenizer.json
    stops       ids that end an answer, `eos` first
    pad         an id that ends nothing: the model's own pad, or another control id where it pads with its EOS
    template    Jinja source of the chat template, or None
    """

    definition: str = dataclasses.field(repr=False)
    eos: int
    bos: int
    pad: int
    stops: tuple[int, ...]
    template: str | None = dataclasses.field(default=None, repr=False)

    def __post_init__(self):
        """Raises ValueError for a definition that is none, or for ids that it lacks."""
        size = self.vocab_size
        for name, ids in (("stops", self.stops), ("bos", [self.bos]), ("pad", [self.pad])):
            if not all(0 <= i < size for i in ids):
                raise ValueError(f"{name} {list(ids)} lies outside of the vocabulary of {size}")
        if self.eos not in self.stops or self.pad in self.stops:
            raise ValueError(f"stops {list(self.stops)} must hold eos={self.eos} and not pad={self.pad}")

    @functools.cached_property
    def _whole(self) -> Any:
        """Reads control tokens where they are written."""
        import tokenizers

        try:
            made = tokenizers.Tokenizer.from_str(self.definition)
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"not a tokenizer.json, or a damaged one ({error})") from error
        made.no_padding()
        made.no_truncation()
        return made

    @functools.cached_property
    def _plain(self) -> Any:
        """Reads control tokens as the characters that they are spelled with."""
        import tokenizers

        made = tokenizers.Tokenizer.from_str(self._whole.to_str())
        made.encode_special_tokens = True
        return made

    @functools.cached_property
    def controls(self) -> Mapping[str, int]:
        """Control tokens and their ids."""
        added = self._whole.get_added_tokens_decoder()
        marks = {token.content: i for i, token in added.items() if token.special}
        return marks | {self._whole.id_to_token(i): i for i in {*self.stops, self.bos, self.pad}}

    @functools.cached_property
    def opening(self) -> tuple[int, ...]:
        """Control ids that the model expects in front of every text: its BOS, or nothing."""
        whole, plain = (self._whole.encode("a", add_special_tokens=add).ids for add in (True, False))
        first = next((i for i, token in enumerate(whole) if token == plain[0]), 0) if plain else 0
        return tuple(whole[:first])

    @functools.cached_property
    def _forbidden(self) -> frozenset[int]:
        return frozenset(self.controls.values())

    @functools.cached_property
    def vocab_size(self) -> int:
        """Ids that have a token; a model may have more rows."""
        return self._whole.get_vocab_size(with_added_tokens=True)

    def mark(self, control: int) -> str:
        """How a control id is written."""
        return self._whole.id_to_token(control)

    def encode(self, text: str) -> list[int]:
        """Ids of the text, without BOS or EOS; control tokens in it are spelled out.

        Raises ValueError for a text that cannot be spelled without a control id.
        """
        ids = self._plain.encode(text, add_special_tokens=False).ids
        if self._forbidden.isdisjoint(ids):
            return ids
        mark = next(i for i in ids if i in self._forbidden)
        raise ValueError(f"the text holds {self.mark(mark)!r}, which this tokenizer can only read as control")

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids; control ids and ids out of range are left out, bytes that are no UTF-8 become U+FFFD."""
        hidden, size = self._forbidden, self.vocab_size
        return self._whole.decode([i for i in map(int, ids) if 0 <= i < size and i not in hidden])

    def chat(self, messages: Sequence[Mapping[str, str]], **options: Any) -> list[int]:
        """Ids of a conversation by the chat template, open for the assistant's answer.

        messages  with "role" and "content" each
        options   further variables of the template
        What the template writes may be control; what is in the messages never is. Raises ValueError without a template,
        and for one that fails.
        """
        if self.template is None:
            raise ValueError("this tokenizer has no chat template")
        marker = _marker(messages)
        held: list[str] = []

        def hide(text: str) -> str:
            for mark in sorted(self.controls, key=len, reverse=True):
                while mark in text:
                    text = text.replace(mark, f"{marker}{len(held)}{marker}", 1)
                    held.append(mark)
            return text

        safe = [{name: hide(value) for name, value in message.items()} for message in messages]
        ends = {f"{name}_token": self.mark(getattr(self, name)) for name in ("bos", "eos", "pad")}
        shown = render(self.template, messages=safe, add_generation_prompt=True, **ends, **options)
        pieces = shown.split(marker)
        ids: list[int] = []
        for place, piece in enumerate(pieces):
            if place % 2:
                ids += self.encode(held[int(piece)])
            else:
                ids += self._whole.encode(piece, add_special_tokens=False).ids
        return ids


def _marker(messages: Sequence[Mapping[str, str]]) -> str:
    """A character that no message holds."""
    used = set().union(*(text for message in messages for text in message.values())) if messages else set()
    return next(chr(i) for i in PRIVATE if chr(i) not in used)


def load_published(folder: str | pathlib.Path) -> PublishedTokenizer:
    """The tokenizer of a Hugging Face folder: its tokenizer.json, or failing that the pieces of its tokenizer.model.

    Raises OSError, and ValueError that names the file.
    """
    folder = pathlib.Path(folder)
    path = folder / "tokenizer.json"
    if not path.is_file():
        if not (folder / PIECES).is_file():
            raise FileNotFoundError(f"there is no file {path}, and no {PIECES} beside it")
        path = folder / PIECES
    optional = {
        name: read_json(folder / name) if (folder / name).is_file() else {}
        for name in ("tokenizer_config.json", "generation_config.json", "config.json")
    }
    try:
        fields, stops, own = optional["tokenizer_config.json"], [], {}
        if path.name == PIECES:
            opens = fields.get("add_bos_token") is not False
            definition, own = definition_of_pieces(path.read_bytes(), added_controls(fields), opens=opens)
        else:
            definition = path.read_text(encoding="utf-8")
        vocabulary = _vocabulary(json.loads(definition))
        marks = own | {name: i for name in MARKS if (i := _id(fields, f"{name}_token", vocabulary)) is not None}
        marks = {name: marks.get(name) for name in MARKS}
        for source in (optional["generation_config.json"], optional["config.json"]):
            named = source.get("eos_token_id")
            stops += named if isinstance(named, list) else [] if named is None else [named]
        stops = ([] if marks["eos"] is None else [marks["eos"]]) + stops
        return PublishedTokenizer(definition=definition, template=_template(folder, fields), **ends(stops, marks))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def save_published(tokenizer: PublishedTokenizer, folder: pathlib.Path) -> None:
    """Write tokenizer.json and tokenizer_config.json; the ids that end an answer stand in generation_config.json."""
    marks = {f"{name}_token": tokenizer.mark(getattr(tokenizer, name)) for name in ("bos", "eos", "pad")}
    fields = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **marks}
    fields |= {"chat_template": tokenizer.template} if tokenizer.template else {}
    (folder / "tokenizer.json").write_text(tokenizer.definition, encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def ends(stops: Sequence[Any], marks: Mapping[str, int | None]) -> dict[str, Any]:
    """eos, bos, pad and stops from what a model says of its control tokens."""
    stops = tuple(dict.fromkeys(stops))
    if not stops or not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in stops):
        raise ValueError(f"there must be an EOS token, and token ids are whole numbers, not {list(stops)}")
    free = [marks.get(name) for name in ("pad", "unk", "bos")] + list(range(len(stops) + 1))
    pad = next(i for i in free if i is not None and i not in stops)
    bos = marks.get("bos")
    return {"eos": stops[0], "bos": stops[0] if bos is None else bos, "pad": pad, "stops": stops}


def _vocabulary(definition: Any) -> dict[str, int]:
    """Token -> id of those that may be named: the added ones, and the vocabulary where it is a map."""
    if not isinstance(definition, dict):
        raise ValueError(f"it must hold a JSON object, not {type(definition).__name__}")
    model = definition.get("model")
    known = dict(model.get("vocab", {})) if isinstance(model, dict) and isinstance(model.get("vocab"), dict) else {}
    added = definition.get("added_tokens") or []
    if not isinstance(added, list) or not all(isinstance(token, dict) for token in added):
        raise ValueError("added_tokens must be a list of objects")
    return known | {token.get("content"): token.get("id") for token in added}


def _id(fields: Mapping[str, Any], name: str, vocabulary: Mapping[str, int]) -> int | None:
    token = fields.get(name)
    token = token.get("content") if isinstance(token, dict) else token
    if token is None:
        return None
    if not isinstance(token, str) or token not in vocabulary:
        raise ValueError(f"{name} of tokenizer_config.json is {token!r}, which is not in the vocabulary")
    return vocabulary[token]


def _template(folder: pathlib.Path, fields: Mapping[str, Any]) -> str | None:
    """Of its own file, or of tokenizer_config.json: one, or several with names, of which "default" is taken."""
    own = folder / "chat_template.jinja"
    if own.is_file():
        return own.read_text(encoding="utf-8")
    found = fields.get("chat_template")
    if isinstance(found, list):
        named = {each.get("name"): each.get("template") for each in found if isinstance(each, dict)}
        found = named.get("default")
    if found is not None and not isinstance(found, str):
        raise ValueError(f"chat_template of tokenizer_config.json must be text, not {type(found).__name__}")
    return found
