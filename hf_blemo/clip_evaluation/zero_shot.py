"""Zero-shot classification: mean of the prompts' embeddings, nearest class."""

from collections.abc import Callable, Sequence

import torch
from torch.nn import functional

from hf_blemo.clip_evaluation.standard_sets import PER_CLASS

CUTOFFS = (1, 5)


@torch.no_grad()
def class_embeddings(
    embed_texts: Callable[[list[str]], torch.Tensor], prompts: Sequence[Sequence[str]]
) -> torch.Tensor:
    """One embedding per class: the mean of its prompts' normalised embeddings, normalised.

    Args:
        embed_texts: texts -> (n, d) embeddings.
        prompts: of each of the C classes, at least one.

    Returns:
        (C, d), of length 1.

    Raises:
        ValueError: no class, or one without a prompt.

    Source: CLIP, arXiv 2103.00020, section 3.1.4 (prompt ensembling in embedding space).
    """
    if not prompts or not all(prompts):
        raise ValueError(f"expected at least one prompt for every class, found {[len(own) for own in prompts]}")
    embeds = functional.normalize(embed_texts([prompt for own in prompts for prompt in own]).float(), dim=-1)
    means = torch.stack([own.mean(0) for own in embeds.split([len(own) for own in prompts])])
    return functional.normalize(means, dim=-1)


def zero_shot_accuracy(
    image_embeds: torch.Tensor,
    class_embeds: torch.Tensor,
    labels: Sequence[int] | torch.Tensor,
    cutoffs: Sequence[int] = CUTOFFS,
    per_class: bool = False,
) -> dict[str, float]:
    """Share of images with the right class among the k nearest.

    Args:
        image_embeds: (I, d); normalised here.
        class_embeds: (C, d), of [`class_embeddings`].
        labels: (I,) class numbers.
        cutoffs: values of k; those above the number of classes are skipped.
        per_class: whether to average the recall of the classes that have images, too.

    Returns:
        `top_k` for every k, and `mean_per_class_recall` where asked for, between 0 and 1. Equal scores are ranked in
        the order of the classes.

    Raises:
        ValueError: sizes that do not match, a label that is not a class, or embeddings that are not finite.
    """
    truth = torch.as_tensor(labels, dtype=torch.int64, device=image_embeds.device)
    if image_embeds.dim() != 2 or class_embeds.dim() != 2 or image_embeds.shape[1] != class_embeds.shape[1]:
        raise ValueError(
            f"expected image_embeds (I, d) and class_embeds (C, d), found {tuple(image_embeds.shape)} and "
            f"{tuple(class_embeds.shape)}"
        )
    if truth.shape != (len(image_embeds),):
        raise ValueError(f"expected labels of {len(image_embeds)} images, found {tuple(truth.shape)}")
    if ((truth < 0) | (truth >= len(class_embeds))).any():
        raise ValueError(f"expected labels from 0 to {len(class_embeds) - 1}, found {sorted(set(truth.tolist()))}")
    scores = functional.normalize(image_embeds.float(), dim=-1) @ class_embeds.float().T
    if not scores.isfinite().all():
        raise ValueError("embeddings hold NaN or infinite values")
    order = scores.argsort(dim=1, descending=True, stable=True)
    ranks = (order == truth.unsqueeze(1)).int().argmax(1)
    found = {f"top_{k}": (ranks < k).float().mean().item() for k in cutoffs if k <= len(class_embeds)}
    if per_class:
        right = (ranks == 0).float()
        recalls = [right[truth == number].mean() for number in truth.unique()]
        found[PER_CLASS] = torch.stack(recalls).mean().item()
    return found
