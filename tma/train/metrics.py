"""What an answer is worth: ROUGE, exact match, and the score of a reward model."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tma.errors import ParameterError, wrong
from tma.train.encode import PROMPT
from tma.train.models import load_complete

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def exact_match(answer: str, references: Sequence[str]) -> float:
    """Return 1 if an answer equals a reference after normalisation, else 0.

    Texts of which nothing is left, such as "+" and "-", are compared as they are.

    Raises:
        ParameterError: `references` is one text, or empty.

    Source: the paper's section on metrics: lower case, no punctuation, white space folded.
    """
    _check_references(references)
    return float(_normalised(answer) in {_normalised(text) for text in references})


def rouge(answer: str, references: Sequence[str]) -> dict[str, float]:
    """Return the F-measures `rouge1` and `rougeL` of an answer, with stemming, from 0 to 1.

    Of several references the best counts, for each measure by itself. The package rouge-score sees
    only Latin letters and digits: an answer in another script scores 0.

    Raises:
        ParameterError: `references` is one text, or empty.
    """
    _check_references(references)
    scores = _scorer().score_multi(references, answer)
    return {name: float(score.fmeasure) for name, score in scores.items()}


@cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1", "rougeL"], use_stemmer=True)


class RewardModel:
    """A sequence-classification model that scores answers, loaded once.

    Args:
        name: its hub id or folder (the paper's is `openbmb/UltraRM-13b`, which must first be
            converted to this form).

    Raises:
        ParameterError: the model cannot be loaded, lacks weights, or has more than one output.
    """

    def __init__(self, name: str) -> None:
        import torch
        from transformers import AutoModelForSequenceClassification as Kind

        side = {"truncation_side": "left"}  # the answer is at the end of the text
        model, tokenizer = load_complete(
            "reward_model", name, name, Kind, {"dtype": "auto"}, **side
        )
        if model.config.num_labels != 1:
            raise ParameterError(
                f"reward_model={name!r} has {model.config.num_labels} outputs; expected 1, the "
                "score."
            )
        if tokenizer.pad_token is None and tokenizer.eos_token is not None:
            tokenizer.pad_token = tokenizer.eos_token
        if tokenizer.pad_token is not None:
            model.config.pad_token_id = tokenizer.pad_token_id
        self._model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        self._tokenizer = tokenizer

    def scores(
        self, prompts: Sequence[str], answers: Sequence[str], *, batch_size: int = 8
    ) -> NDArray[np.float64]:
        """Return the score of each answer, (n,); higher is better, without a unit.

        The model reads prompt and answer in the training format; a text that is too long for it
        loses its beginning. A score is NaN where the model gives that. Texts are scored one by one
        where the tokenizer has no pad token.
        """
        import torch

        pairs = zip(prompts, answers, strict=True)
        texts = [f"{PROMPT.format(prompt)} {answer}" for prompt, answer in pairs]
        by_length = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        out = np.empty(len(texts))
        padding = self._tokenizer.pad_token is not None
        size = batch_size if padding else 1
        with torch.inference_mode():
            for start in range(0, len(texts), size):
                part = by_length[start : start + size]
                given = self._tokenizer(
                    [texts[i] for i in part], padding=padding, truncation=True, return_tensors="pt"
                ).to(self._model.device)
                out[part] = self._model(**given).logits[:, 0].float().cpu().numpy()
        return out


def _check_references(references: Sequence[str]) -> None:
    if isinstance(references, str) or not references:
        raise wrong("references", references, "a list of one text or more")


def _normalised(text: str) -> str:
    folded = re.sub(r"\s+", " ", text.lower().translate(_PUNCTUATION)).strip()
    return folded or text.strip()
