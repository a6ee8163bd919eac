"""Zero-shot classification: class names in templates, mean of the prompts' embeddings, nearest class."""

from collections.abc import Callable, Sequence

import torch
from torch.nn import functional

CUTOFFS = (1, 5)
PROMPTS_AT_ONCE = 256


@torch.no_grad()
def class_embeddings(
    embed_texts: Callable[[list[str]], torch.Tensor], class_names: Sequence[str], templates: Sequence[str]
) -> torch.Tensor:
    """One embedding per class: the mean of its prompts' normalised embeddings, normalised.

    Args:
        embed_texts: texts -> (n, d) embeddings.
        class_names: C names.
        templates: prompts with `{}` where the name goes.

    Returns:
        (C, d), of length 1.

    Raises:
        ValueError: no class, no template, or a template without `{}`.

    Source: CLIP, arXiv 2103.00020, section 3.1.4 (prompt ensembling in embedding space).
    """
    if not class_names or not templates:
        raise ValueError(f"expected classes and templates, found {len(class_names)} and {len(templates)}")
    for template in templates:
        if template.count("{}") != 1:
            raise ValueError(f"template {template!r}: expected one {{}} where the class name goes")
    return prompt_embeddings(
        embed_texts, [[template.replace("{}", name) for template in templates] for name in class_names]
    )


@torch.no_grad()
def prompt_embeddings(
    embed_texts: Callable[[list[str]], torch.Tensor], prompts: Sequence[Sequence[str]]
) -> torch.Tensor:
    """One embedding per class from prompts of its own, made as in [`class_embeddings`].

    Args:
        embed_texts: texts -> (n, d) embeddings.
        prompts: of every class, at least one each.

    Returns:
        (C, d), of length 1.

    Raises:
        ValueError: a class without a prompt.
    """
    if not prompts or not all(prompts):
        raise ValueError(f"expected at least one prompt of every class, found {[len(own) for own in prompts]}")
    texts = [prompt for own in prompts for prompt in own]
    parts = [
        functional.normalize(embed_texts(texts[start : start + PROMPTS_AT_ONCE]).float(), dim=-1)
        for start in range(0, len(texts), PROMPTS_AT_ONCE)
    ]
    means = torch.stack([own.mean(0) for own in torch.cat(parts).split([len(own) for own in prompts])])
    return functional.normalize(means, dim=-1)


def zero_shot_accuracy(
    image_embeds: torch.Tensor,
    class_embeds: torch.Tensor,
    labels: Sequence[int] | torch.Tensor,
    cutoffs: Sequence[int] = CUTOFFS,
) -> dict[str, float]:
    """Share of images whose class is among the first k.

    Args:
        image_embeds: (I, d); normalised here.
        class_embeds: (C, d), of [`class_embeddings`].
        labels: (I,) class numbers.
        cutoffs: the values of k; one above the number of classes is left out.

    Returns:
        `top_k` for every k, between 0 and 1. Equal scores stand in the order of the classes.

    Raises:
        ValueError: sizes that do not fit, a label that is no class, or embeddings that are not finite.
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
    return {f"top_{k}": (ranks < k).float().mean().item() for k in cutoffs if k <= len(class_embeds)}
