"""The tokenizer of a GGUF file, as the tokenizer.json that its model was published with."""

import collections
import math
from typing import Any

from jaxrl_llm.policies.hub.gguf_file import GgufFile
from jaxrl_llm.published_pieces import SPACE, piece_bpe
from jaxrl_llm.published_tokenizer import PublishedTokenizer, ends
from jaxrl_llm.spec import nearest

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # in tokenizer.ggml.token_type
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# Names of one way: a piece that is a token is that token, whatever the merges make of it, and BOS stands in front of a
# text unless the file says otherwise. The file has no field for the first, so its readers go by the name.
LLAMA3 = ("llama-bpe", "llama3", "llama-v3", "falcon3")
# How a text is cut before the merges, by the name in tokenizer.ggml.pre.
CUTS = {
    "smollm": None,  # digit by digit, then as GPT-2
    "gpt-2": None,
    "default": None,
    **dict.fromkeys(LLAMA3, WORDS % r"\p{N}{1,3}"),
    "qwen2": WORDS % r"\p{N}",
}


def load_gguf_tokenizer(file: GgufFile) -> PublishedTokenizer:
    """Raises ValueError, which names the file and the field."""
    try:
        kind, tokens = file.field("tokenizer.ggml.model"), file.field("tokenizer.ggml.tokens")
        if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
            raise ValueError("tokenizer.ggml.tokens must be a list of strings")
        if len(set(tokens)) != len(tokens):
            twice = collections.Counter(tokens).most_common(1)[0][0]
            raise ValueError(f"tokenizer.ggml.tokens holds {twice!r} twice")
        if kind == "llama":  # runs of spaces stand in the file as they are typed
            tokens = [SPACE * len(token) if token and not token.strip(" ") else token for token in tokens]
        made = _byte_level(file, tokens) if kind == "gpt2" else _pieces(file, tokens) if kind == "llama" else None
        if made is None:
            raise ValueError(f"tokenizer.ggml.model {kind!r} is not known{nearest(str(kind), ['gpt2', 'llama'])}")
        _add_marks(made, file, tokens)
        _add_opening(made, file, tokens)
        marks = {name: file.field(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos", "eot")}
        marks |= {
            "unk": file.field("tokenizer.ggml.unknown_token_id"),
            "pad": file.field("tokenizer.ggml.padding_token_id"),
        }
        stops = [marks[name] for name in ("eos", "eot") if marks[name] is not None]
        template = file.field("tokenizer.chat_template")
        if template is not None and not isinstance(template, str):
            raise ValueError(f"tokenizer.chat_template must be text, not {template!r}")
        return PublishedTokenizer(definition=made.to_str(), template=template, **ends(stops, marks))
    except ValueError as error:
        raise ValueError(f"{file.path}: {error}") from error


def _cut(file: GgufFile) -> Any:
    return file.field("tokenizer.ggml.pre") or "default"


def _byte_level(file: GgufFile, tokens: list[str]) -> Any:
    """Byte-pair merges over bytes, each spelled as a character (GPT-2, Llama 3, Qwen, SmolLM)."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    cut = _cut(file)
    if cut not in CUTS:
        raise ValueError(f"tokenizer.ggml.pre {cut!r} is not known{nearest(str(cut), list(CUTS))}")
    merges = file.field("tokenizer.ggml.merges")
    if not isinstance(merges, list) or not all(isinstance(m, str) and m.count(" ") == 1 for m in merges):
        raise ValueError("tokenizer.ggml.merges must be a list of pairs")
    vocabulary = {token: i for i, token in enumerate(tokens)}
    pairs = [tuple(m.split(" ")) for m in merges]
    try:
        made = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=cut in LLAMA3))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"tokenizer.ggml.merges do not suit tokenizer.ggml.tokens: {error}") from error
    plain = CUTS[cut] is None
    steps = [pre_tokenizers.Digits(individual_digits=True)] if cut == "smollm" else []
    steps += [] if plain else [pre_tokenizers.Split(Regex(CUTS[cut]), behavior="isolated")]
    steps += [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=plain)]
    made.pre_tokenizer = pre_tokenizers.Sequence(steps)
    if cut == "qwen2":
        made.normalizer = normalizers.NFC()
    made.decoder = decoders.ByteLevel()
    return made


def _pieces(file: GgufFile, tokens: list[str]) -> Any:
    """SentencePiece BPE with bytes for what has no piece (Llama 2, Gemma); the merges follow from the scores."""
    scores = file.field("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(tokens) or not all(map(_finite, scores)):
        raise ValueError("tokenizer.ggml.scores must hold a finite number for each token")
    gemma = file.architecture.startswith("gemma")
    vocabulary = {token: i for i, token in enumerate(tokens)}
    # Gemma's merges come in the order of its vocabulary, whatever its scores say.
    order = range(len(tokens)) if gemma else [-score for score in scores]
    kinds = file.field("tokenizer.ggml.token_type") or [NORMAL] * len(tokens)
    if not isinstance(kinds, list) or len(kinds) != len(tokens):
        raise ValueError("tokenizer.ggml.token_type must hold a number for each token")
    rank = {token: first for token, first, kind in zip(tokens, order, kinds, strict=True) if kind == NORMAL}
    unknown = file.field("tokenizer.ggml.unknown_token_id") or 0
    if not isinstance(unknown, int) or not 0 <= unknown < len(tokens):
        raise ValueError(f"tokenizer.ggml.unknown_token_id {unknown!r} lies outside of the {len(tokens)} tokens")
    prefix = not gemma and file.field("tokenizer.ggml.add_space_prefix") is not False
    return piece_bpe(rank, vocabulary, tokens[unknown], prefix=prefix)


def _finite(score: Any) -> bool:
    return isinstance(score, int | float) and math.isfinite(score)


def _add_marks(made: Any, file: GgufFile, tokens: list[str]) -> None:
    from tokenizers import AddedToken

    kinds = file.field("tokenizer.ggml.token_type") or []
    marked = list(zip(tokens, kinds, strict=False))
    made.add_special_tokens([AddedToken(t, normalized=False, special=True) for t, kind in marked if kind == CONTROL])
    pieces = file.field("tokenizer.ggml.model") == "llama"  # are matched behind the normaliser, where spaces are pieces
    made.add_tokens([AddedToken(t, normalized=pieces) for t, kind in marked if kind == USER_DEFINED])


def _add_opening(made: Any, file: GgufFile, tokens: list[str]) -> None:
    """BOS in front of a text, where the file says so or, for pieces and the way of Llama 3, says nothing."""
    from tokenizers import processors

    bos, wanted = file.field("tokenizer.ggml.bos_token_id"), file.field("tokenizer.ggml.add_bos_token")
    if wanted is None:
        wanted = file.field("tokenizer.ggml.model") == "llama" or _cut(file) in LLAMA3
    if wanted and isinstance(bos, int) and 0 <= bos < len(tokens):
        mark = tokens[bos]
        made.post_processor = processors.TemplateProcessing(single=[mark, "$A"], special_tokens=[(mark, bos)])
