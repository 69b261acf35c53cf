"""A SentencePiece model as the tokenizer.json that says the same: byte-pair pieces, and bytes for what has no piece.

The merges follow from the scores of the pieces: of two neighbours those are joined first whose piece scores highest.
"""

from collections.abc import Mapping
from typing import Any

SPACE = "▁"  # how pieces spell a space
LONGEST = 1024  # letters of a piece


def piece_bpe(rank: Mapping[str, float | int], ids: Mapping[str, int], unknown: str, *, prefix: bool) -> Any:
    """A `tokenizers.Tokenizer` over pieces; nothing in it is marked as control yet.

    rank     piece -> when it is merged, lowest first; no text is merged into any other piece
    ids      piece -> id
    unknown  piece that stands for what cannot be spelled
    prefix   whether a space is put in front of every text
    """
    from tokenizers import Tokenizer, decoders, models, normalizers

    merges = _merges(rank, ids)
    made = Tokenizer(models.BPE(vocab=dict(ids), merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    front = [normalizers.Prepend(SPACE)] if prefix else []
    made.normalizer = normalizers.Sequence([*front, normalizers.Replace(" ", SPACE)])
    back = [decoders.Strip(" ", 1, 0)] if prefix else []
    made.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *back])
    return made


def _merges(rank: Mapping[str, float | int], ids: Mapping[str, int]) -> list[tuple[str, str]]:
    """Every way to cut a piece into two others, best piece first; of one piece, by the ids of its halves."""
    found = []
    for piece in rank:
        if len(piece) > LONGEST:  # there are as many ways to cut it as it has letters
            raise ValueError(
                f"the piece {piece[:20]!r}... has {len(piece)} letters, and no model's more than {LONGEST}"
            )
        ways = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        ways = [pair for pair in ways if pair[0] in rank and pair[1] in rank]
        found += [(rank[piece], ids[a], ids[b], (a, b)) for a, b in ways]
    return [pair for *_, pair in sorted(found)]


def definition_of_pieces(model: bytes, added: Mapping[int, str], *, opens: bool) -> tuple[str, dict[str, int | None]]:
    """The tokenizer.json of a `tokenizer.model`, and its ids of bos, eos, pad and unk (None: it has none).

    added  id -> control token that stands behind the pieces
    opens  whether BOS stands in front of a text
    Raises ValueError for bytes that are no model, and for a model that reads text otherwise than is said above.
    """
    from tokenizers import AddedToken, processors

    parsed, ids = _parsed(model)
    kinds = type(parsed).SentencePiece
    pieces = [each.piece for each in parsed.pieces]
    special = [p.piece for p in parsed.pieces if p.type in (kinds.CONTROL, kinds.UNKNOWN) or _is_typed_mark(p, kinds)]
    plain = [p.piece for p in parsed.pieces if p.type == kinds.USER_DEFINED and p.piece not in special]
    rank = {p.piece: -p.score for p in parsed.pieces if p.type == kinds.NORMAL}
    made = piece_bpe(
        rank, {p: i for i, p in enumerate(pieces)}, pieces[ids["unk"]], prefix=parsed.normalizer_spec.add_dummy_prefix
    )
    # What a user may type of these is matched as typed, so a run of spaces is one of spaces.
    made.add_tokens([AddedToken(piece, normalized=True) for piece in plain])
    made.add_special_tokens([AddedToken(piece, normalized=False, special=True) for piece in special])
    for expected, content in sorted(added.items()):
        if expected >= len(pieces):
            made.add_special_tokens([AddedToken(content, normalized=False, special=True)])
        if made.token_to_id(content) != expected:
            raise ValueError(
                f"added token {content!r} has id {expected}, and the pieces say {made.token_to_id(content)}"
            )
    if opens and ids["bos"] is not None:
        bos = pieces[ids["bos"]]
        made.post_processor = processors.TemplateProcessing(single=[bos, "$A"], special_tokens=[(bos, ids["bos"])])
    return made.to_str(), ids


def _parsed(model: bytes) -> tuple[Any, dict[str, int | None]]:
    """The model and its control ids."""
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    reader, parsed = sentencepiece.SentencePieceProcessor(), sentencepiece_model_pb2.ModelProto()
    try:
        reader.LoadFromSerializedProto(model)
        parsed.ParseFromString(model)
    except Exception as error:  # protobuf has its own, which is no ValueError
        raise ValueError(f"not a SentencePiece model, or a damaged one ({error})") from error
    rules = parsed.normalizer_spec
    if parsed.trainer_spec.model_type != parsed.trainer_spec.BPE:
        kind = parsed.trainer_spec.ModelType.Name(parsed.trainer_spec.model_type)
        raise ValueError(f"a SentencePiece model of type {kind} needs its tokenizer.json: only BPE is read from pieces")
    if rules.precompiled_charsmap or rules.remove_extra_whitespaces or not rules.escape_whitespaces:
        raise ValueError(f"a SentencePiece model that changes text before ({rules.name}) needs its tokenizer.json")
    found = {name: getattr(reader, f"{name}_id")() for name in ("bos", "eos", "pad", "unk")}
    return parsed, {name: i if 0 <= i < len(parsed.pieces) else None for name, i in found.items()}


def _is_typed_mark(piece: Any, kinds: Any) -> bool:
    """A user-defined piece in brackets: a turn mark, which a question that spells it must not become."""
    text = piece.piece
    return piece.type == kinds.USER_DEFINED and len(text) > 2 and (text[0], text[-1]) in {("<", ">"), ("[", "]")}


def added_controls(fields: Mapping[str, Any]) -> dict[int, str]:
    """Control tokens, by id, that `added_tokens_decoder` of a tokenizer_config.json names."""
    decoder = fields.get("added_tokens_decoder") or {}
    if not isinstance(decoder, Mapping) or not all(isinstance(each, Mapping) for each in decoder.values()):
        raise ValueError("added_tokens_decoder of tokenizer_config.json must be an object of objects")
    try:
        return {int(i): str(each["content"]) for i, each in decoder.items() if each.get("special")}
    except (KeyError, ValueError) as error:
        raise ValueError(f"added_tokens_decoder of tokenizer_config.json is damaged: {error}") from error
