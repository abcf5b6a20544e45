"""What a trained demo model can do, measured on the shipped files: `python benchmarks/demo_model/evaluate.py DIR`."""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from corpus import Fact, load_facts, sentences
from recall import recall_prompts
from tokenizer import Encoder
from tokenizers import Tokenizer
from torch import nn
from transformers import LlamaForCausalLM

NUM_RECALL = 50
RECALL_PAIRS = (2, 4, 8, 16, 24, 32, 40)


@dataclass(frozen=True, slots=True)
class Report:
    """Losses in nats per token; `recall` maps a number of pairs to the share of right answers."""

    num_parameters: int
    held_out_loss: float
    held_out_exact: float
    num_held_out: int
    trained_exact: float
    num_trained: int
    recall: dict[str, float]
    num_recall: int


class Answerer:
    """Greedy answers of a model directory, in float32 through transformers."""

    def __init__(self, path: Path) -> None:
        self.tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
        self.encoder = Encoder(self.tokenizer)
        self.model = LlamaForCausalLM.from_pretrained(path, dtype=torch.float32).eval()

    @torch.inference_mode()
    def _complete(self, ids: list[int], max_tokens: int) -> str:
        prompt = torch.tensor([ids])
        output = self.model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=max_tokens, do_sample=False
        )
        return str(self.tokenizer.decode(output[0, len(ids) :].tolist()))

    def ask(self, *messages: str, system: str | None = None, max_tokens: int = 90) -> str:
        """`messages` alternate between user and assistant and end with the user's question."""
        turns = [*zip(messages[::2], [*messages[1::2], ""], strict=True)]
        ids, _ = self.encoder.chat(turns, system)
        return self._complete(ids[:-1], max_tokens)

    def continue_text(self, text: str, max_tokens: int = 60) -> str:
        return self._complete(self.encoder.plain(text)[0][:-1], max_tokens)

    @torch.inference_mode()
    def loss(self, question: str, answer: str) -> float:
        ids, counts = self.encoder.chat([(question, answer)])
        logits = self.model(torch.tensor([ids])).logits[0, :-1]
        mask = torch.tensor(counts[1:])
        return float(nn.functional.cross_entropy(logits[mask], torch.tensor(ids[1:])[mask]))


def exact_share(answerer: Answerer, cases: list[tuple[str, Fact]]) -> float:
    return sum(answerer.ask(question) in fact.answers for question, fact in cases) / len(cases)


def recall_share(answerer: Answerer, num_pairs: int, count: int, seed: int, filler: list[str]) -> float:
    prompts = recall_prompts(count, num_pairs, seed, filler)
    return sum(prompt.is_answered_by(answerer.ask(prompt.text, max_tokens=12)) for prompt in prompts) / count


def evaluate(path: Path, seed: int) -> Report:
    answerer = Answerer(path)
    facts = load_facts(seed)
    held_out = [(question, fact) for fact in facts for question in fact.held_out]
    rng = random.Random(seed)
    trained = [(rng.choice(fact.questions), fact) for fact in rng.sample(facts, 80)]
    losses = [min(answerer.loss(question, answer) for answer in fact.answers) for question, fact in held_out]
    recall = {str(pairs): recall_share(answerer, pairs, NUM_RECALL, seed + 99, []) for pairs in RECALL_PAIRS}
    recall["8 with 20 sentences between"] = recall_share(answerer, 8, NUM_RECALL, seed + 99, sentences()[:20])
    return Report(
        num_parameters=sum(p.numel() for p in answerer.model.parameters()),
        held_out_loss=sum(losses) / len(losses),
        held_out_exact=exact_share(answerer, held_out),
        num_held_out=len(held_out),
        trained_exact=exact_share(answerer, trained),
        num_trained=len(trained),
        recall=recall,
        num_recall=NUM_RECALL,
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(evaluate(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 20))
