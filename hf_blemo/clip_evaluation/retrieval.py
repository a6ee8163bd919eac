"""Image-text retrieval by the standard protocol and by the one-caption protocol, without a matrix of all pairs."""

from collections.abc import Iterator, Sequence

import torch
from torch.nn import functional

CUTOFFS = (1, 5, 10)
# Scores held at once: 16 MiB in float32.
SCORES_AT_ONCE = 4 * 2**20


def retrieval_recall(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    image_of_text: Sequence[int] | torch.Tensor,
    cutoffs: Sequence[int] = CUTOFFS,
) -> dict[str, float]:
    """Recall of both directions by the standard protocol.

    Image to text: share of images with any own caption among the first k of all captions. Text to image: share of
    captions with their image among the first k of all images. Equal scores are ranked in the order of their numbers.

    Args:
        image_embeds: (I, d); normalised here.
        text_embeds: (T, d).
        image_of_text: (T,) number of the image that each caption describes; every image has at least one.
        cutoffs: values of k.

    Returns:
        `image_to_text_r@k` and `text_to_image_r@k` for every k, between 0 and 1.

    Raises:
        ValueError: sizes that do not match, an image without a caption, or embeddings that are not finite.

    Source: the protocol of Karpathy and Fei-Fei, CVPR 2015, as used since.
    """
    owners = torch.as_tensor(image_of_text, dtype=torch.int64, device=text_embeds.device)
    _check(image_embeds, text_embeds, owners)
    images = functional.normalize(image_embeds.float(), dim=-1)
    texts = functional.normalize(text_embeds.float(), dim=-1)
    result: dict[str, float] = {}
    for name, ranks in (
        ("image_to_text", _image_ranks(images, texts, owners)),
        ("text_to_image", _text_ranks(images, texts, owners)),
    ):
        result |= {f"{name}_r@{cutoff}": (ranks < cutoff).float().mean().item() for cutoff in cutoffs}
    return result


def one_caption_recall(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    image_of_text: Sequence[int] | torch.Tensor,
    cutoffs: Sequence[int] = CUTOFFS,
) -> dict[str, float]:
    """As [`retrieval_recall`] with only the first caption of every image, as CLIP-KD and CLIP-RD report it.

    Each name gets the prefix `one_caption_`. Not comparable with [`retrieval_recall`]: there are fewer captions to
    hit and fewer to confuse them with.
    """
    owners = torch.as_tensor(image_of_text, dtype=torch.int64)
    _check(image_embeds, text_embeds, owners.to(text_embeds.device))
    first: dict[int, int] = {}
    for position, owner in enumerate(owners.tolist()):
        first.setdefault(owner, position)
    chosen = torch.tensor([first[image] for image in range(len(image_embeds))], device=text_embeds.device)
    found = retrieval_recall(image_embeds, text_embeds[chosen], torch.arange(len(image_embeds)), cutoffs)
    return {f"one_caption_{name}": value for name, value in found.items()}


def _check(image_embeds: torch.Tensor, text_embeds: torch.Tensor, owners: torch.Tensor) -> None:
    if image_embeds.dim() != 2 or text_embeds.dim() != 2 or image_embeds.shape[1] != text_embeds.shape[1]:
        raise ValueError(
            f"expected image_embeds (I, d) and text_embeds (T, d), found {tuple(image_embeds.shape)} and "
            f"{tuple(text_embeds.shape)}"
        )
    if owners.shape != (len(text_embeds),):
        raise ValueError(f"expected image_of_text of {len(text_embeds)} captions, found {tuple(owners.shape)}")
    for name, values in (("image_embeds", image_embeds), ("text_embeds", text_embeds)):
        if not values.isfinite().all():
            raise ValueError(f"{name}: found NaN or infinite values")
    counts = torch.zeros(len(image_embeds), dtype=torch.int64, device=owners.device)
    inside = (owners >= 0) & (owners < len(image_embeds))
    if not inside.all():
        raise ValueError(f"image_of_text: found {int(owners[~inside][0])}, expected 0 to {len(image_embeds) - 1}")
    counts.index_add_(0, owners, torch.ones_like(owners))
    if (counts == 0).any():
        raise ValueError(f"image {int((counts == 0).nonzero()[0])} has no caption")


def _blocks(queries: torch.Tensor, candidates: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yields blocks of queries with their scores against all candidates."""
    size = max(1, SCORES_AT_ONCE // max(len(candidates), 1))
    for start in range(0, len(queries), size):
        rows = slice(start, min(start + size, len(queries)))
        yield rows, queries[rows] @ candidates.T


def _ranks_of(scores: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Returns the rank, from 0, of one chosen candidate per row."""
    own = scores.gather(1, chosen.unsqueeze(1))
    ahead = (scores > own).sum(1)
    places = torch.arange(scores.shape[1], device=scores.device)
    return ahead + ((scores == own) & (places < chosen.unsqueeze(1))).sum(1)


def _text_ranks(images: torch.Tensor, texts: torch.Tensor, owners: torch.Tensor) -> torch.Tensor:
    return torch.cat([_ranks_of(scores, owners[rows]) for rows, scores in _blocks(texts, images)])


def _image_ranks(images: torch.Tensor, texts: torch.Tensor, owners: torch.Tensor) -> torch.Tensor:
    """Returns the rank of the best of each image's own captions."""
    order = owners.argsort(stable=True)
    counts = torch.bincount(owners, minlength=len(images))
    starts = counts.cumsum(0) - counts
    longest = int(counts.max())
    offsets = torch.arange(longest, device=owners.device)
    # (I, most captions of an image), padded with the first one.
    own = order[starts.unsqueeze(1) + torch.where(offsets < counts.unsqueeze(1), offsets, 0)]
    ranks = []
    for rows, scores in _blocks(images, texts):
        # The first of equals, since captions are listed by rising number.
        best = scores.gather(1, own[rows]).argmax(1, keepdim=True)
        ranks.append(_ranks_of(scores, own[rows].gather(1, best).squeeze(1)))
    return torch.cat(ranks)
