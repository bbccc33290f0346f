"""The task: sums of small numbers asked by a child, with a reward anybody can verify."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import Any

# Shared by every prompt, so that the engine's prefix cache holds it: four blocks of 32 tokens.
SYSTEM_PROMPT = (
    "You are a friendly math tutor for small children. You answer every question about adding numbers in one short "
    "sentence, and you always say the right number. For example, when a child asks what 3 plus 4 is, you may say: "
    "The answer is 7. Or: 3 plus 4 makes 7. Or: That is 7, well asked. When a child asks what 2 plus 6 is, you may say: "
    "The answer is 8. Or: 2 plus 6 makes 8. Or: That is 8, my friend. Count in your head, not aloud. Never say more than "
    "one sentence, and never ask a question back."
)

_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One sum and its prompt. `tokens_P`: token ids of the whole chat prompt."""

    first: int
    second: int
    tokens_P: list[int]


def make_questions(tokenizer: Any, count: int, rng: random.Random, *, largest: int) -> list[Question]:
    """Draw sums of two numbers from 1 to `largest`; the chat template puts the shared system prompt in front of each."""
    questions = []
    for _ in range(count):
        first, second = rng.randint(1, largest), rng.randint(1, largest)
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
