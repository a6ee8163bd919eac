"""Encoders by Hub id: which family a model belongs to, and how it is loaded."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hf_blemo.encoders.clip_encoder import ClipEncoder
from hf_blemo.encoders.encoder import Encoder, EncoderSource
from hf_blemo.encoders.encoder_options import DTYPES, ENCODER_KEYS
from hf_blemo.encoders.image_encoder import ImageEncoder
from hf_blemo.encoders.spectrogram_encoder import SpectrogramEncoder
from hf_blemo.encoders.speech_encoder import SpeechEncoder
from hf_blemo.encoders.video_encoder import VideoEncoder, segment_length
from hf_blemo.quiet_loading import quiet_loading

# Weights that a checkpoint may lack: what only training uses, and a pooled output that is then not used.
_UNUSED_WEIGHTS = ("masked_spec_embed", "mask_token")
_POOLER = "pooler."
_COMMIT = re.compile(r"[0-9a-f]{40}")


def load_encoder(
    model_id: str,
    revision: str | None = None,
    extraction: Mapping[str, Any] | None = None,
    device: str | torch.device | None = None,
    dtype: str = "float32",
    batch_size: int | None = None,
    trust_remote_code: bool = False,
) -> Encoder:
    """Loads a pre-trained network as an encoder of clips.

    | model | family | a row is |
    |---|---|---|
    | CLIP and relatives, students of CLIP-RD | [`ClipEncoder`] | a frame's embedding |
    | any other image model | [`ImageEncoder`] | a frame's pooled output |
    | VideoMAE, TimeSformer, ViViT | [`VideoEncoder`] | a segment of 16 frames, or as many as the model takes |
    | HuBERT, WavLM, wav2vec 2.0, data2vec | [`SpeechEncoder`] | a step of 20 ms |
    | Whisper, AST, CLAP and other audio models | [`SpectrogramEncoder`] | a step of 20 ms of Whisper, else a window |

    Args:
        model_id: Hub id (`owner/name`), or a folder with the model and its processor.
        revision: commit, branch or tag of the Hub repository; the encoder remembers the commit it was.
        extraction: `frames_per_second` (image and video models: how often to look; every frame by default), `layer`
            (speech models: number of the hidden states; the last by default).
        device: where the model goes; a GPU where there is one.
        dtype: `float32`, `bfloat16` or `float16` (on a GPU); features are float32 all the same.
        batch_size: pieces at once; a default of the family's.
        trust_remote_code: whether code of the repository may run, if the model needs it; it must then be pinned by a
            commit.

    Returns:
        The encoder.

    Raises:
        FileNotFoundError: there is no such folder, repository or revision, or a file is missing from it.
        ValueError: the model is of no family above or lacks weights, or an option is unknown or has another value.

    Source: this project's choice.
    """
    where = model_id if revision is None else f"{model_id}, revision {revision}"
    if dtype not in DTYPES:
        raise ValueError(f"{where}: dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    if Path(model_id).exists():
        if revision is not None:
            raise ValueError(f"{model_id}: a folder has no revisions, found revision {revision!r}")
    elif model_id.count("/") != 1 or model_id.startswith((".", "/", "~")):
        raise FileNotFoundError(f"{model_id}: no such folder, and no id of a Hub repository (owner/name)")
    elif trust_remote_code and not _COMMIT.fullmatch(revision or ""):
        raise ValueError(f"{where}: remote code is only run at a commit, expected 40 hexadecimal digits as revision")
    options: dict[str, Any] = {} if revision is None else {"revision": revision}
    if trust_remote_code:
        options["trust_remote_code"] = True
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    with quiet_loading():
        config = _load("AutoConfig", model_id, where, options)
        family = _family(config, where)
        extraction = dict(extraction or {})
        for key in extraction:
            if key not in family.extraction_defaults:
                known = ", ".join(family.extraction_defaults) or "none"
                raise ValueError(f"{where}: {config.model_type} has no option {key!r} of extraction, it has: {known}")
        model, missing = _load(
            "AutoModel",
            model_id,
            where,
            {**options, "dtype": getattr(torch, dtype), "use_safetensors": True, "output_loading_info": True},
        )
        lacking = [
            key for key in sorted(missing["missing_keys"]) if _POOLER not in key and not key.endswith(_UNUSED_WEIGHTS)
        ]
        if lacking:
            raise ValueError(
                f"{where}: the checkpoint lacks {len(lacking)} weights, the first is {lacking[0]}; expected all"
            )
        if family in (SpeechEncoder, SpectrogramEncoder):
            processor = _load("AutoFeatureExtractor", model_id, where, options)
        else:
            processor = _load("AutoImageProcessor", model_id, where, {**options, "backend": "pil"})
    # The commit, where the model came from the Hub: a branch may be another one tomorrow.
    commit = getattr(model.config, "_commit_hash", None) or revision
    source = EncoderSource(model_id, None if Path(model_id).exists() else commit, extraction)
    settings: dict[str, Any] = {"batch_size": batch_size}
    if family is ImageEncoder:
        settings["has_pooler"] = not any(_POOLER in key for key in missing["missing_keys"])
    return family(model.eval().to(device), processor, source, **settings)


def load_encoders(entries: Mapping[str, Mapping[str, Any]], **options: Any) -> dict[str, Encoder]:
    """Loads several encoders, each model once.

    Args:
        entries: name -> `model_id` and, where wanted, `revision`, `extraction`, `batch_size`; other keys, as
            `config.encoders` has them, are left out.
        options: `device`, `dtype` and `trust_remote_code` of [`load_encoder`] for all.

    Returns:
        Name -> encoder.

    Raises:
        ValueError: an entry has no `model_id`; else as [`load_encoder`], naming the encoder.
        FileNotFoundError: as [`load_encoder`].

    Source: this project's choice.
    """
    encoders = {}
    for name, entry in entries.items():
        if not entry.get("model_id"):
            raise ValueError(f"encoder {name!r}: found no model_id, so nothing to make its features with")
        known = {key: entry[key] for key in ENCODER_KEYS if key in entry}
        try:
            encoder = load_encoder(**known, **options)
        except (ValueError, FileNotFoundError) as error:
            raise type(error)(f"encoder {name!r}: {error}") from error
        expected = entry.get("feature_size")
        if expected is not None and encoder.feature_size != expected:
            raise ValueError(
                f"encoder {name!r}: {entry['model_id']} gives features of width {encoder.feature_size}, expected "
                f"{expected}"
            )
        encoders[name] = encoder
    return encoders


def _family(config: Any, where: str) -> type[Encoder]:
    if hasattr(config, "conv_stride") and hasattr(config, "feat_extract_norm"):
        return SpeechEncoder
    if hasattr(config, "vision_config") and hasattr(config, "text_config"):
        return ClipEncoder
    if segment_length(config):
        return VideoEncoder
    from transformers import MODEL_MAPPING

    model_class: Any = MODEL_MAPPING.get(type(config), None)
    if isinstance(model_class, tuple):
        model_class = model_class[0]
    modalities = getattr(model_class, "input_modalities", ())
    modalities = (modalities,) if isinstance(modalities, str) else modalities
    if "image" in modalities:
        return ImageEncoder
    if "audio" in modalities:
        return SpectrogramEncoder
    raise ValueError(f"{where}: {config.model_type} is no model of images, videos or sound")


def _load(auto_class: str, model_id: str, where: str, options: dict[str, Any]) -> Any:
    import transformers

    try:
        return getattr(transformers, auto_class).from_pretrained(model_id, **options)
    except (OSError, ValueError, ImportError) as error:
        reason = " ".join(str(error).split())
        raise FileNotFoundError(f"{where}: {auto_class} found nothing to load: {reason}") from error
