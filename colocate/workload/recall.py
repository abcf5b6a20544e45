"""Key-value recall in context: seeded prompts whose right answer is known, to train and to measure a model.

A prompt lists pairs such as `zor = 417; mip = 093` and asks for one; the demo model answers `You said mip = 093.`
The keys carry no meaning and the values are uniform, so a model can only answer by finding the pair in its context:
a lost or mixed up KV block shows at once.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

# One token each for the demo model when a space stands before them. Invented words first, then common ones.
KEYS: tuple[str, ...] = tuple(
    """
bid bom bop buk bum bun dal dan dap dar dat dax ded dem den det dik dip dod dom dor dot dud dup fed fep fin
fon fug zor gam gat gex gib gip guk kad kar kax kin kit mip lak lep lex lid lob lod lot lub lul mak met mib
mid mim mir mog mot mug mut ned nex nid nug nuk num nur pab pap per pib pim pir pog pon pul rar rek rem rim
rix rud rut sag sap sek sep sik sil sin six sog sop sot sub sug suk sum sup sur tab tat tig til tog tub tuk
vad veg vox vub vud vul zeb zed zid zom zud zum
apple bread cloud river stone tiger maple piano lemon house chair table horse zebra eagle robot
candle garden window bottle pepper silver copper marble violet orange yellow purple green blue red black white
north south east west sun moon star rain snow wind fire water earth gold iron tree leaf bird fish cat dog bear wolf
alpha beta gamma delta omega code room door key box bag hat cup pen book lamp ship car train bus road bridge
""".split()  # noqa: SIM905 - one word a line would fill a page
)


@dataclass(frozen=True, slots=True)
class RecallPrompt:
    """One user message, the key it asks for and the answer: three digits."""

    text: str
    key: str
    answer: str
    num_pairs: int

    def is_answered_by(self, text: str) -> bool:
        """Whether `text` holds the value and no other: the last three digits count."""
        return "".join(character for character in text if character.isdigit())[-3:] == self.answer


def draw_pairs(rng: random.Random, num_pairs: int, keys: Sequence[str] = KEYS) -> list[tuple[str, str]]:
    """Distinct keys, each with a value of three digits."""
    return [(key, f"{rng.randrange(1000):03d}") for key in rng.sample(keys, num_pairs)]


def pairs_text(rng: random.Random, pairs: Sequence[tuple[str, str]], filler: Sequence[str] = ()) -> str:
    """The pairs as one line; sentences of `filler` are scattered between them to stretch the distance."""
    parts = [f"{key} = {value};" for key, value in pairs]
    for sentence in filler:
        parts.insert(rng.randrange(1, len(parts) + 1), sentence)
    text = " ".join(parts)
    return text[:-1] + "." if text.endswith(";") else text


def recall_prompts(count: int, num_pairs: int, seed: int, filler: Sequence[str] = ()) -> list[RecallPrompt]:
    """`count` prompts of `num_pairs` pairs (2 to 40 are trained on), the same for the same seed."""
    rng = random.Random(seed * 1000 + num_pairs)
    prompts = []
    for _ in range(count):
        pairs = draw_pairs(rng, num_pairs)
        key, value = rng.choice(pairs)
        text = f"Remember: {pairs_text(rng, pairs, filler)} What is {key}?"
        prompts.append(RecallPrompt(text, key, value, num_pairs))
    return prompts
