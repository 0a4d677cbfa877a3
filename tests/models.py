"""Tiny models of the llama architecture with random weights, made with `gguf` in a second: for speed, not for sense."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
from gguf import GGML_QUANT_VERSION, GGMLQuantizationType, GGUFWriter, LlamaFileType
from gguf.quants import quantize

Quantization = Literal["f16", "q8_0", "q4_0"]

QUANTIZATIONS: tuple[Quantization, ...] = ("f16", "q8_0", "q4_0")
_TYPES = {
    "f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    "q4_0": (GGMLQuantizationType.Q4_0, LlamaFileType.MOSTLY_Q4_0),
}
_WIDTH, _INNER, _LAYERS, _HEADS, _KV_HEADS, _TOKENS, _CONTEXT = 128, 256, 2, 4, 2, 512, 4096
_SEED = 20_230_310
_UNKNOWN, _NORMAL, _CONTROL, _BYTE = 2, 1, 3, 6  # llama.cpp, enum llama_token_type


def write(path: Path, quantization: Quantization) -> Path:
    """A model of 427 thousand weights; those of every quantization are the same before they are rounded."""
    _, file_type = _TYPES[quantization]
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(_CONTEXT)
    writer.add_embedding_length(_WIDTH)
    writer.add_block_count(_LAYERS)
    writer.add_feed_forward_length(_INNER)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(_WIDTH // _HEADS)
    writer.add_vocab_size(_TOKENS)
    writer.add_file_type(file_type)
    writer.add_quantization_version(GGML_QUANT_VERSION)
    _add_tokens(writer)
    _add_tensors(writer, quantization)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_all(folder: Path) -> Path:
    """`tiny-f16.gguf`, `tiny-q8_0.gguf` and `tiny-q4_0.gguf` in a folder."""
    for quantization in QUANTIZATIONS:
        write(folder / f"tiny-{quantization}.gguf", quantization)
    return folder


def _add_tokens(writer: GGUFWriter) -> None:
    known = [b"<unk>", b"<s>", b"</s>", *(f"<0x{byte:02X}>".encode() for byte in range(256))]
    words = [f"\N{LOWER ONE EIGHTH BLOCK}t{number}".encode() for number in range(_TOKENS - len(known))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list([*known, *words])
    writer.add_token_scores([-float(number) for number in range(_TOKENS)])
    writer.add_token_types([_UNKNOWN, _CONTROL, _CONTROL, *[_BYTE] * 256, *[_NORMAL] * len(words)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)


def _add_tensors(writer: GGUFWriter, quantization: Quantization) -> None:
    chance = np.random.default_rng(_SEED)
    tensor_type, _ = _TYPES[quantization]

    def random(name: str, rows: int, columns: int) -> None:
        weights: Any = chance.standard_normal((rows, columns), dtype=np.float32) / np.float32(columns**0.5)
        if quantization == "f16":
            writer.add_tensor(name, weights.astype(np.float16))
        else:
            writer.add_tensor(name, quantize(weights, tensor_type), raw_dtype=tensor_type)

    def ones(name: str) -> None:
        writer.add_tensor(name, np.ones(_WIDTH, dtype=np.float32))

    random("token_embd.weight", _TOKENS, _WIDTH)
    random("output.weight", _TOKENS, _WIDTH)
    ones("output_norm.weight")
    kv_width = _WIDTH // _HEADS * _KV_HEADS
    for layer in range(_LAYERS):
        block = f"blk.{layer}"
        ones(f"{block}.attn_norm.weight")
        ones(f"{block}.ffn_norm.weight")
        random(f"{block}.attn_q.weight", _WIDTH, _WIDTH)
        random(f"{block}.attn_k.weight", kv_width, _WIDTH)
        random(f"{block}.attn_v.weight", kv_width, _WIDTH)
        random(f"{block}.attn_output.weight", _WIDTH, _WIDTH)
        random(f"{block}.ffn_gate.weight", _INNER, _WIDTH)
        random(f"{block}.ffn_up.weight", _INNER, _WIDTH)
        random(f"{block}.ffn_down.weight", _WIDTH, _INNER)
