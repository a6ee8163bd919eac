"""What tells inputs of one name apart: hashes of their content, cheap enough to be taken at the start of every run."""

import json
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

if TYPE_CHECKING:
    import torch


def fingerprint(*parts: Any) -> str:
    """Hashes content, alike on every machine: bytes, arrays and tensors, each with its type and shape; anything else
    as JSON.

    Returns:
        32 hexadecimal digits (XXH3, which notices accidents, not forgeries).
    """
    # Whoever has a tensor has imported the library.
    torch = sys.modules.get("torch")
    digest = xxhash.xxh3_128()
    for part in parts:
        if torch is not None and isinstance(part, torch.Tensor):
            digest.update(f"{part.dtype}{tuple(part.shape)}".encode())
            part = part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
        elif isinstance(part, np.ndarray):
            digest.update(f"{part.dtype}{part.shape}".encode())
            part = np.ascontiguousarray(part).reshape(-1).view(np.uint8).data
        elif not isinstance(part, bytes):
            part = json.dumps(part).encode()
        digest.update(part)
    return digest.hexdigest()


def weights_fingerprint(model: "torch.nn.Module") -> str:
    """Hashes the names and values of a model's weights."""
    return fingerprint(*(entry for item in sorted(model.state_dict().items()) for entry in item))
