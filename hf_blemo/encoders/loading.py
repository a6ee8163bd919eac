"""Loads pre-trained networks as encoders, from the Hub or a folder."""

import logging
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch

from hf_blemo.encoders.encoder import Encoder, EncoderMemoryError, EncoderSource
from hf_blemo.encoders.encoder_options import BACKENDS, ENCODER_KEYS, ONNX_DTYPES, TORCH_DTYPES
from hf_blemo.encoders.image_encoder import ClipEncoder, ImageEncoder
from hf_blemo.encoders.opensmile_encoder import OpenSmileEncoder, load_opensmile
from hf_blemo.encoders.spectrogram_encoder import SpectrogramEncoder
from hf_blemo.encoders.speech_encoder import SpeechEncoder
from hf_blemo.encoders.video_encoder import FramesOfVideos, VideoEncoder
from hf_blemo.errors import check_extra, one_line
from hf_blemo.loading import OPENSMILE, load_part, local_path, quiet_loading, refuse_code_of_others

logger = logging.getLogger(__name__)

# Weights that a checkpoint may lack: those that only training or only texts use, and the pooled output, which is then
# not used.
_UNUSED_WEIGHTS = ("masked_spec_embed", "mask_token")
_TEXT_SIDE = ("text_model.", "text_projection.")
_POOLER = "pooler."
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def load_encoder(
    model_id: str,
    revision: str | None = None,
    extraction: Mapping[str, Any] | None = None,
    device: str | torch.device | None = None,
    dtype: str = "float32",
    batch_size: int | None = None,
    trust_remote_code: bool = False,
    defaults: Mapping[str, Any] | None = None,
    backend: str = "eager",
) -> Encoder:
    """Loads a pre-trained network as an encoder of clips.

    | model | family | a row is |
    |---|---|---|
    | CLIP and relatives, students of CLIP-RD | [`ClipEncoder`] | a frame's embedding |
    | any other image model | [`ImageEncoder`] | a frame's pooled output |
    | VideoMAE, V-JEPA 2, TimeSformer, ViViT | [`VideoEncoder`] | a segment of as many frames as the model takes |
    | HuBERT, WavLM, wav2vec 2.0, data2vec | [`SpeechEncoder`] | a step of 20 ms |
    | Whisper, AST, CLAP and other audio models | [`SpectrogramEncoder`] | a step of 20 ms of Whisper, else a window |
    | `opensmile:eGeMAPSv02` and other sets | [`OpenSmileEncoder`] | a window, or a step of 10 ms |

    Args:
        model_id: Hub id (`owner/name`), a folder with the model and its processor, or `opensmile:SET`.
        revision: commit, branch or tag of the Hub repository; the encoder remembers the commit. If a repository has
            its weights only as a pickle and no revision is given, the Hub's conversion to safetensors is loaded.
        extraction: `frames_per_second` (image and video models: frames to sample; default: every frame),
            `image_backend` (image and video models: how to resize; `pil`, the default, or `torchvision`, which is
            several times as fast and differs by one level of 255 in few pixels), `layer` or `layers` (all: hidden
            states to take instead of the model's own output, 0 for what enters the first block; a number, or a range
            such as `6-12` for their mean, or a list such as `[6, 9, 12]` for all side by side), `level` (openSMILE:
            `functionals`, the default, or `lld`), `window_seconds` and `hop_seconds` (functionals; default: 2 and 1),
            `crop` (image and video models: `face` for squares around a face instead of whole frames), and with it
            `person` (`largest`, the default, `central`, `all`, or the number of one), `margin` (at each side, by its
            longer side; 0.25), `hold` (seconds for which the place of a lost face serves; 1) and `detector` (an ONNX
            file of YuNet or CenterFace, or the Hub id of one, optionally with `@` and a revision; OpenCV's YuNet).
        device: device of the model (default: a GPU if there is one).
        dtype: `float32`, `bfloat16` or `float16` (on a GPU), or `int8` (by the backend `onnxruntime`); features are
            always float32.
        batch_size: pieces at once (default: the family's).
        trust_remote_code: run code of the repository if the model needs it; a commit must then pin the code.
        defaults: options used where `extraction` has none, if the model's family knows them.
        backend: what runs the network: `eager` torch; `compile`, torch's compiler; or `onnxruntime` (extra `onnx`),
            on the CPU, which exports the network once and keeps the graph in `huggingface_hub`'s cache of assets.

    Returns:
        The encoder.

    Raises:
        FileNotFoundError: there is no such folder, repository or revision, or a file is missing from it.
        ValueError: the model belongs to no family above or lacks weights, or an option or its value is unknown.
        EncoderMemoryError: the device is out of memory for the model.
        MissingExtraError: openSMILE is asked for and not installed, or the backend's packages are not.
    """
    from transformers import AutoConfig, AutoFeatureExtractor, AutoModel

    where = model_id if revision is None else f"{model_id}, revision {revision}"
    if backend not in BACKENDS:
        raise ValueError(f"{where}: backend {backend!r} is not one of {', '.join(BACKENDS)}")
    dtypes = ONNX_DTYPES if backend == "onnxruntime" else TORCH_DTYPES
    if dtype not in dtypes:
        raise ValueError(f"{where}: dtype {dtype!r} is not one of {', '.join(dtypes)}, those of backend {backend}")
    if extraction is not None and not isinstance(extraction, Mapping):
        raise ValueError(f"{where}: extraction must be options by name, found {extraction!r}")
    extraction = dict(extraction or {})
    if model_id.startswith(OPENSMILE):
        extraction = _options(OpenSmileEncoder, "openSMILE", extraction, defaults, where)
        return load_opensmile(model_id, revision, extraction, batch_size)
    is_folder = local_path(model_id, revision=revision) is not None
    if not is_folder and trust_remote_code and not _COMMIT.fullmatch(revision or ""):
        raise ValueError(f"{where}: remote code is only run at a commit, expected 40 hexadecimal digits as revision")
    # Without this argument, transformers asks on the terminal.
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if device is None:
        device = "cuda" if torch.cuda.is_available() and backend != "onnxruntime" else "cpu"
    if backend == "onnxruntime":
        check_extra("onnx", f"{where}: backend onnxruntime")
        if torch.device(device).type != "cpu":
            raise ValueError(
                f"{where}: backend onnxruntime runs on the CPU, found device {device}; leave it out there"
            )
    with quiet_loading():
        if trust_remote_code:
            refuse_code_of_others(model_id, where, revision)
        # Pin the commit of a model on the Hub, since a branch may move at any moment.
        commit = None if is_folder else _commit(model_id, revision)
        options["revision"] = commit or revision
        config = load_part(AutoConfig, model_id, where, **options)
        family = _family(config, _modalities(config, model_id, options), where)
        extraction = _options(family, config.model_type, extraction, defaults, where)
        weights = {
            "dtype": torch.float32 if dtype == "int8" else getattr(torch, dtype),
            "use_safetensors": True,
            "output_loading_info": True,
        }
        try:
            model, report = load_part(AutoModel, model_id, where, **options, **weights)
        except FileNotFoundError:
            converted = None if commit is None or revision is not None else _converted(model_id, commit)
            if converted is None:
                raise
            options["revision"] = commit = converted
            model, report = load_part(AutoModel, model_id, where, **options, **weights)
        _check_weights(report["missing_keys"], where)
        for key, parameter in model.named_parameters():
            if key in report["missing_keys"]:
                # Unused, but drawn by chance, and part of what tells models apart.
                parameter.data.zero_()
        if family in (SpeechEncoder, SpectrogramEncoder):
            processor = load_part(AutoFeatureExtractor, model_id, where, **options)
        else:
            processor = _image_processor(family, model_id, where, options)
    settings: dict[str, Any] = {"batch_size": batch_size}
    if family is ImageEncoder:
        settings["has_pooler"] = not any(_POOLER in key for key in report["missing_keys"])
    source = EncoderSource(model_id, commit, extraction)
    try:
        encoder = family(model.eval().to(device), processor, source, **settings)
    except torch.OutOfMemoryError as error:
        raise EncoderMemoryError(f"{where}: {device} is out of memory for the model") from error
    # An untested architecture may fail its trial input in any of these ways.
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError) as error:
        message = f"{where}: {config.model_type} does not work as {family.__name__}: {one_line(error)}"
        raise ValueError(message) from error
    if backend != "eager":
        # The exporter takes long to import.
        from hf_blemo.encoders.backends import use_backend

        use_backend(encoder, backend, int8=dtype == "int8")
    return encoder


def load_encoders(entries: Mapping[str, Mapping[str, Any]], **options: Any) -> dict[str, Encoder]:
    """Loads several encoders.

    Args:
        entries: name -> `model_id` and optionally `revision`, `extraction`, `batch_size`, `backend`; other keys
            of `config.encoders` are ignored.
        options: `device`, `dtype`, `trust_remote_code`, `defaults` and `backend` of [`load_encoder`] for all.

    Returns:
        Name -> encoder.

    Raises:
        ValueError: an entry has no `model_id`, or no encoder knows one of the `defaults`; else as [`load_encoder`],
            naming the encoder.
        FileNotFoundError: as [`load_encoder`].
    """
    encoders = {}
    for name, entry in entries.items():
        if not entry.get("model_id"):
            raise ValueError(f"encoder {name!r}: found no model_id, expected the model that extracts its features")
        known = {key: entry[key] for key in ENCODER_KEYS if key in entry}
        try:
            encoder = load_encoder(**{**options, **known})
        except (ValueError, FileNotFoundError) as error:
            raise type(error)(f"encoder {name!r}: {error}") from error
        expected = entry.get("feature_size")
        if expected is not None and encoder.feature_size != expected:
            found = f"{entry['model_id']} gives features of width {encoder.feature_size}"
            raise ValueError(f"encoder {name!r}: {found}, expected {expected}")
        encoders[name] = encoder
    for key in options.get("defaults") or {}:
        if not any(key in encoder.extraction_defaults for encoder in encoders.values()):
            raise ValueError(f"{key}: found for {', '.join(encoders)}, none of which knows it")
    return encoders


def _image_processor(family: type[Encoder], model_id: str, where: str, options: Mapping[str, Any]) -> Any:
    from transformers import AutoImageProcessor

    try:
        return load_part(AutoImageProcessor, model_id, where, backend="pil", **options)
    except FileNotFoundError as error:
        if family is not VideoEncoder:
            raise
        try:
            return load_part(FramesOfVideos, model_id, where, **options)
        except FileNotFoundError as other:
            if isinstance(other.__cause__, ValueError):
                raise ValueError(f"{where}: {other.__cause__}") from other
            # There is neither; the processor of images is the usual one.
            raise error from other


def _options(
    family: type[Encoder], kind: str, extraction: Mapping[str, Any], defaults: Mapping[str, Any] | None, where: str
) -> dict[str, Any]:
    """Options of an encoder, with the defaults that its family knows."""
    for key in extraction:
        if key not in family.extraction_defaults:
            known = ", ".join(family.extraction_defaults)
            raise ValueError(f"{where}: {kind} has no option {key!r} of extraction, it has: {known}")
    known_defaults = {key: value for key, value in (defaults or {}).items() if key in family.extraction_defaults}
    return {**known_defaults, **extraction}


def _family(config: Any, modalities: Collection[str], where: str) -> type[Encoder]:
    if hasattr(config, "vision_config") and hasattr(config, "text_config"):
        return ClipEncoder
    if VideoEncoder.segment_length(config) and ("image" in modalities or "video" in modalities):
        return VideoEncoder
    if "image" in modalities:
        return ImageEncoder
    if "audio" in modalities:
        return SpeechEncoder if hasattr(config, "conv_stride") else SpectrogramEncoder
    raise ValueError(f"{where}: {config.model_type} is not a model of images, videos or sound")


def _modalities(config: Any, model_id: str, options: Mapping[str, Any]) -> tuple[str, ...]:
    """The kind of input of a config's model, by its class."""
    from transformers import MODEL_MAPPING
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    model_class: Any = MODEL_MAPPING.get(type(config), None)
    own_code = (getattr(config, "auto_map", None) or {}).get("AutoModel")
    if model_class is None and own_code and options["trust_remote_code"]:
        model_class = get_class_from_dynamic_module(own_code, model_id, revision=options["revision"])
    if isinstance(model_class, tuple):
        model_class = model_class[0]
    found = getattr(model_class, "input_modalities", ())
    return (found,) if isinstance(found, str) else tuple(found)


def _check_weights(missing: Iterable[str], where: str) -> None:
    """Refuses a checkpoint without all weights, since the features would come from random ones."""
    lacking = [
        key
        for key in sorted(missing)
        if _POOLER not in key and not key.startswith(_TEXT_SIDE) and not key.endswith(_UNUSED_WEIGHTS)
    ]
    if lacking:
        found = f"the checkpoint lacks {len(lacking)} weights, the first is {lacking[0]}"
        raise ValueError(f"{where}: {found}; expected all")


def _commit(model_id: str, revision: str | None) -> str | None:
    """The current commit of a revision, from the Hub or its cache; None if neither knows it."""
    from huggingface_hub import resolve_revision
    from huggingface_hub.errors import HfHubHTTPError, RevisionResolutionError

    try:
        return resolve_revision(model_id, revision=revision).resolved
    # Loading a file gives a better error.
    except (HfHubHTTPError, RevisionResolutionError, OSError, ValueError) as error:
        logger.info("%s: found no commit of revision %s: %s", model_id, revision, error)
        return None


def _converted(model_id: str, commit: str) -> str | None:
    """The commit to which the Hub's converter has added safetensors; None if there is none."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError
    from transformers.safetensors_conversion import auto_conversion

    api = HfApi()
    try:
        if not any(api.file_exists(model_id, name, revision=commit) for name in _PICKLES):
            return None
        _, reference, _ = auto_conversion(model_id)
        return api.model_info(model_id, revision=reference).sha
    # No connection, or no answer from the converter.
    except (HfHubHTTPError, OSError, ValueError) as error:
        logger.info("%s: found no conversion of its weights to safetensors: %s", model_id, error)
        return None
