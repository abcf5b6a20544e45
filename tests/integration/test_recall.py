"""The embedded model, served: it finds what stands in the prompt."""

from __future__ import annotations

from colocate.bench.quality import RecallScore, chat_server, recall_score
from tests.daemon import start_daemon


def test_the_demo_model_answers_every_question() -> None:
    with start_daemon("--device", "cpu", "--log-level", "warning", "--kv-memory", "64MiB") as daemon:
        server = chat_server(daemon.base_url)
        assert recall_score(server, 16, seed=7) == RecallScore(16, 16)
        assert recall_score(server, 4, seed=7, num_pairs=40) == RecallScore(4, 4)
