"""What an answer is worth: ROUGE, exact match, and the score of a reward model."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tma.errors import ParameterError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def exact_match(answer: str, references: Sequence[str]) -> float:
    """Return 1 if an answer equals a reference after normalisation, else 0.

    Source: the paper's section on metrics: lower case, no punctuation, white space folded.
    """
    return float(_normalised(answer) in {_normalised(text) for text in references})


def rouge(answer: str, references: Sequence[str]) -> dict[str, float]:
    """Return the F-measures `rouge1` and `rougeL` of an answer, with stemming, from 0 to 1.

    Over several references the best counts, for each of the two by itself. The package rouge-score
    sees Latin letters and digits only: an answer in another script scores 0.
    """
    from rouge_score.rouge_scorer import RougeScorer

    scores = RougeScorer(["rouge1", "rougeL"], use_stemmer=True).score_multi(references, answer)
    return {name: float(score.fmeasure) for name, score in scores.items()}


def rewards(
    name: str, prompts: Sequence[str], answers: Sequence[str], *, batch_size: int = 8
) -> NDArray[np.float64]:
    """Return a reward model's score of each answer, (n,); higher is better, without a unit.

    Args:
        name: hub id or folder of a sequence-classification model with one output (the paper's is
            `openbmb/UltraRM-13b`, which needs converting to that form first).
        prompts: n prompts.
        answers: their n answers; the model reads prompt and answer in the training format.
        batch_size: texts at once.

    Raises:
        ParameterError: the model cannot be loaded, or has more than one output.
    """
    import torch

    model, tokenizer = _reward_model(name)
    texts = [f"User: {p}\nAssistant: {a}" for p, a in zip(prompts, answers, strict=True)]
    by_length = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    out = np.empty(len(texts))
    with torch.inference_mode():
        for start in range(0, len(texts), batch_size):
            part = by_length[start : start + batch_size]
            given = tokenizer(
                [texts[i] for i in part], padding=True, truncation=True, return_tensors="pt"
            )
            out[part] = model(**given.to(model.device)).logits[:, 0].float().cpu().numpy()
    return out


def _reward_model(name: str) -> tuple[Any, PreTrainedTokenizerBase]:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    given: dict[str, Any] = {"trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **given)
        model = AutoModelForSequenceClassification.from_pretrained(
            name, use_safetensors=True, dtype="auto", **given
        )
    except (OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ParameterError(f"reward_model={name!r} could not be loaded: {reason}") from error
    if model.config.num_labels != 1:
        raise ParameterError(
            f"reward_model={name!r} has {model.config.num_labels} outputs; expected 1, the score."
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), tokenizer


def _normalised(text: str) -> str:
    return re.sub(r"\s+", " ", text.lower().translate(_PUNCTUATION)).strip()
