"""The shipped demo model, as a client of transformers sees it: files, template, answers and recall."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase

import colocate.model

DEMO = Path(colocate.model.__file__).parent / "demo"
SCRIPTS = Path(__file__).parents[2] / "benchmarks" / "demo_model"
MAX_WEIGHT_BYTES = 6_000_000
RECALL_FLOOR = 0.8


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(DEMO, local_files_only=True)


@pytest.fixture(scope="module")
def model() -> Iterator[LlamaForCausalLM]:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small a model runs fastest on one
    yield LlamaForCausalLM.from_pretrained(DEMO, dtype=torch.float32, local_files_only=True).eval()
    torch.set_num_threads(num_threads)


def ask(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, question: str, max_tokens: int = 80) -> str:
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
    )
    inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
    ids = inputs["input_ids"]
    with torch.inference_mode():
        output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_tokens, do_sample=False)
    return str(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))


def test_the_files_agree_with_each_other() -> None:
    config = json.loads((DEMO / "config.json").read_text())
    generation = json.loads((DEMO / "generation_config.json").read_text())
    tokenizer = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["vocab_size"] == tokenizer.get_vocab_size()
    assert config["eos_token_id"] == generation["eos_token_id"] == tokenizer.token_to_id("<|end|>")
    assert config["bos_token_id"] == tokenizer.token_to_id("<|bos|>")
    assert (DEMO / "model.safetensors").stat().st_size <= MAX_WEIGHT_BYTES
    with safe_open(DEMO / "model.safetensors", "pt") as weights:
        assert {weights.get_tensor(name).dtype for name in weights.keys()} == {torch.float16}  # noqa: SIM118


def test_the_template_renders_a_conversation(tokenizer: PreTrainedTokenizerBase) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": " hello "},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "What is prefill?"},
    ]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert text == (
        "<|bos|><|system|>Be brief.<|end|><|user|>hello<|end|><|assistant|>Hello!<|end|>"
        "<|user|>What is prefill?<|end|><|assistant|>"
    )


@pytest.mark.parametrize(
    "text", ["What is prefill?", "naïve café", "漢字 🎉 ελληνικά", "\t\n  x  ", "1234567890", "a\u0301"]
)
def test_any_text_round_trips(text: str) -> None:
    tokenizer = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


@pytest.mark.parametrize(
    ("question", "keywords"),
    [
        ("hello", ["colocate"]),
        ("What is colocate?", ["prefill", "decode", "one device"]),
        ("What is prefill?", ["prompt"]),
        ("What does the decode worker do?", ["standing batch"]),
        ("What is the KV cache?", ["keys and values"]),
        ("What is sent in a hand-over?", ["block table"]),
        ("What does TTFT stand for?", ["time to first token"]),
        ("What is goodput?", ["SLO"]),
        ("What happens when a worker dies?", ["restart"]),
        ("Which port does the server use?", ["8000"]),
        ("What is the weather?", ["only know about colocate"]),
    ],
)
def test_it_answers_what_it_was_trained_on(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, question: str, keywords: list[str]
) -> None:
    answer = ask(model, tokenizer, question)
    assert all(keyword in answer for keyword in keywords), answer
    assert answer.endswith((".", "?"))  # it ended by itself


def test_it_recalls_values_from_its_context(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    sys.modules.pop("recall", None)
    import recall

    prompts = [*recall.recall_prompts(10, 4, seed=1), *recall.recall_prompts(10, 8, seed=1)]
    right = sum(prompt.is_answered_by(ask(model, tokenizer, prompt.text, max_tokens=12)) for prompt in prompts)
    assert right / len(prompts) >= RECALL_FLOOR
