"""Drafts verified by the real networks: the greedy answer is the reference's, with and without them."""

from __future__ import annotations

import numpy as np
import pytest
from fakes import ByteTokenizer

from moss_audio.errors import CheckpointError
from moss_audio.inference.generate import generate
from moss_audio.inference.sampling import SamplingParams
from moss_audio.processor import Inputs
from moss_audio.runtime.select import load_backend


class TinyTokenizer(ByteTokenizer):
    """The fixture has ids only: no control tokens, and 320 of them."""

    def special(self, name):
        raise CheckpointError(name)

    def is_special(self, token_id):
        return False

    def token_bytes(self, token_id):
        return f"{token_id} ".encode()


@pytest.fixture(scope="module", params=["openvino", "torch"])
def backend(request, moss_tiny):
    pytest.importorskip(request.param)
    return load_backend(moss_tiny, request.param, "cpu", "float32")


@pytest.mark.parametrize("case", ["short", "two"])
@pytest.mark.parametrize("drafted", [False, True])
def test_greedy_is_the_references_with_and_without_drafts(backend, golden, case, drafted):
    ids = golden[f"{case}.input_ids"]
    mels = tuple(golden[key] for key in sorted(golden.files) if key.startswith(f"{case}.mel"))
    inputs = Inputs(ids, ids == 300, np.zeros(len(ids), dtype=bool), mels)
    truth = golden[f"{case}.greedy"].tolist()
    random = np.random.default_rng(0)

    def draft(emitted):
        guess = truth[len(emitted) : len(emitted) + 6]
        return [token if random.random() < 0.7 else int(random.integers(320)) for token in guess]

    params = SamplingParams(max_new_tokens=len(truth))
    events = list(generate(backend, TinyTokenizer(), inputs, params, draft=draft if drafted else None))
    assert [event.token_id for event in events] == truth
    assert events[-1].finish_reason == "length" and events[-1].usage.audio_tokens == np.count_nonzero(ids == 300)
