"""Embeds image-caption pairs with one or several teachers, once for all students.

Example:
    accelerate launch training/embed_teacher.py --config training/configs/embed_vit_b_16.yaml --output_dir out/store
"""

from hf_blemo.clip_rd_training.settings import EmbeddingSettings
from hf_blemo.errors import one_line_errors, say
from hf_blemo.programs.settings import parse_settings


def main() -> None:
    settings = parse_settings(EmbeddingSettings, description=__doc__)
    from hf_blemo.clip_rd_training.embedding import embed

    result = embed(settings)
    say(
        f"{result['pairs']} pairs, {result['rows']} rows in {result['shards']} shards, {result['written']} of them "
        f"now; {result['broken']} of {result['seen']} could not be read: {settings.output_dir}"
    )


if __name__ == "__main__":
    with one_line_errors():
        main()
