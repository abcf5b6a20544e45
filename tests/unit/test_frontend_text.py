"""Detokenizing, stop strings, templates and time limits: the parts that turn tokens into text and back."""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from colocate.errors import ConfigError, RequestError
from colocate.frontend.chat_template import ChatTemplate
from colocate.frontend.detokenizer import ByteLevelDetokenizer, WindowDetokenizer
from colocate.frontend.stop_strings import StopMatcher
from colocate.frontend.text_workers import TextWorkers
from colocate.frontend.tokenizer import TextTokenizer, load_tokenizer
from tests.byte_tokenizer import BOS, EOS, VOCAB_SIZE, byte_tokenizer, write_model_dir
from tests.limits import LIMIT_S

EMOJI = "naïve 🙂 café 日本"
SPECIAL = {"bos_token": "<s>"}


def byte_table() -> list[bytes]:
    return [bytes([byte]) for byte in range(256)]


def sentencepiece_like() -> Tokenizer:
    """Metaspace with byte fallback: what a token reads as depends on its neighbours."""
    vocab = {"<unk>": 0, "\u2581hello": 1, "\u2581world": 2, "!": 3}
    vocab |= {f"<0x{byte:02X}>": 4 + byte for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


class TestDetokenizer:
    def test_a_character_of_several_bytes_comes_out_whole(self) -> None:
        detokenizer = ByteLevelDetokenizer(byte_table())
        pieces = [detokenizer.step(byte) for byte in EMOJI.encode()]
        assert "".join(pieces) == EMOJI
        assert "\ufffd" not in "".join(pieces)
        assert "" in pieces  # bytes in the middle of a character say nothing

    def test_flush_gives_up_on_half_a_character(self) -> None:
        detokenizer = ByteLevelDetokenizer(byte_table())
        assert [detokenizer.step(byte) for byte in "é".encode()[:1]] == [""]
        assert detokenizer.flush() == "\ufffd"
        assert detokenizer.flush() == ""

    def test_bytes_that_are_never_text_do_not_stall_the_stream(self) -> None:
        detokenizer = ByteLevelDetokenizer(byte_table())
        assert "".join(detokenizer.step(0xFF) for _ in range(100)) == "\ufffd" * 100

    def test_an_id_beyond_the_table_is_silent(self) -> None:
        assert ByteLevelDetokenizer(byte_table()).step(70_000) == ""

    def test_window_gives_what_the_decoder_gives_for_the_whole(self) -> None:
        tokenizer = sentencepiece_like()
        ids = [1, 2, *(4 + byte for byte in " 🙂é".encode()), 2, 3]
        detokenizer = WindowDetokenizer(tokenizer.decode)
        pieces = [detokenizer.step(token_id) for token_id in ids]
        assert "".join(pieces) + detokenizer.flush() == tokenizer.decode(ids) == "hello world 🙂é world!"
        assert all("\ufffd" not in piece for piece in pieces)

    def test_window_prints_garbage_sooner_or_later(self) -> None:
        detokenizer = WindowDetokenizer(sentencepiece_like().decode)
        pieces = [detokenizer.step(4 + 0xFF) for _ in range(40)]
        assert sum(map(len, pieces)) >= 32

    @given(st.text(max_size=40))
    def test_any_text_survives_byte_by_byte(self, text: str) -> None:
        detokenizer = ByteLevelDetokenizer(byte_table())
        assert "".join(detokenizer.step(byte) for byte in text.encode()) + detokenizer.flush() == text


class TestTokenizer:
    def test_special_tokens_are_skipped_or_shown(self) -> None:
        tokenizer = TextTokenizer(byte_tokenizer(), VOCAB_SIZE)
        hidden, shown = tokenizer.detokenizer(True), tokenizer.detokenizer(False)
        assert hidden.step(EOS) == "" and shown.step(EOS) == "</s>"
        assert tokenizer.token_bytes(ord("a")) == b"a" and tokenizer.token_bytes(BOS) == b"<s>"

    def test_model_directory_is_read(self, tmp_path: Path) -> None:
        tokenizer, files = load_tokenizer(write_model_dir(tmp_path), VOCAB_SIZE)
        assert tokenizer.encode(["hé"], add_special_tokens=True) == [[BOS, *"hé".encode()]]
        assert tokenizer.encode(["hé"], add_special_tokens=False) == [list("hé".encode())]
        assert files.eos_token_ids == (EOS,)
        assert files.special_tokens["eos_token"] == "</s>"
        assert files.chat_template is not None

    def test_a_file_of_its_own_wins_over_the_inline_template(self, tmp_path: Path) -> None:
        (write_model_dir(tmp_path) / "chat_template.jinja").write_text("file")
        assert load_tokenizer(tmp_path, VOCAB_SIZE)[1].chat_template == "file"

    def test_a_missing_or_broken_tokenizer_is_refused_by_name(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"tokenizer\.json.*no tokenizer"):
            load_tokenizer(tmp_path, VOCAB_SIZE)
        (tmp_path / "tokenizer.json").write_text("{")
        with pytest.raises(ConfigError, match="not a readable tokenizer"):
            load_tokenizer(tmp_path, VOCAB_SIZE)


def match_all(stops: tuple[str, ...], pieces: list[str], include: bool = False) -> tuple[str, bool]:
    matcher = StopMatcher(stops, include)
    text = ""
    for piece in pieces:
        new, hit = matcher.feed(piece)
        text += new
        if hit:
            return text, True
    return text + matcher.flush(), False


class TestStopMatcher:
    @pytest.mark.parametrize("pieces", [["one STOP two"], ["one S", "TO", "P two"], list("one STOP two")])
    def test_found_across_any_boundary(self, pieces: list[str]) -> None:
        assert match_all(("STOP",), pieces) == ("one ", True)
        assert match_all(("STOP",), pieces, include=True) == ("one STOP", True)

    def test_only_what_may_become_a_stop_is_held_back(self) -> None:
        matcher = StopMatcher(("##",), False)
        assert matcher.feed("a#") == ("a", False)
        assert matcher.feed("b") == ("#b", False)
        assert matcher.feed("#") == ("", False)
        assert matcher.flush() == "#"

    def test_the_stop_completed_first_wins(self) -> None:
        assert match_all(("longer stop", "er"), ["a longer stop"]) == ("a long", True)

    @given(
        st.text("ab", max_size=30),
        st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
        st.randoms(),
    )
    def test_splitting_changes_nothing(self, text: str, stops: list[str], source: random.Random) -> None:
        whole = match_all(tuple(stops), list(text))
        pieces, rest = [], text
        while rest:
            cut = source.randint(1, len(rest))
            pieces.append(rest[:cut])
            rest = rest[cut:]
        got = match_all(tuple(stops), pieces)
        assert got == whole
        ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
        assert got[1] == bool(ends)
        if ends:
            assert text.startswith(got[0]) and len(got[0]) < min(ends)


class TestChatTemplate:
    def test_renders_with_the_usual_helpers(self) -> None:
        source = (
            "{{ bos_token }}\n{%- for m in messages %}\n  {%- if loop.index > 2 %}{% break %}{% endif %}\n"
            "{{ m.content | tojson }}\n{%- endfor %}{{ strftime_now('%Y')[:2] }}"
        )
        messages = [{"role": "user", "content": text} for text in ("é", "b", "c")]
        assert ChatTemplate(source, SPECIAL).render(messages, True, {}) == '<s>"é""b"20'

    def test_its_own_refusal_reaches_the_client(self) -> None:
        template = ChatTemplate("{{ raise_exception('no system role') }}", SPECIAL)
        with pytest.raises(RequestError, match="no system role") as caught:
            template.render([], True, {})
        assert caught.value.status == 400 and caught.value.param == "messages"

    @pytest.mark.parametrize(
        "source",
        [
            "{{ ''.__class__.__mro__[1].__subclasses__() }}",
            "{{ messages.append(1) }}",
            "{{ 'a' * 10**10 }}",
            "{{ 2 ** 1000000000 }}",
            "{% for i in range(10**9) %}{% endfor %}",
            "{% for i in range(90000) %}{{ 'x' * 1000 }}{% endfor %}",
        ],
    )
    def test_the_sandbox_holds(self, source: str) -> None:
        with pytest.raises(RequestError):
            ChatTemplate(source, SPECIAL).render([{"role": "user", "content": "x"}], True, {})

    def test_a_syntax_error_is_the_operators(self) -> None:
        with pytest.raises(ConfigError, match="chat_template"):
            ChatTemplate("{% for %}", SPECIAL)


class TestTextWorkers:
    async def test_an_endless_template_is_ended(self) -> None:
        source = "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}"
        template = ChatTemplate(source, SPECIAL)
        workers = TextWorkers(num_threads=1, limit_s=0.2)
        try:
            with pytest.raises(RequestError, match="longer than"):
                await workers.run(lambda: template.render([], True, {}), "messages")
            # the only thread is free again: the loop, which would take minutes, was truly ended
            assert await TextWorkersAfter(workers).value() == 42
        finally:
            workers.close()

    async def test_errors_of_the_work_come_through(self) -> None:
        workers = TextWorkers()
        try:
            with pytest.raises(RequestError, match="mine"):
                await workers.run(_raise_mine, "prompt")
        finally:
            workers.close()


def _raise_mine() -> None:
    raise RequestError("mine")


class TextWorkersAfter:
    """Work that follows interrupted work, again and again: a late exception would hit it."""

    def __init__(self, workers: TextWorkers) -> None:
        self._workers = workers

    async def value(self) -> int:
        deadline_s = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline_s:
            try:
                return await self._workers.run(lambda: 42, "prompt")
            except RequestError:
                await asyncio.sleep(0.05)
        raise AssertionError("the worker thread never came back")
