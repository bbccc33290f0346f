"""The task: sums of small numbers asked by a child, with a reward anybody can verify."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import Any

# Long enough to fill at least two blocks of the engine's prefix cache (64 tokens at block size 32).
SYSTEM_PROMPT = (
    "You are a friendly math tutor for small children. You answer every question about adding numbers in one short "
    "sentence, and you always say the right number. For example, when a child asks what 3 plus 4 is, you may say: "
    "The answer is 7. Or: 3 plus 4 makes 7. Never say more than one sentence."
)
LARGEST = 9

_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One sum and its prompt. `tokens_P`: token ids of the whole chat prompt."""

    first: int
    second: int
    tokens_P: list[int]


def make_questions(tokenizer: Any, count: int, rng: random.Random) -> list[Question]:
    """Draw questions; the chat template puts the shared system prompt in front of each."""
    questions = []
    for _ in range(count):
        first, second = rng.randint(1, LARGEST), rng.randint(1, LARGEST)
        chat = [{"role": "system", "content": SYSTEM_PROMPT},
                {"role": "user", "content": f"What is {first} plus {second}?"}]
        tokens_P = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        questions.append(Question(first=first, second=second, tokens_P=list(tokens_P)))
    return questions


def reward(question: Question, text: str, *, finished: bool) -> float:
    """1 when the last number said is the sum, less 0.5 when the sentence never ended; 0 otherwise."""
    numbers = _NUMBER.findall(text)
    if not numbers or int(numbers[-1]) != question.first + question.second:
        return 0.0
    return 1.0 if finished else 0.5
