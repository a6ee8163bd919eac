"""The loss as its formulas read, by N x N matrices and autograd: what its tiles are checked against."""

from typing import Any

import torch
from torch.nn import functional as F

from hf_blemo.clip_rd.losses_clip_rd import CLIPRDLoss, CLIPRDLossOutput


def formulas(
    loss: CLIPRDLoss,
    student_image: torch.Tensor,
    student_text: torch.Tensor,
    teacher_image: Any,
    teacher_text: Any,
    student_scale: Any,
    teacher_scale: Any,
    image_ids: torch.Tensor | None = None,
    text_ids: torch.Tensor | None = None,
) -> CLIPRDLossOutput:
    """What `loss` computes of the same arguments; of several teachers, every target is a mean of distributions."""
    given = (teacher_image, teacher_text, teacher_scale)
    images, texts, scales = (list(one) if isinstance(one, list) else [one] for one in given)
    images, texts = ([F.normalize(values, dim=1) for values in side] for side in (images, texts))
    student, count = (student_image, student_text), len(images)
    numbers = range(count)

    def mapped(layers: Any, values: torch.Tensor) -> list[torch.Tensor]:
        layers = layers if isinstance(layers, torch.nn.ModuleList) else [layers]
        return [F.normalize(values if layer is None else layer(values), dim=1) for layer in layers]

    own = [F.normalize(values, dim=1) for values in student]
    sides = [mapped(*pair) for pair in zip((loss.visual_projection, loss.text_projection), student, strict=True)]
    cross, vision, language = loss.multipliers()
    apart = torch.arange(len(own[0]), device=own[0].device)
    ids = [apart if one is None else one for one in (image_ids, text_ids)]
    same_image, same_text = (one[:, None] == one for one in ids)

    def contrastive(match: torch.Tensor, *products: torch.Tensor) -> torch.Tensor:
        targets = match.to(own[0].dtype) / match.sum(1, keepdim=True)
        return sum(F.cross_entropy(product, targets) for product in products) / len(products)

    def from_mean(targets: list[torch.Tensor], found: list[torch.Tensor]) -> torch.Tensor:
        """Mean over the student's sides of the divergence of each from the mean of the targets."""
        mean = torch.stack([target.softmax(1) for target in targets]).mean(0).detach()
        return sum(F.kl_div(x.log_softmax(1), mean, reduction="batchmean") for x in found) / len(found)

    def both(targets: list[torch.Tensor], found: list[torch.Tensor]) -> torch.Tensor:
        transposed = [[x.T for x in values] for values in (targets, found)]
        return (from_mean(targets, found) + from_mean(*transposed)) / 2

    match = same_image | same_text
    x = student_scale * own[0] @ own[1].T
    known = [scales[t] * images[t] @ texts[t].T for t in numbers]
    terms = {"task": contrastive(match, x, x.T), "hrd": both(known, [x])}
    if any(loss.weights[name] for name in loss.weights if name not in terms):
        of_images = [vision * sides[0][t] @ images[t].T for t in numbers]
        of_texts = [language * sides[1][t] @ texts[t].T for t in numbers]
        to_images = [cross * sides[1][t] @ images[t].T for t in numbers]
        to_texts = [cross * sides[0][t] @ texts[t].T for t in numbers]
        pairs = [(sides[k][t], (images, texts)[k][t]) for t in numbers for k in (0, 1)]
        terms |= {
            "fd": sum((one - other).square().mean() for one, other in pairs) / count,
            "icl": sum(contrastive(match, to_texts[t], to_images[t]) for t in numbers) / count,
            "vrd": both(of_texts, of_images),
            "vrd_image": sum(contrastive(same_image, y, y.T) for y in of_images) / count,
            "vrd_text": sum(contrastive(same_text, y, y.T) for y in of_texts) / count,
            "xrd": (both(to_texts, to_images) + both(to_images, to_texts)) / 2,
        }
    used = {name: terms[name] for name, weight in loss.weights.items() if weight}
    total = sum(loss.weights[name] * value for name, value in used.items())
    return CLIPRDLossOutput(loss=total, **{name: value.detach() for name, value in used.items()})
