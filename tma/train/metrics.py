"""What an answer is worth: ROUGE, exact match, and the score of a reward model."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch

from tma.errors import ParameterError
from tma.train.encode import PROMPT
from tma.train.models import load_complete

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def exact_match(answer: str, references: Sequence[str]) -> float:
    """Return 1 if an answer equals a reference after the paper's normalisation, else 0."""
    return float(_normalised(answer) in {_normalised(text) for text in references})


def _normalised(text: str) -> str:
    """Return lower case, no punctuation, white space folded; as it is if nothing were left."""
    folded = re.sub(r"\s+", " ", text.lower().translate(_PUNCTUATION)).strip()
    return folded or text.strip()


def rouge(answer: str, references: Sequence[str]) -> dict[str, float]:
    """Return the F-measures `rouge1` and `rougeL`, with stemming, from 0 to 1.

    Of several references the best counts, for each measure by itself. The package rouge-score sees
    only Latin letters and digits: an answer in another script scores 0.
    """
    scores = _scorer().score_multi(references, answer)
    return {name: float(score.fmeasure) for name, score in scores.items()}


@cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1", "rougeL"], use_stemmer=True)


class RewardModel:
    """A sequence-classification model that scores answers, loaded once.

    The paper's, `openbmb/UltraRM-13b`, must first be converted to this form.
    """

    def __init__(self, name: str) -> None:
        from transformers import AutoModelForSequenceClassification as Kind

        model, self._tokenizer = load_complete("reward_model", name, Kind, {"dtype": "auto"})
        self._tokenizer.truncation_side = "left"  # the answer is at the end of the text
        if model.config.num_labels != 1:
            raise ParameterError(
                f"reward_model={name!r} has {model.config.num_labels} outputs; expected 1, the "
                "score."
            )
        self._model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()

    def scores(self, prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
        """Return the score of each answer in the training format; higher is better."""
        out = []
        with torch.inference_mode():
            for prompt, answer in zip(prompts, answers, strict=True):
                text = f"{PROMPT.format(prompt)} {answer}"
                given = self._tokenizer(text, truncation=True, return_tensors="pt")
                out.append(float(self._model(**given.to(self._model.device)).logits[0, 0]))
        return out
