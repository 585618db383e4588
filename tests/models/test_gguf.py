from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rerank.models import gguf

TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "Ġ", "a", "b", "1", "2", "Ġa", "ĠĠ", *"cdefghijklmnopqrstuv"]
MERGES = ["Ġ a", "Ġ Ġ"]


def gguf_file(path: Path, model: Any) -> None:
    """Writes a small Llama as the GGUF converter does: rotary pairs side by side, and numbers in 4 bits or more."""
    library = pytest.importorskip("gguf")
    config = model.config
    writer = library.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, 3] + [1] * (len(TOKENS) - 3))
    writer.add_token_merges(MERGES)
    for name, i in {"bos": 1, "eos": 2, "pad": 2, "unk": 0}.items():
        getattr(writer, f"add_{name}_token_id")(i)
    writer.add_chat_template("{{ messages[0]['content'] }}")
    names = {ours: theirs for theirs, ours in gguf._OUTSIDE_LAYERS.items()}
    names |= {f"model.layers.0.{ours}.weight": f"blk.0.{theirs}.weight" for theirs, ours in gguf._IN_LAYER.items()}
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, parameter in model.state_dict().items():
        if name == "lm_head.weight":  # tied
            continue
        weight = parameter.numpy()
        for part, n_heads in heads.items():
            if part in name:
                halves = weight.reshape(n_heads, 2, -1, weight.shape[1])
                weight = np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))
        if weight.ndim == 2 and "embed" not in name:
            kind = library.GGMLQuantizationType.Q4_1
            weight = library.quants.quantize(weight, kind)
            writer.add_tensor(names[name], weight, raw_dtype=kind)
        else:
            writer.add_tensor(names[name], weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def llama(tmp_path: Path) -> Any:
    """A tiny Llama whose weights are exact in Q4_1: 0, 1, ..., 15 times a scale in every block of 32."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    random = np.random.default_rng(0)
    for parameter in model.parameters():
        steps = random.permuted(np.tile(np.arange(16), (parameter.numel() // 16, 1)), axis=1)
        parameter.data = torch.as_tensor((steps - 8).astype(np.float32).reshape(parameter.shape) / 64)
    return model


def test_a_gguf_file_becomes_the_llama_it_was_made_from(llama, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    gguf_file(tmp_path / "weights.gguf", llama)
    gguf.build({"weights.gguf": tmp_path / "weights.gguf"}, tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    for name, expected in llama.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], expected), name
    ids = torch.tensor([[1, 4, 5, 6]])
    assert torch.equal(loaded(ids).logits, llama(ids).logits)
    assert loaded.config.rms_norm_eps == 1e-5


def test_a_gguf_tokenizer_keeps_digits_apart_and_blanks_before_them_together(llama, tmp_path):
    transformers = pytest.importorskip("transformers")
    gguf_file(tmp_path / "weights.gguf", llama)
    gguf.build({"weights.gguf": tmp_path / "weights.gguf"}, tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.tokenize("b a  12") == ["b", "Ġa", "ĠĠ", "1", "2"]
    assert tokenizer("<|im_end|>a")["input_ids"] == [2, 4]
    assert tokenizer.decode(tokenizer("b a  12")["input_ids"]) == "b a  12"
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
    assert tokenizer.model_max_length == 32
    assert tokenizer.apply_chat_template([{"role": "user", "content": "a b"}], tokenize=False) == "a b"
