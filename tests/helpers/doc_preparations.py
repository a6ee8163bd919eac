"""Prepares what a page's program needs: folders, and models on the Hub."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from clip_files import gray_pictures, write_clip
from pair_files import picture
from tiny_encoders import save_encoder
from tiny_models import save_tiny_model
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPConfig, CLIPModel, CLIPProcessor, CLIPTokenizer, Dinov2Config, Dinov2Model
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from hf_blemo import RankAwareFusionConfig, RankAwareFusionModel, RankAwareFusionProcessor
from hf_blemo.built_in import SYNTHETIC_ENCODERS, make_synthetic_blends

CLIP_VOCABULARY = 49408


def save_fusion(folder: Path, top_n: int = 2) -> None:
    """Saves an untrained fusion of the encoders face and voice of the built-in data."""
    torch.manual_seed(0)
    encoders = {name: SYNTHETIC_ENCODERS[name] for name in ("face", "voice")}
    config = RankAwareFusionConfig(encoders=encoders, top_n=top_n, hidden_size=16)
    RankAwareFusionModel(config).save_pretrained(folder)
    RankAwareFusionProcessor(config.encoders).save_pretrained(folder)


def write_features(
    folder: Path, num_clips: int, encoders: tuple[str, ...], named: bool = True, **options: Any
) -> None:
    """Writes `ENCODER/CLIP.npy` of built-in clips, whose names carry their labels or do not."""
    for number, row in enumerate(make_synthetic_blends(num_clips=num_clips, missing=0.0, **options)):
        for encoder in encoders:
            path = folder / encoder / f"{row['clip'] if named else f'recording{number}'}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, np.asarray(row["features"][encoder], dtype=np.float32))


def write_pictures(folder: Path, count: int = 8) -> None:
    """Writes pictures and their captions as a folder of images."""
    folder.mkdir(parents=True)
    lines = ["file_name,caption"]
    for number in range(count):
        picture(number).save(folder / f"{number}.png")
        lines.append(f"{number}.png,picture number {number}")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")


def save_teacher(folder: Path, layers: int = 1) -> None:
    """Saves a CLIP with few weights that takes the images and tokens of OpenAI's."""
    torch.manual_seed(0)
    symbols = sorted(ByteLevel.alphabet())
    tokens = [*symbols, *(f"{symbol}</w>" for symbol in symbols)]
    tokens += [f"<unused{number}>" for number in range(CLIP_VOCABULARY - len(tokens) - 2)]
    vocabulary = {token: index for index, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)
    tower = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": layers, "num_attention_heads": 1}
    config = CLIPConfig(
        vision_config={**tower, "image_size": 224, "patch_size": 112},
        text_config={**tower, "vocab_size": CLIP_VOCABULARY, "max_position_embeddings": 77},
        projection_dim=512,
    )
    CLIPModel(config).save_pretrained(folder)
    CLIPProcessor(CLIPImageProcessorPil(), tokenizer).save_pretrained(folder)


def fusion_and_features(hub: Any, work: Path, scratch: Path) -> None:
    """A fusion in the folder of a training and on the Hub, and labelled features of its encoders and of one more."""
    save_fusion(work / "out" / "fusion")
    hub.put("you/fusion", work / "out" / "fusion")
    write_features(work / "features", 60, ("face", "voice", "breath"))


def tables_of_strangers(hub: Any, work: Path, scratch: Path) -> None:
    """A fusion, tables of seven classes and of votes, and vectors of sentences."""
    save_fusion(work / "out" / "fusion")
    generator = np.random.default_rng(0)
    widths = {"face": 6, "voice": 4, "text": 8}
    names = ["afraid", "angry", "bored", "calm", "happy", "sad", "surprised"]
    centres = {encoder: 1.5 * generator.normal(size=(7, width)) for encoder, width in widths.items()}
    columns = ",".join(f"{encoder}.{place}" for encoder in ("face", "voice") for place in range(widths[encoder]))
    classes, votes = [f"clip,emotion,actor,{columns}"], [f"clip,votes.calm,votes.tense,votes.tired,{columns}"]
    texts = []
    for number in range(140):
        place = number % 7
        found = {encoder: centres[encoder][place] + generator.normal(size=width) for encoder, width in widths.items()}
        classes.append(f"c{number},{names[place]},actor{number // 14},{_joined(found)}")
        texts.append(found["text"])
        shares = generator.dirichlet(np.full(3, 0.7))
        mixed = {encoder: shares @ centres[encoder][:3] + 0.3 * generator.normal(size=width)
                 for encoder, width in widths.items()}  # fmt: skip
        counts = generator.multinomial(10, shares)
        votes.append(f"v{number},{','.join(map(str, counts))},{_joined(mixed)}")
    (work / "clips.csv").write_text("\n".join(classes) + "\n")
    (work / "votes.csv").write_text("\n".join(votes) + "\n")
    np.save(work / "sentences.npy", np.array(texts, dtype=np.float32))


def _joined(found: dict[str, np.ndarray]) -> str:
    return ",".join(f"{value:.5f}" for encoder in ("face", "voice") for value in found[encoder])


def student_and_pictures(hub: Any, work: Path, scratch: Path) -> None:
    """A student, a folder of captioned pictures, and one more picture."""
    save_tiny_model("clip_rd", work / "out" / "student")
    write_pictures(work / "pictures")
    picture(99).save(work / "picture.png")


def own_student(hub: Any, work: Path, scratch: Path) -> None:
    """A student of own pairs, and a new picture."""
    save_tiny_model("clip_rd", work / "out" / "own_student")
    picture(99).save(work / "new.jpg")


def both_families(hub: Any, work: Path, scratch: Path) -> None:
    """All of the above."""
    fusion_and_features(hub, work, scratch)
    student_and_pictures(hub, work, scratch)


def two_domains(hub: Any, work: Path, scratch: Path) -> None:
    """Features with labels, and shifted ones without."""
    fusion_and_features(hub, work, scratch)
    write_features(work / "new_features", 40, ("face", "voice", "breath"), named=False, seed=5, domain="target")


def teacher_and_pictures(hub: Any, work: Path, scratch: Path) -> None:
    """A teacher and a student to start from on the Hub, and captioned pictures."""
    save_teacher(scratch / "teacher")
    for name in ("openai/clip-vit-base-patch16", "wkcn/TinyCLIP-ViT-8M-16-Text-3M-YFCC15M"):
        hub.put(name, scratch / "teacher")
    write_pictures(work / "pictures")


def pictures_alone(hub: Any, work: Path, scratch: Path) -> None:
    """A teacher on the Hub, and pictures without captions, in folders of their own."""
    save_teacher(scratch / "teacher")
    hub.put("openai/clip-vit-base-patch16", scratch / "teacher")
    for number in range(16):
        folder = work / ("pictures" if number < 8 else "new_pictures") / str(number % 2)
        folder.mkdir(parents=True, exist_ok=True)
        picture(number).save(folder / f"{number}.png")


def starts(hub: Any, work: Path, scratch: Path) -> None:
    """A deep teacher, a student to start from and an image tower on the Hub, and captioned pictures."""
    for name, layers in (("openai/clip-vit-base-patch16", 12), ("wkcn/TinyCLIP-ViT-8M-16-Text-3M-YFCC15M", 1)):
        save_teacher(scratch / name, layers)
        hub.put(name, scratch / name)
    write_pictures(work / "pictures")
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 12, "num_attention_heads": 1, "mlp_ratio": 1}
    Dinov2Model(Dinov2Config(**sizes, image_size=224, patch_size=112)).save_pretrained(scratch / "tower")
    CLIPImageProcessorPil().save_pretrained(scratch / "tower")
    hub.put("facebook/dinov2-small", scratch / "tower")


def trained_folder(hub: Any, work: Path, scratch: Path) -> None:
    """A fusion in the folder that fine-tuning leaves, and features."""
    save_fusion(work / "out" / "fine-tuned")
    write_features(work / "features", 60, ("face", "voice"))


def trained_fusion(hub: Any, work: Path, scratch: Path) -> None:
    """What `hf-blemo train` leaves."""
    save_fusion(work / "out" / "fusion")


def folders_of_clips(hub: Any, data: Path) -> None:
    """Encoders on the Hub, training clips with their folds, and 594 test clips that are one file."""
    for kind, name in (("clip", "openai/clip-vit-base-patch16"), ("wavlm", "microsoft/wavlm-base")):
        hub.put(name, save_encoder(kind, data.parent / "encoders" / kind))
    (data / "train").mkdir(parents=True)
    (data / "test").mkdir()
    rows = ["filename,fold"]
    for number in range(12):
        label = ("hap_int1", "neu_sit2", "mix_ang_sad_70_30", "mix_disg_fea_50_50")[number % 4]
        rows.append(f"A{number // 4 + 1}_{label}_ver1,{number // 4}")
        pictures = gray_pictures(range(20 * (number % 4), 20 * (number % 4) + 4))
        write_clip(data / "train" / f"{rows[-1].partition(',')[0]}.mov", pictures=pictures)
    (data / "train" / "train_metadata.csv").write_text("\n".join(rows))
    first = write_clip(data / "test" / "test_0001.mov", audio=None, pictures=gray_pictures([10, 20]))
    for number in range(2, 595):
        (data / "test" / f"test_{number:04d}.mov").hardlink_to(first)


def student_and_clip(hub: Any, work: Path, scratch: Path) -> None:
    """A student, and a clip."""
    save_tiny_model("clip_rd", work / "out" / "student")
    write_clip(work / "clip.mp4")
