"""The text that the demo model is trained on, all of it written by this project.

`facts.txt` holds questions and answers, `prose.txt` holds paragraphs. This module turns them into conversations: many
wordings of each question, small talk, questions that are off the topic, and several turns in a row.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent

Turn = tuple[str, str]

TERM_QUESTIONS = (
    "What is {t}?",
    "What's {t}?",
    "Explain {t}.",
    "Define {t}.",
    "Can you explain {t}?",
    "Tell me about {t}.",
    "What does {t} mean?",
    "{t}?",
    "{t}",
    "Describe {t}.",
    "What do you mean by {t}?",
    "Could you tell me what {t} is?",
    "What exactly is {t}?",
    "How would you define {t}?",
    "Please explain {t} to me.",
    "Give me a short definition of {t}.",
    "What do you know about {t}?",
    "I want to understand {t}.",
    "What is the meaning of {t}?",
    "What is meant by {t}?",
    "Tell me more about {t}.",
    "How does {t} work?",
    "What is {t} for?",
    "What is {t} used for?",
    "What is the purpose of {t}?",
    "What is the role of {t}?",
    "Why does colocate have {t}?",
    "How does colocate use {t}?",
    "Explain {t} to a five year old.",
    "Explain {t} in simple words.",
    "I have a question about {t}.",
    "Do you know {t}?",
    "What is {t} in LLM serving?",
)

PREFIXES = (
    "Please tell me: ", "Hi, ", "Hello! ", "Quick question: ", "Question: ", "Sorry, ", "I wonder: ", "OK, ", "Hey, ",
    "Hi there! ", "Hello. ", "Thanks. ", "And ", "But ", "So, ", "Great! ", "Now tell me, ", "I am new here. ",
    "Please, ",
)  # fmt: skip
SUFFIXES = (
    " Thanks.", " Please be brief.", " Please.", " Thank you!", " Answer in one sentence.", " in colocate",
    " Explain it simply.", " I want to learn.", " Be short.", " In one sentence.", " Give an example.",
)  # fmt: skip

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a helpful assistant that answers questions about colocate.",
    "Answer briefly.",
    "You are an expert in LLM serving.",
    "Be concise and friendly.",
)

SMALL_TALK: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (
        ("hello", "hi", "hey", "hello!", "hi there", "Hello there!", "Good morning", "good evening", "hey there",
         "Hi!", "greetings", "hello, how are you?", "Hello world", "yo", "say hello", "Say hi.", "hallo",
         "Hello, who is there?"),
        ("Hello! I am the demo model of colocate. Ask me about prefill, decode, plans or the KV cache.",
         "Hi! Ask me something about colocate, for example: What does the decode worker do?"),
    ),
    (
        ("how are you?", "How are you doing?", "how is it going?", "What's up?", "are you ok?", "How do you feel?"),
        ("All processes are up and I am fine, thank you. What would you like to know about colocate?",),
    ),
    (
        ("thanks", "thank you", "Thanks a lot!", "Great, thanks.", "thx", "cool", "nice", "great", "That helps.", "ok"),
        ("You are welcome. Ask me more about colocate whenever you like.",),
    ),
    (
        ("bye", "goodbye", "See you later.", "good night", "That is all.", "exit", "quit"),
        ("Goodbye! Press Ctrl-C in the server's terminal to drain and stop it.",),
    ),
    (
        ("test", "testing", "ping", "Is this working?", "are you there?", "Say something.", "Are you alive?",
         "This is a test.", "test test", "Reply with OK."),
        ("It works: your prompt went through prefill, and these tokens come from the decode worker.",),
    ),
    (
        ("help", "Help me.", "I need help.", "I do not know what to ask.", "What now?", "What should I do first?"),
        ("Try one of these: What is colocate? How does the hand-over work? What happens when a worker dies?",),
    ),
    (
        ("Tell me a story.", "Tell me a story about a server.", "Once upon a time", "Write a short story.",
         "Can you tell me a story?"),
        ("Once upon a time there was a small server with one device. Long prompts and short answers stood in one line, "
         "so it drew a border between them, and from that day on nobody waited for long.",),
    ),
)  # fmt: skip

FALLBACK = (
    "Sorry, I only know about colocate and LLM serving. Ask me about prefill, decode, plans or the KV cache.",
    "I am a tiny model and only know about colocate. Try: What is prefill? or: What does the engine do?",
)

OFF_TOPIC_SUBJECTS = """the weather|the capital of France|the capital of Spain|the capital of Japan|Berlin|London|Paris|
New York|football|tennis|chess|the World Cup|the president|politics|the election|the stock market|Bitcoin|money|love|
happiness|the meaning of life|God|religion|philosophy|history|the Roman Empire|the war|Napoleon|Einstein|Shakespeare|
physics|gravity|chemistry|biology|the human body|the heart|cancer|a headache|medicine|food|pizza|pasta|a cake|coffee|
tea|wine|beer|dinner|breakfast|music|a song|a guitar|a piano|art|a painting|a film|a movie|Star Wars|a book|a poem|
a novel|a joke|a cat|a dog|a horse|an elephant|dinosaurs|birds|fish|the ocean|the moon|the sun|Mars|space|the stars|
a car|a bicycle|an airplane|a train|a house|a garden|flowers|trees|a holiday|travel|Italy|China|India|America|Africa|
Germany|English grammar|French|Latin|mathematics|algebra|a triangle|prime numbers|statistics|JavaScript|Java|HTML|CSS|
a web page|Excel|Windows|an iPhone|a phone|Google|Facebook|Twitter|Netflix|a game|Minecraft|fashion|shoes|yoga|sleep|
dreams|school|homework|a job|my boss|my mother|children|a birthday|Christmas|time|today|tomorrow|yesterday|you and me|
evolution|climate change|electricity|a volcano|an earthquake|rain|snow|summer|winter|a river|a mountain|gold|diamonds|
sorting a list|a recipe|a haiku|an email to my landlord|bananas|chocolate|a robot|the internet|blockchain|Linux|
photosynthesis|democracy|quantum physics|black holes|the pyramids|World War II|baseball|cooking|dancing|swimming"""

OFF_TOPIC_QUESTIONS = (
    "What is {s}?",
    "Tell me about {s}.",
    "Explain {s}.",
    "Who invented {s}?",
    "What do you think about {s}?",
    "Do you like {s}?",
    "Write something about {s}.",
    "Write a poem about {s}.",
    "How do I learn about {s}?",
    "Where can I find {s}?",
    "Why is {s} important?",
    "When was {s} invented?",
    "How much does {s} cost?",
    "Can you help me with {s}?",
    "Tell me a joke about {s}.",
    "What's {s}?",
    "Give me five facts about {s}.",
    "Translate {s} into German.",
    "How old is {s}?",
    "Who is the best at {s}?",
    "What happens in {s}?",
    "How does {s} work?",
)

OFF_TOPIC_PLAIN = (
    "Tell me a joke.", "Who won the match?", "What time is it?", "What day is it today?", "Write a poem.",
    "Sing a song.", "What is 2 + 2?", "What is 7 times 8?", "Calculate 12 * 12.", "Solve x + 3 = 5.",
    "Write a Python function.", "Write code that sorts a list.",
    "Who is the president?", "How tall is the tower?", "Where do you live?",
    "How old are you?", "Do you have feelings?", "Are you human?", "What is your favourite colour?", "Will it rain?",
    "Count to ten.", "Translate this into French.", "Summarize this article.", "Write an email.", "What should I eat?",
    "Is there life on other planets?", "How do I lose weight?", "Fix my code.", "Recommend a book.", "Plan my holiday.",
    "Who made you rich?", "What is the best phone?", "Can you see images?", "Can you browse the web?", "asdf",
    "foo bar", "lorem ipsum", "blah blah", "qwerty", "1234", "???", "...", "Why is the sky blue?",
    "How far is the moon?",
)  # fmt: skip

DROPPABLE = frozenset(("the", "a", "an", "is", "does", "do", "of", "to", "in", "I", "my", "are"))

# Applied at random to a question; each keeps what is asked.
SYNONYMS = (
    (" dies", (" crashes", " is killed", " fails", " goes down", " stops")),
    (" crashes", (" dies", " is killed", " fails")),
    ("How do I ", ("How can I ", "How to ", "How would I ", "How could I ", "Show me how to ", "Tell me how to ")),
    ("What is ", ("What's ", "what is ", "So what is ", "And what is ", "Do you know what is ")),
    ("What does ", ("Tell me what does ", "So what does ", "What exactly does ")),
    ("What happens when ", ("What happens if ", "What if ", "What will happen when ", "What is done when ")),
    ("What happens if ", ("What happens when ", "What will happen if ")),
    ("Which ", ("What ", "Tell me which ")),
    ("Why is ", ("What makes ", "Why's ", "Can you say why is ")),
    ("the server", ("colocate", "the daemon", "this server")),
    (" worker", (" process", " worker process")),
    ("difference between", ("difference of", "distinction between")),
    (" colocate", (" this server", " this runtime", " it")),
    ("How does ", ("In what way does ", "Explain how does ", "Can you explain how does ")),
    ("Explain ", ("Please explain ", "Can you explain ")),
)


@dataclass(frozen=True, slots=True)
class Fact:
    """Wordings of one question, those kept back for measuring, and the wordings of the answer."""

    questions: tuple[str, ...]
    held_out: tuple[str, ...]
    answers: tuple[str, ...]


def load_facts(seed: int, path: Path = HERE / "facts.txt") -> list[Fact]:
    """Reads the blocks of `facts.txt`; of every fact with five wordings or more, one is held out for measuring."""
    rng = random.Random(seed)
    facts = []
    for block in path.read_text(encoding="utf-8").strip().split("\n\n"):
        questions: list[str] = []
        answers: list[str] = []
        for line in block.splitlines():
            kind, _, rest = line.partition(": ")
            parts = [part.strip() for part in rest.split(" | ")]
            if kind == "T":
                questions += [template.format(t=term) for term in parts for template in TERM_QUESTIONS]
            elif kind == "Q":
                questions += parts
            elif kind == "A":
                answers.append(rest)
            else:
                raise ValueError(f"{path.name}: a line starts with {kind!r}, expected T, Q or A: {line!r}")
        questions = list(dict.fromkeys(questions))
        held_out = rng.sample(questions, 1) if len(questions) >= 5 else []
        trained = tuple(question for question in questions if question not in held_out)
        facts.append(Fact(trained, tuple(held_out), tuple(answers)))
    return facts


def load_prose(path: Path = HERE / "prose.txt") -> list[str]:
    return [paragraph.strip() for paragraph in path.read_text(encoding="utf-8").split("\n\n") if paragraph.strip()]


def sentences() -> list[str]:
    """Sentences of the prose, as filler between recall pairs."""
    return [part.strip() + "." for paragraph in load_prose() for part in paragraph.rstrip(".").split(". ")]


def reword(rng: random.Random, question: str) -> str:
    """A surface variant: a synonym, a lost word, case, punctuation, a polite prefix or suffix."""
    if rng.random() < 0.3:
        fitting = [(phrase, others) for phrase, others in SYNONYMS if phrase in question]
        if fitting:
            phrase, others = rng.choice(fitting)
            question = question.replace(phrase, rng.choice(others), 1)
    words = question.split(" ")
    if len(words) > 4 and rng.random() < 0.1:
        small = [index for index, word in enumerate(words) if word in DROPPABLE]
        if small:
            del words[rng.choice(small)]
            question = " ".join(words)
    if rng.random() < 0.3 and question[:1].isalpha() and question[1:2].islower():
        question = question[0].lower() + question[1:]
    if rng.random() < 0.15:
        question = question.lower()
    if rng.random() < 0.25:
        question = question.rstrip("?.")
    if rng.random() < 0.12:
        question = rng.choice(PREFIXES) + question
    if rng.random() < 0.10:
        question = question + rng.choice(SUFFIXES)
    return question


def fact_turn(rng: random.Random, fact: Fact) -> Turn:
    return reword(rng, rng.choice(fact.questions)), rng.choice(fact.answers)


def small_talk_turn(rng: random.Random) -> Turn:
    questions, answers = rng.choice(SMALL_TALK)
    return reword(rng, rng.choice(questions)), rng.choice(answers)


def off_topic_turn(rng: random.Random) -> Turn:
    if rng.random() < 0.25:
        question = rng.choice(OFF_TOPIC_PLAIN)
    else:
        subjects = [subject.strip() for subject in OFF_TOPIC_SUBJECTS.replace("\n", "").split("|")]
        question = rng.choice(OFF_TOPIC_QUESTIONS).format(s=rng.choice(subjects))
    return reword(rng, question), rng.choice(FALLBACK)


def conversation(rng: random.Random, facts: Sequence[Fact], num_turns: int) -> list[Turn]:
    """Turns drawn independently: the model must answer the last question, whatever was said before it."""
    turns = []
    for _ in range(num_turns):
        kind = rng.random()
        if kind < 0.76:
            turns.append(fact_turn(rng, rng.choice(facts)))
        elif kind < 0.86:
            turns.append(small_talk_turn(rng))
        else:
            turns.append(off_topic_turn(rng))
    return turns


def plain_text(rng: random.Random, facts: Sequence[Fact]) -> str:
    """Text without chat markers, for `/v1/completions`: a paragraph, or a question with its answer."""
    kind = rng.random()
    if kind < 0.5:
        paragraphs = load_prose()
        paragraph = rng.choice(paragraphs)
        parts = paragraph.rstrip(".").split(". ")
        return ". ".join(parts[rng.choice((0, 0, rng.randrange(len(parts)))) :]) + "."
    question, answer = fact_turn(rng, rng.choice(facts))
    if kind < 0.7:
        return answer
    if kind < 0.85:
        return f"{question} {answer}"
    return f"{question}\n{answer}" if kind < 0.93 else f"Question: {question}\nAnswer: {answer}"
