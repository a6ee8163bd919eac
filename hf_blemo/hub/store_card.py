"""The card of a data set of teacher embeddings."""

import json
from collections.abc import Mapping
from typing import Any

from huggingface_hub import DatasetCardData

from .card_values import without_local_paths


def store_card(description: Mapping[str, Any]) -> str:
    """Content of the README.md of a store.

    Args:
        description: content of its `store.json`.

    Returns:
        Metadata and text; folders of the machine it was made on are cut off.

    Source: this project's choice.
    """
    made = without_local_paths(description)
    # No licence: the pairs' and the teachers' own decide, and neither is known here.
    data = DatasetCardData(
        tags=["hf_blemo", "clip", "embeddings", "distillation"],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]}],
    )
    teachers = [
        f"| `{name}` | {values['source']} | {values['dim']} | {values['image_size']} | {values['logit_scale']:.2f} |"
        for name, values in made["teachers"].items()
    ]
    sources = [
        f"| {values['data']} | {values['split']} | {values.get('revision') or '–'} | {values['pairs']:,} |"
        for values in made["sources"]
    ]
    lines = [
        "---",
        data.to_yaml(),
        "---",
        "",
        "# Teacher embeddings for distilling small CLIPs",
        "",
        "L2-normalised embeddings of image-caption pairs, float16. The pairs themselves are not in here: a row says",
        "which pair of its source was embedded, from which crop (left, top, width and height in pixels of the upright",
        "image, flipped or not) and with which caption. `hf_blemo` trains on them without loading the teacher:",
        "`training/distill_clip_rd.py --teacher_store THIS_REPOSITORY`, with the same data and augmentation.",
        "",
        "<!-- hf_blemo:begin results -->",
        "| teacher | model | width | image size | logit scale |",
        "|---|---|---:|---:|---:|",
        *teachers,
        "",
        "| pairs of | split | revision | number |",
        "|---|---|---|---:|",
        *sources,
        "",
        f"Augmentation: `{json.dumps(made['augmentation'])}`.",
        "<!-- hf_blemo:end results -->",
        "",
        "Columns: `source`, `row`, `variant`, `crop`, `flip`, `caption`, `broken` (a pair that could not be read; its",
        "embeddings are zeros) and, of every teacher, `NAME_image_embeds` and `NAME_text_embeds`.",
        "",
        "Embeddings of people's pictures and words can reveal what is in them; the licences and terms of the pairs",
        "and of the teachers apply to these embeddings as well.",
    ]
    return "\n".join(lines) + "\n"
