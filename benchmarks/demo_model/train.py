"""Trains the demo model from nothing and writes the files that the package ships.

    python benchmarks/demo_model/train.py --out colocate/model/demo --minutes 30

The first part of the run is key-value recall alone: few keys, short lists, more of both as they are answered. Then
each step takes one batch of recall and one of conversations and prose. Seeds are fixed; the number of steps that fit
into the minutes depends on the machine. The shipped README states it; `--steps` ends a run after that many.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from corpus import SYSTEM_PROMPTS, Fact, conversation, load_facts, plain_text, sentences
from evaluate import Report, evaluate
from recall import KEYS, recall_dialogue, recall_list
from safetensors.torch import save_file
from tokenizer import Encoder, save_tokenizer, train_tokenizer
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

SEED = 20
MAX_LENGTH = 2048
TEXT_TOKENS_PER_BATCH = 1280
RECALL_TOKENS_PER_BATCH = 2304
PEAK_LR = 3e-3
EMBEDDING_STD = 0.2  # at the usual 0.02 the keys drown in the residual stream and recall is not learned
WARMUP_STEPS = 60
CHECKPOINT_S = 120.0

CURVE = ("step", "seconds", "recall_loss", "text_loss", "recall_accuracy", "num_keys", "most_pairs")

Document = tuple[list[int], list[bool]]


@dataclass(frozen=True, slots=True)
class Batch:
    """Ids of shape [rows, length], right-padded, and which of them are predicted (never the first of a row)."""

    ids: Tensor
    counts: Tensor


def collate(documents: list[Document], pad: int) -> Batch:
    length = max(len(ids) for ids, _ in documents)
    ids = torch.full((len(documents), length), pad)
    counts = torch.zeros((len(documents), length), dtype=torch.bool)
    for row, (row_ids, row_counts) in enumerate(documents):
        ids[row, : len(row_ids)] = torch.tensor(row_ids)
        counts[row, : len(row_ids)] = torch.tensor(row_counts)
    return Batch(ids, counts)


def text_document(rng: random.Random, facts: list[Fact], encoder: Encoder) -> Document:
    if rng.random() < 0.12:
        return encoder.plain(plain_text(rng, facts))
    num_turns = 1 if rng.random() < 0.65 else rng.choice((2, 2, 3, 4))
    system = rng.choice(SYSTEM_PROMPTS) if rng.random() < 0.15 else None
    return encoder.chat(conversation(rng, facts, num_turns), system)


def text_batches(rng: random.Random, facts: list[Fact], encoder: Encoder) -> Iterator[Batch]:
    """Documents of about one length share a batch, so that little of it is padding."""
    while True:
        pool = sorted((text_document(rng, facts, encoder) for _ in range(600)), key=lambda document: len(document[0]))
        batches: list[list[Document]] = [[]]
        for document in pool:
            if (len(batches[-1]) + 1) * len(document[0]) > TEXT_TOKENS_PER_BATCH and batches[-1]:
                batches.append([])
            batches[-1].append(document)
        rng.shuffle(batches)
        yield from (collate(batch, encoder.pad) for batch in batches)


@dataclass(slots=True)
class Curriculum:
    """Recall of few keys in short lists first; more of both as soon as the last batches were answered."""

    num_keys: int = 6
    most_pairs: int = 3
    passed: list[float] = field(default_factory=list)

    @property
    def knows_all_keys(self) -> bool:
        return self.num_keys == len(KEYS)

    def record(self, accuracy: float) -> None:
        self.passed.append(accuracy)
        recent = self.passed[-8:]
        if len(recent) == 8 and sum(recent) / 8 > 0.94:
            self.num_keys = min(self.num_keys * 3 // 2, len(KEYS))
            self.most_pairs = min(self.most_pairs + max(1, self.most_pairs // 4), self.num_keys // 2, 40)
            self.passed = []

    def batch(self, rng: random.Random, encoder: Encoder, filler: list[str], dense: bool) -> Batch:
        """Rows of one shape: `dense` repeats of the list, or a conversation about it."""
        keys = random.Random(SEED).sample(KEYS, self.num_keys)
        num_pairs = rng.randint(2, self.most_pairs)
        if rng.random() < 0.3:
            num_pairs = min(num_pairs, rng.randint(2, 8))
        num_filler = rng.randint(1, 24) if self.most_pairs >= 16 and rng.random() < 0.3 else 0

        def row() -> Document:
            if dense:
                return encoder.recall_list(*recall_list(rng, num_pairs, 10, keys))
            return encoder.chat(recall_dialogue(rng, num_pairs, 8, rng.sample(filler, num_filler), keys))

        first = row()
        rows = [row() for _ in range(max(1, RECALL_TOKENS_PER_BATCH // len(first[0]) - 1))]
        return collate([first, *rows], encoder.pad)


def build_model(vocab_size: int, bos: int, end: int, pad: int) -> LlamaForCausalLM:
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=MAX_LENGTH,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        tie_word_embeddings=True,
        bos_token_id=bos,
        eos_token_id=end,
        pad_token_id=pad,
    )
    model = LlamaForCausalLM(config)
    nn.init.normal_(model.model.embed_tokens.weight, std=EMBEDDING_STD)
    # At these short lengths plain matrix products train twice as fast on a CPU as the fused attention.
    model.set_attn_implementation("eager")
    return model


def batch_loss(model: LlamaForCausalLM, batch: Batch) -> tuple[Tensor, float]:
    """Mean cross entropy and accuracy of the tokens that count; the output layer runs on their positions only."""
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(input_ids=batch.ids[:, :-1], use_cache=False).last_hidden_state
        logits = model.lm_head(hidden[batch.counts[:, 1:]]).float()
    wanted = batch.ids[:, 1:][batch.counts[:, 1:]]
    return nn.functional.cross_entropy(logits, wanted), float((logits.argmax(-1) == wanted).float().mean())


def optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for embeddings and norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=PEAK_LR, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=PEAK_LR, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def learning_rate(step: int, progress: float) -> float:
    """Linear warm-up, flat, then linear to zero over the second half of the run."""
    return PEAK_LR * min(1.0, (step + 1) / WARMUP_STEPS) * min(1.0, max(0.0, 2 - 2 * progress))


def save_model(model: LlamaForCausalLM, out: Path) -> None:
    """Weights as float16 under Hugging Face's names; the tied output matrix is not stored twice."""
    tensors = {
        name: tensor.detach().to(torch.float16).contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"
    }
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    config = model.config
    fields = (
        *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
        *("num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings"),
        *("bos_token_id", "eos_token_id", "pad_token_id", "hidden_act"),
    )
    settings = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "float16"}
    settings |= {field: getattr(config, field) for field in fields}
    settings |= {"rope_theta": 10000.0, "rope_scaling": None, "attention_bias": False, "mlp_bias": False}
    (out / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    generation = {"bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id, "do_sample": False}
    generation |= {"pad_token_id": config.pad_token_id}
    (out / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")


@dataclass(slots=True)
class Progress:
    """Where a run stands: it ends after `steps` or `limit_s`, whichever comes first."""

    steps: int
    limit_s: float
    step: int = 0
    elapsed_s: float = 0.0

    @property
    def fraction(self) -> float:
        return max(self.step / self.steps, self.elapsed_s / self.limit_s)


def train(model: LlamaForCausalLM, encoder: Encoder, facts: list[Fact], out: Path, run: Progress) -> list[list[float]]:
    """Trains until the run ends; returns the loss curve, a row of `CURVE` every 50 steps."""
    text_rng, recall_rng = random.Random(SEED), random.Random(SEED + 1)
    texts, filler, curriculum = text_batches(text_rng, facts, encoder), sentences(), Curriculum()
    updates = optimizers(model)
    started, saved_s = time.monotonic(), 0.0
    curve: list[list[float]] = []
    sums = [0.0, 0.0, 0.0]
    model.train()
    while run.fraction < 1.0:
        rate = learning_rate(run.step, run.fraction)
        dense = not curriculum.knows_all_keys or recall_rng.random() < 0.4
        batches = [curriculum.batch(recall_rng, encoder, filler, dense)]
        if curriculum.knows_all_keys:  # text first would settle the attention heads on something easier
            batches.append(next(texts))
        for number, batch in reversed(list(enumerate(batches))):
            loss, accuracy = batch_loss(model, batch)
            loss.backward()  # type: ignore[no-untyped-call]
            sums[number] += loss.item() / 50
        sums[2] += accuracy / 50
        if dense:
            curriculum.record(accuracy)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for update in updates:
            for group in update.param_groups:
                group["lr"] = rate
            update.step()
            update.zero_grad()
        run.step += 1
        run.elapsed_s = time.monotonic() - started
        if run.step % 50 == 0:
            rounded = [round(run.elapsed_s, 1), *(round(total, 4) for total in sums)]
            curve.append([run.step, *rounded, curriculum.num_keys, curriculum.most_pairs])
            print(f"{run.fraction:.0%}", dict(zip(CURVE, curve[-1], strict=True)), flush=True)
            sums = [0.0, 0.0, 0.0]
        if run.elapsed_s - saved_s > CHECKPOINT_S:
            saved_s = run.elapsed_s
            save_model(model, out)
    return curve


def write_readme(out: Path, run: Progress, curve: list[list[float]], report: Report, num_facts: int) -> None:
    recall = "\n".join(f"| {pairs} | {accuracy:.0%} |" for pairs, accuracy in report.recall.items())
    final = curve[-1] if curve else [run.step, run.elapsed_s, math.nan, math.nan]
    (out / "README.md").write_text(
        f"""# The demo model

A Llama-architecture model of {report.num_parameters:,} parameters with a tokenizer of its own, trained from nothing
on text that this project wrote. It answers questions about colocate and LLM serving, and recalls key-value pairs from
its context.

    python benchmarks/demo_model/train.py --out colocate/model/demo --steps {run.step}

| | |
|---|---|
| seed | {SEED} |
| steps, time | {run.step}, {run.elapsed_s / 60:.0f} minutes on one CPU thread |
| data | {num_facts} facts in many wordings, small talk, prose, key-value recall of 2 to 40 pairs |
| final training loss (nats per token) | text {final[3]}, recall {final[2]} |
| loss on held-out wordings of questions | {report.held_out_loss:.3f} |
| held-out wordings answered word for word (greedy) | {report.held_out_exact:.0%} of {report.num_held_out} |
| trained wordings answered word for word (greedy) | {report.trained_exact:.0%} of {report.num_trained} |

Accuracy of recall, {report.num_recall} seeded prompts each (`benchmarks/demo_model/recall.py`):

| pairs | accuracy |
|---|---|
{recall}

Learning rate and end follow the share of the run that is over, by steps or by the clock: a repeat on another machine
gives a model like this one, not the same bits. The recall prompts use the trained keys with new values and lists.
Random rewording can come close to a held-out wording. `loss.json` beside the training script holds the loss curve. The
model is tiny: outside of what it was trained on it is often wrong.
""",
        encoding="utf-8",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="directory of the model's files")
    parser.add_argument("--minutes", type=float, default=30.0, help="end after this time at the latest")
    parser.add_argument("--steps", type=int, default=1_000_000, help="end after this many steps")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--curve", type=Path, default=Path(__file__).with_name("loss.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)

    facts = load_facts(SEED)
    run = Progress(arguments.steps, arguments.minutes * 60)
    tokenizer = train_tokenizer(facts, SEED)
    save_tokenizer(tokenizer, arguments.out, MAX_LENGTH)
    encoder = Encoder(tokenizer)
    model = build_model(tokenizer.get_vocab_size(), encoder.bos, encoder.end, encoder.pad)
    print(f"seed {SEED}, {len(facts)} facts, {sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    curve = train(model, encoder, facts, arguments.out, run)
    save_model(model, arguments.out)
    arguments.curve.write_text(
        json.dumps({"seed": SEED, "columns": CURVE, "rows": curve}) + "\n",
        encoding="utf-8",
    )
    report = evaluate(arguments.out, SEED)
    write_readme(arguments.out, run, curve, report, len(facts))
    print(report)


if __name__ == "__main__":
    main()
