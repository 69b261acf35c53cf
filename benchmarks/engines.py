"""The engines that `decode.py` compares with: each gives a call that returns the tokens [B T] of its answers."""

import importlib.metadata
import importlib.util
import os
import pathlib
from collections.abc import Callable

import numpy as np

Work = Callable[[], np.ndarray]


def llama_is_there() -> bool:
    """Whether llama-cpp-python can be imported."""
    return importlib.util.find_spec("llama_cpp") is not None


def transformers_is_there() -> bool:
    """Whether transformers and torch can be imported."""
    return all(importlib.util.find_spec(name) for name in ("torch", "transformers"))


def versions() -> dict[str, str]:
    """Of what is installed of the engines."""
    found = {}
    for name in ("torch", "transformers", "llama_cpp_python"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def transformers(folder: pathlib.Path, prompt: np.ndarray, tokens: int) -> Work:
    """`generate` of transformers in float32 on a saved model, with its own cache, until so many tokens are there."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.as_tensor(prompt, dtype=torch.long)
    options = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, "pad_token_id": 0}

    def work() -> np.ndarray:
        with torch.inference_mode():
            out = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
        return out[:, prompt.shape[1] :].numpy()

    return work


def in_float32(source: pathlib.Path, target: pathlib.Path) -> None:
    """A GGUF file with all tensors dequantised."""
    import gguf

    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if not name.startswith(("GGUF.", "general.architecture", "general.file_type", "general.quantization")):
            kinds = field.types
            writer.add_key_value(name, field.contents(), kinds[0], sub_type=kinds[-1] if len(kinds) > 1 else None)
    for tensor in reader.tensors:
        data = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        writer.add_tensor(tensor.name, data.reshape([int(n) for n in reversed(tensor.shape)]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def llama(source: pathlib.Path, folder: pathlib.Path, prompt: np.ndarray, tokens: int) -> Work:
    """llama.cpp in float32: all answers in one batch a token, the likeliest taken on the host."""
    import llama_cpp as lib

    path = folder / "float32.gguf"
    if not path.exists():
        in_float32(source, path)
    count, length = prompt.shape
    silent = lib.llama_log_callback(lambda level, text, user: None)
    lib.llama_log_set(silent, lib.ctypes.c_void_p(0))
    lib.llama_backend_init()
    model = lib.llama_model_load_from_file(str(path).encode(), lib.llama_model_default_params())
    options = lib.llama_context_default_params()
    options.n_ctx, options.n_seq_max = count * (length + tokens), count
    options.n_batch = options.n_ubatch = count * length
    options.n_threads = options.n_threads_batch = os.cpu_count()
    options.type_k = options.type_v = 0  # float32, as the others keep it
    context = lib.llama_init_from_model(model, options)
    if not context:
        raise RuntimeError("llama.cpp refused the context")
    width = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
    batch = lib.llama_batch_init(count * length, 0, 1)

    def decode(ids: np.ndarray, column: int) -> np.ndarray:
        """The likeliest token behind ids [B S], whose first stands in a column."""
        batch.n_tokens = ids.size
        for i, (row, place) in enumerate(np.ndindex(*ids.shape)):
            batch.token[i], batch.pos[i] = int(ids[row, place]), column + place
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, row
            batch.logits[i] = place == ids.shape[1] - 1
        if lib.llama_decode(context, batch):
            raise RuntimeError("llama.cpp could not decode")
        logits = np.ctypeslib.as_array(lib.llama_get_logits(context), shape=(count, width))
        return np.argmax(logits, axis=-1)

    def work(_kept=silent) -> np.ndarray:  # whoever may still call it must not be collected
        lib.llama_memory_clear(lib.llama_get_memory(context), True)
        found = [decode(prompt, 0)]
        for t in range(tokens - 1):
            found.append(decode(found[-1][:, None], length + t))
        return np.stack(found, axis=-1)

    return work
