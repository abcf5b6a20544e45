"""`colocate recall`: whether a server still finds in a prompt what stands there."""

from __future__ import annotations

from colocate.bench.quality import chat_server, recall_score


def run_recall(url: str, model: str | None, api_key: str | None, num_questions: int, seed: int, num_pairs: int) -> int:
    """1 where an answer was wrong. Raises ConfigError."""
    score = recall_score(chat_server(url, model, api_key), num_questions, seed, num_pairs)
    print(f"{score.right} of {score.asked} questions about {num_pairs} pairs answered right")
    return 0 if score.right == score.asked else 1
