"""A tokenizer of whole words, for captions whose words are all known."""

from collections.abc import Iterable

from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = ("<pad>", "<unk>", "<start>", "<end>")


def word_tokenizer(words: Iterable[str], max_tokens: int, lower_case: bool = False) -> PreTrainedTokenizerFast:
    """Makes a tokenizer that gives every word, and every run of other signs between words, a number.

    Args:
        words: that it knows, in the order of their numbers; a second mention is ignored.
        max_tokens: of a text, `<start>` and `<end>` included.
        lower_case: whether a text is lower-cased first; the words have to be, then.

    Source: this project's choice.
    """
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.normalizers import Lowercase
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing

    vocabulary = {word: index for index, word in enumerate(dict.fromkeys((*SPECIAL_TOKENS, *words)))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    if lower_case:
        tokenizer.normalizer = Lowercase()
    tokenizer.pre_tokenizer = Whitespace()
    special = [(word, vocabulary[word]) for word in ("<start>", "<end>")]
    tokenizer.post_processor = TemplateProcessing(single="<start> $A <end>", special_tokens=special)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<start>",
        eos_token="<end>",
        model_max_length=max_tokens,
        model_input_names=["input_ids", "attention_mask"],
    )


def split_words(text: str) -> list[str]:
    """What the tokenizer takes as words of a text."""
    from tokenizers.pre_tokenizers import Whitespace

    return [word for word, _ in Whitespace().pre_tokenize_str(text)]
