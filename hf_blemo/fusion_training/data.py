"""Loads the data sets of a run."""

import logging
import re
from collections.abc import Mapping
from typing import Any

import datasets
import numpy as np

from hf_blemo import built_in, feature_sets
from hf_blemo.errors import check_known, did_you_mean
from hf_blemo.fusion_training.settings import ExperimentSettings
from hf_blemo.hub.encoder_models import PROVENANCE_FILE, read_provenance
from hf_blemo.hub.feature_sets import load_hub_features
from hf_blemo.loading import BUILT_IN_DATA, local_path
from hf_blemo.rank_aware_fusion.configuration_rank_aware_fusion import RankAwareFusionConfig, label_names
from hf_blemo.rank_aware_fusion.label_space_rank_aware_fusion import UNLABELLED, LabelSpace, same_space

logger = logging.getLogger(__name__)

# The first that fits an encoder's name.
_MODALITY_BY_NAME = (
    ("audiovisual", r"hicmae|audiovisual"),
    ("audio", r"wavlm|hubert|wav2vec|whisper|egemaps|opensmile|mfcc|audio|acoustic|speech|voice|sound"),
    ("text", r"bert|gpt|(?<![a-z])(text|word|transcript)"),
)


def load_data(source: str, synthetic: Mapping[str, Any]) -> datasets.Dataset:
    """Loads a data set: `synthetic`, a path (built data set, table, folder of feature files) or a Hub id."""
    if source == built_in.SYNTHETIC:
        return built_in.load("blends", synthetic)
    where = f"data {source!r}"
    if local_path(source, where, names=[BUILT_IN_DATA]) is not None:
        return feature_sets.load_features(source)
    return load_hub_features(source, where)


def model_config(data: datasets.Dataset, settings: ExperimentSettings) -> RankAwareFusionConfig:
    """The model's config for a data set and the settings of a run.

    Raises:
        ValueError: an unknown or invalid setting of the model, or one that names other labels than the data has.
    """
    known = {*RankAwareFusionConfig.__annotations__, "id2label", "num_labels"} - {"encoders", "encoder_order"}
    check_known("model", settings.model, sorted(known))
    space, kind = feature_sets.label_space(data)
    names = label_names(settings.model.get("id2label", dict(enumerate(space.names))))
    if tuple(names) != space.names:
        same_space(LabelSpace(names), space, "the setting model.id2label", "the data")
    labels = {
        "id2label": dict(enumerate(names)),
        "blend_percents": [list(split) for split in space.blend_percents],
        "unblended": list(space.unblended),
        "label_kind": kind,
    }
    given = {key: value for key, value in settings.model.items() if key != "id2label"}
    config = RankAwareFusionConfig(encoders=_encoder_options(data, settings), **{**labels, **given})
    same_space(config.label_space, space, "the setting model", "the data")
    return config


def with_unlabelled(labelled: datasets.Dataset, unlabelled: datasets.Dataset) -> datasets.Dataset:
    """Appends rows whose labels are hidden, for domain adaptation, with the columns and types of the source.

    The target's labels, folds and groups, if any, become -100, -1 and none, whatever they name.
    """
    widths, found = feature_sets.encoder_widths(labelled), feature_sets.encoder_widths(unlabelled)
    common = set(widths) & set(found)
    if not common:
        raise ValueError(
            f"unlabelled_data: found the encoders {', '.join(found)}, expected some of {', '.join(widths)}"
        )
    for name in sorted(common):
        if widths[name] != found[name]:
            raise ValueError(
                f"unlabelled_data: encoder {name!r} is {found[name]} wide, expected {widths[name]} as in the data"
            )
    columns = ["clip", "features", "labels", "fold", *({"group"} & set(labelled.column_names))]
    source = labelled.select_columns(columns)
    hidden = unlabelled.select_columns(["clip", "features"])
    count = len(hidden)
    space, kind = feature_sets.label_space(labelled)
    hidden = hidden.add_column("labels", [[UNLABELLED] * len(space.names)] * count, feature=source.features["labels"])
    hidden = hidden.add_column("fold", np.full(count, -1).tolist(), feature=source.features["fold"])
    if "group" in columns:
        hidden = hidden.add_column("group", [None] * count, feature=source.features["group"])
    both = datasets.concatenate_datasets([source, hidden.cast(source.features)])
    return feature_sets.with_label_space(both, space, kind)


def _encoder_options(data: datasets.Dataset, settings: ExperimentSettings) -> dict[str, dict]:
    """Entries of `config.encoders` from the data and the settings; settings win."""
    widths = feature_sets.encoder_widths(data)
    known = {name: entry for name, entry in read_provenance(settings.data).items() if name in widths}
    for name in list(known):
        size = known[name].pop("feature_size", widths[name])
        if size != widths[name]:
            logger.warning(
                "%s says that encoder %r is %s wide, the data that it is %d: left out where its features come from",
                PROVENANCE_FILE, name, size, widths[name],
            )  # fmt: skip
            del known[name]
    chosen = list(widths) if settings.encoders is None else settings.encoders
    for name in (*chosen, *settings.encoder_options):
        if name not in widths:
            near = did_you_mean(name, widths)
            raise ValueError(f"unknown encoder {name!r}: the data has {', '.join(widths)}{near}")
    return {
        name: {
            "feature_size": widths[name],
            "modality": _modality_of(name),
            "pooling": settings.pooling,
            "transform": settings.transform,
            **known.get(name, {}),
            **settings.encoder_options.get(name, {}),
        }
        for name in chosen
    }


def _modality_of(name: str) -> str:
    """Modality of an encoder, as the built-in data or the name says; else `video`."""
    if name in built_in.SYNTHETIC_ENCODERS:
        return built_in.SYNTHETIC_ENCODERS[name]["modality"]
    return next((modality for modality, part in _MODALITY_BY_NAME if re.search(part, name.lower())), "video")
