"""Real text that every machine has: the sources of Python's own standard library, read as bytes.

Byte-level tokens need no tokenizer: the vocabulary is 256. Files are joined in the sorted order of their paths, so that
one Python version gives one text, and batches are windows at random places of it, drawn from their own seed.
"""

import hashlib
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

_NOT_STANDARD = {"site-packages", "dist-packages", "__pycache__"}


@dataclass(frozen=True, slots=True)
class Text:
    """A text as a uint8 tensor of its bytes, and where it came from."""

    tokens: Tensor
    files: int
    sha256: str


def standard_library_text() -> Text:
    """All `.py` files of the running Python's standard library, tens of megabytes; takes about a second."""
    root = Path(sysconfig.get_path("stdlib"))
    paths = sorted(
        path for path in root.rglob("*.py") if path.is_file() and _NOT_STANDARD.isdisjoint(path.relative_to(root).parts)
    )
    content = bytearray(b"\n".join(path.read_bytes() for path in paths))
    return Text(
        tokens=torch.frombuffer(content, dtype=torch.uint8),
        files=len(paths),
        sha256=hashlib.sha256(content).hexdigest(),
    )


def batches(
    text: Text, *, count: int, batch: int, length: int, seed: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """`count` pairs of tokens (batch, length) and the tokens that follow them, int64; the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    offsets_in_window = torch.arange(length + 1)
    for _ in range(count):
        starts = torch.randint(len(text.tokens) - length, (batch, 1), generator=generator)
        windows = text.tokens[starts + offsets_in_window].long().to(device)
        yield windows[:, :-1].contiguous(), windows[:, 1:].contiguous()
