from __future__ import annotations

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tma.train.encode import Encoded
from tma.train.evaluate import response_losses


def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
            num_attention_heads=2,
        )
    )  # fmt: skip


def rows(*lengths: int) -> list[Encoded]:
    return [
        Encoded(str(k), None, tuple((k + i) % 64 for i in range(n)), n - 3)
        for k, n in enumerate(lengths)
    ]


def test_losses_stand_at_the_place_of_their_instance() -> None:
    given, small = rows(9, 40, 5, 17), model()
    packed = response_losses(small, given, 64, "fp32", packed=True)
    alone = [response_losses(small, [row], 64, "fp32")[0] for row in given]
    np.testing.assert_allclose(packed, alone, rtol=1e-5)
