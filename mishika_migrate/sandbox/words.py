"""What sample rows are made of: names, models, tags and text, awkward on purpose.

Imports nothing of ours. Everything is drawn from the `random.Random` that is passed in.
"""

from __future__ import annotations

import base64
import uuid
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from random import Random

MODELS = (
    ("gpt-4o", "openai", "https://api.openai.com/v1"),
    ("gpt-4o-mini", "openai", "https://api.openai.com/v1"),
    ("claude-3-7-sonnet", "anthropic", "https://api.anthropic.com"),
    ("gemini-2.0-flash", "vertex_ai", "https://us-central1-aiplatform.googleapis.com"),
    ("mistral-large", "azure", "https://example.openai.azure.com"),
    ("text-embedding-3-small", "openai", "https://api.openai.com/v1"),
)
TAGS = ("prod", "batch", "equipe-données", "チーム", "a,b", 'say "hi"', "🚀 launch", "back\\slash")
ROLES = ("proxy_admin", "proxy_admin_viewer", "internal_user", "internal_user_viewer")
PLACES = ("Zürich", "Łódź", "São Paulo", "東京", "Reykjavík", "Cairo", "Odesa", "Hà Nội")
NAMES = (
    "billing bot",
    "search",
    "chat-ui",
    "eval, nightly",
    "étude",
    "ingest\tbeta",
    "C:\\jobs\\sync",
    "demo 🎈",
)
_TEXT = (
    "the model answers with a table of rows and every row names its source because the reader asked for "
    "evidence first then prices limits tokens latency budget naïve façade größer 温度 ответ 🙂 — “quoted” "
    "C:\\temp\\new line\nbreak tab\tstop 100% {json} [list] \\u0000 it's $5 & more; if else return None"
)
_WORDS = tuple(_TEXT.split(" "))


def identifier(random: Random) -> str:
    return str(uuid.UUID(int=random.getrandbits(128), version=4))


def ciphertext(random: Random, plain_length: int) -> str:
    """The shape of a NaCl secret box in base64: nonce 24 bytes, tag 16, then the text. Nothing opens it."""
    return base64.b64encode(random.randbytes(24 + 16 + plain_length)).decode()


def prose(random: Random, length: int) -> str:
    """About `length` bytes of UTF-8, with what COPY and JSON have to escape."""
    words: list[str] = []
    size = 0
    while size < length:
        # Numbers keep it from compressing better than people's prompts do.
        word = str(random.getrandbits(40)) if random.random() < 0.15 else random.choice(_WORDS)
        words.append(word)
        size += len(word.encode()) + 1
    return " ".join(words)


def models(random: Random) -> list[str]:
    """A list of allowed models: often empty, which means all of them."""
    if random.random() < 0.4:
        return []
    chosen = random.sample([name for name, _, _ in MODELS], random.randint(1, 4))
    if random.random() < 0.15:
        chosen.append(random.choice(('ft:gpt-4o,"tuned"', "modèle-é", "models\\v2", "all-team-models")))
    return chosen


def amount(random: Random) -> float:
    """Dollars with all the digits that sums of small prices have, sometimes zero or tiny."""
    draw = random.random()
    if draw < 0.15:
        return 0.0
    return draw * 1e-6 if draw < 0.2 else random.expovariate(0.05) + 0.1 + 0.2
