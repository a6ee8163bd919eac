"""Cards and publishing: from a finished run to a model on the Hub that others can judge and load."""

from .card import card_metadata, card_template, merge_card, render_card, write_card
from .publish import files_to_publish, publish
from .push_model import push_model

__all__ = [
    "card_metadata",
    "card_template",
    "files_to_publish",
    "merge_card",
    "publish",
    "push_model",
    "render_card",
    "write_card",
]
