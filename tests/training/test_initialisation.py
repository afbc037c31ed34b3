"""What is built into fresh weights does what it is for, before any training."""

from __future__ import annotations

import pytest

from tests import needs

torch = needs.torch()

from mt3_runtime.notes.vocabulary import EventKind, Vocabulary  # noqa: E402
from mt3_training.networks.initialisation import FRAMES_PER_STEP, LISTEN, NEIGHBOURS, align_  # noqa: E402
from mt3_training.networks.network import Network  # noqa: E402
from mt3_training.runs.config import PRESETS  # noqa: E402  torch first

VOCABULARY = Vocabulary.mt3()
SHIFTS = list(VOCABULARY.id_range(EventKind.SHIFT))
PITCHES = list(VOCABULARY.id_range(EventKind.PITCH))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    fresh = Network(PRESETS["small"].shape)
    align_(fresh, VOCABULARY)
    return fresh.eval()


def test_heads_of_the_first_layers_look_beside_each_frame(network):
    positions = network.table[:128]
    for name, offsets in zip(network.encoder.layers, NEIGHBOURS, strict=False):
        attention = network.encoder.get_submodule(name).attention
        looks = attention.log_attention(positions[None], positions[None], attention.heads)[0]
        for head, offset in enumerate(offsets):
            # The random half of the weights moves the peak by a frame at times.
            found = looks[head, 40:80].argmax(dim=-1) - torch.arange(40, 80)
            assert (found - offset).abs().float().median() <= 1.0


def test_the_decoder_listens_where_the_last_shift_says(network):
    steps = [3, 20, 41]
    tokens = [0, PITCHES[60], PITCHES[64], VOCABULARY.id_range(EventKind.TIE)[0]]
    for step in steps:
        tokens += [SHIFTS[step], PITCHES[60], PITCHES[64]]
    read = torch.tensor([tokens])
    embedded = network.decoder.token_embedder(read) + network.table[: len(tokens)]
    layer = network.decoder.get_submodule(network.decoder.layers[0])
    normed = layer.pre_self_attention_layer_norm(embedded)
    x = embedded + layer.self_attention(normed, normed, causal=True)
    cross = layer.encoder_decoder_attention
    silence = network.encoder.encoder_norm(network.table[:64][None])
    looks = cross.log_attention(layer.pre_cross_attention_layer_norm(x), silence, cross.heads)
    found = looks[0].argmax(dim=-1)
    frames = torch.tensor([0, *steps]).repeat_interleave(3)
    frames = torch.cat([frames[:1], frames]) * FRAMES_PER_STEP  # four tokens of the tie section
    for head, offset in enumerate(LISTEN):
        away = (found[head] - (frames + offset).clamp(max=63)).abs()
        assert away.max() <= 3.0  # the random half of the weights moves some


def test_a_network_too_narrow_for_it_is_left_alone():
    torch.manual_seed(0)
    narrow = Network(PRESETS["tiny"].shape)
    before = {name: tensor.clone() for name, tensor in narrow.named_parameters()}
    align_(narrow, VOCABULARY)
    assert all(torch.equal(before[name], tensor) for name, tensor in narrow.named_parameters())
