"""Steps of a distillation of ViT-T/16 from ViT-B/16 as ratios against a fair baseline of the same run.

Rows: a training step from stored teacher embeddings against one with the live teacher, both from stored images to
updated weights with the parts of `training/distill_clip_rd.py`; a training step of the student with captions of 12
tokens, trimmed to the longest of the batch against padded to 77. Weights are random. Repetitions of both sides are
interleaved, and medians reported.
"""

import itertools
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from measuring import interleaved, make_parser
from transformers import CLIPImageProcessorPil

from hf_blemo import CLIPRDConfig, CLIPRDDistiller, CLIPRDLoss, CLIPRDModel
from hf_blemo.built_in import synthetic_tokenizer
from hf_blemo.clip_rd_training.batches import PairBatches
from hf_blemo.clip_rd_training.embedding import embed
from hf_blemo.clip_rd_training.run import make_optimizer
from hf_blemo.clip_rd_training.settings import DistillationSettings, EmbeddingSettings
from hf_blemo.clip_rd_training.students import make_student
from hf_blemo.clip_rd_training.teachers import open_teacher
from hf_blemo.pairs.pair_sources import open_source

# CLIP's vocabulary size, independent of the tokenizer of the drawn captions.
FULL_VOCABULARY = {"text_config": {"vocab_size": 49408}}
AUGMENTATION = {"scale": [0.9, 1.0], "variants": 1}


def training_step(distiller: CLIPRDDistiller, optimizer: torch.optim.Optimizer, batch: dict) -> float:
    terms = distiller(batch)
    terms.loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return terms.loss.item()


def bench_stored_teacher(batch_size: int, rounds: int, folder: Path) -> None:
    teacher_folder, store_folder = str(folder / "teacher"), str(folder / "store")
    config = CLIPRDConfig.from_preset("vit-b-16", **FULL_VOCABULARY)
    CLIPRDModel(config).save_pretrained(teacher_folder)
    synthetic_tokenizer().save_pretrained(teacher_folder)
    size = {"height": 224, "width": 224}
    CLIPImageProcessorPil(size={"shortest_edge": 224}, crop_size=size).save_pretrained(teacher_folder)
    data = {
        "data": "synthetic",
        "synthetic": {"num_pairs": batch_size * 2, "image_size": 256},
        "augmentation": AUGMENTATION,
    }
    embed(EmbeddingSettings(output_dir=store_folder, teachers={"teacher": teacher_folder}, **data))

    def step_of(**taught: str) -> Callable[[], float]:
        settings = DistillationSettings(
            student_config=FULL_VOCABULARY,
            batch_size=batch_size,
            num_steps=rounds + 1,
            learning_rate=0.0,
            **data,
            **taught,
        )
        sources = [open_source(source) for source in settings.pair_sources()]
        teacher = open_teacher(settings)
        torch.manual_seed(0)
        student, processor = make_student(settings, teacher.processor)
        teacher.check(settings, sources, processor)
        batches = PairBatches(settings, sources, processor, teacher)
        distiller = CLIPRDDistiller(student, teacher.model, CLIPRDLoss(512), teacher_logit_scale=teacher.logit_scale)
        optimizer = make_optimizer(distiller, settings)
        steps = itertools.count()
        return lambda: training_step(distiller, optimizer, batches[next(steps)])

    sides = {"stored": step_of(teacher_store=store_folder), "live": step_of(teacher=teacher_folder)}
    times, losses = interleaved(sides, rounds)
    # The weights are frozen, so that both sides see the same student at every step.
    for mine, theirs in zip(*losses.values(), strict=True):
        assert abs(mine - theirs) < 2e-3 * abs(theirs), f"stored and live teacher disagree: {mine} and {theirs}"
    print(
        f"training step, ViT-T/16 from ViT-B/16, {batch_size} pairs: stored teacher {times['stored']:.2f} s, "
        f"live teacher {times['live']:.2f} s, ratio {times['stored'] / times['live']:.3f}",
        flush=True,
    )


def bench_trimmed_captions(batch_size: int, num_tokens: int, rounds: int) -> None:
    torch.manual_seed(0)
    student = CLIPRDModel(CLIPRDConfig.from_preset("vit-t-16"))
    distiller = CLIPRDDistiller(student, None, CLIPRDLoss(512), teacher_logit_scale=100.0)
    optimizer = make_optimizer(distiller, DistillationSettings("synthetic", learning_rate=0.0))
    config = student.config.text_config
    ids = torch.randint(1, 40_000, (batch_size, num_tokens))
    ids[:, -1] = config.eos_token_id
    full = torch.full((batch_size, 77), config.pad_token_id if config.pad_token_id is not None else 0)
    full[:, :num_tokens] = ids
    mask = torch.zeros_like(full)
    mask[:, :num_tokens] = 1
    common = {
        "pixel_values": torch.randn(batch_size, 3, 224, 224),
        "teacher_image_embeds": torch.randn(batch_size, 512),
        "teacher_text_embeds": torch.randn(batch_size, 512),
    }
    batches = {
        "trimmed": {**common, "input_ids": ids, "attention_mask": mask[:, :num_tokens]},
        "padded": {**common, "input_ids": full, "attention_mask": mask},
    }
    sides = {name: partial(training_step, distiller, optimizer, batch) for name, batch in batches.items()}
    times, losses = interleaved(sides, rounds)
    one, other = losses["trimmed"][0], losses["padded"][0]
    assert abs(one - other) < 1e-4 * abs(other), f"padding changes the loss: {losses}"
    print(
        f"training step of the student, {batch_size} pairs, captions of {num_tokens} tokens: trimmed "
        f"{times['trimmed']:.2f} s, padded to 77 {times['padded']:.2f} s, "
        f"ratio {times['trimmed'] / times['padded']:.3f}",
        flush=True,
    )


if __name__ == "__main__":
    parser = make_parser(__doc__, batch_size=(32, "pairs per step"), rounds=(5, "repetitions of each side"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        bench_stored_teacher(options.batch_size, options.rounds, Path(temporary))
    bench_trimmed_captions(options.batch_size, 12, options.rounds)
