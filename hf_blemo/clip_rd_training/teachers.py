"""A teacher that is there by its stored embeddings alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from hf_blemo.clip_rd_training.settings import DistillationSettings
from hf_blemo.loading import download_errors, load_part, local_path
from hf_blemo.pairs.pair_processor import PairProcessor
from hf_blemo.pairs.pair_sources import PairStream, PairTable
from hf_blemo.pairs.teacher_store import STORE_FILE, TOKENIZERS, TeacherStore


class StoredTeacher(NamedTuple):
    """A store and the tokenizer that came with it.

    Args:
        store: of the teacher.
        processor: the teacher's tokenizer, without an image processor; None where the teacher's was none of
            transformers.
    """

    store: TeacherStore
    processor: PairProcessor | None

    def check(
        self, settings: DistillationSettings, sources: Sequence[PairTable | PairStream], student: PairProcessor
    ) -> None:
        """Refuses a store that was made of other pairs, crops, sizes of images or of another teacher.

        Raises:
            ValueError: the first difference.
        """
        where = f"teacher_store {settings.teacher_store!r}"
        made = self.store.teacher
        if settings.teacher is not None and settings.teacher != made["source"]:
            raise ValueError(f"{where}: made with teacher {made['source']!r}, the run names {settings.teacher!r}")
        if settings.teacher_revision is not None and settings.teacher_revision not in (
            made["revision"],
            made["fingerprint"],
        ):
            raise ValueError(
                f"{where}: made with revision {made['revision']!r} of the teacher, the run names "
                f"{settings.teacher_revision!r}"
            )
        described = [
            {**entry, "pairs": len(source) if isinstance(source, PairTable) else None}
            for entry, source in zip(settings.described_sources(), sources, strict=True)
        ]
        sizes = [teacher["image_size"] for teacher in self.store.description.teachers.values()]
        self.store.check(described, settings.augmentation, max(max(student.image_size), *sizes))


def open_store(settings: DistillationSettings) -> StoredTeacher | None:
    """Opens the store that the settings name; downloads it where it is on the Hub.

    Raises:
        FileNotFoundError: it is neither a store's folder nor the id of one on the Hub.
        ValueError: no such teacher in it.
    """
    source = settings.teacher_store
    if source is None:
        return None
    where = f"teacher_store {source!r}"
    folder = local_path(source, where)
    if folder is None:
        from huggingface_hub import snapshot_download

        with download_errors(where):
            folder = Path(snapshot_download(source, repo_type="dataset"))
    if not (folder / STORE_FILE).is_file():
        raise FileNotFoundError(f"{where}: found no {STORE_FILE} there")
    store = TeacherStore(folder, settings.teacher_name)
    tokenizer = folder / TOKENIZERS / store.name
    processor = None
    if tokenizer.is_dir():
        from transformers import AutoTokenizer

        processor = PairProcessor(load_part(AutoTokenizer, str(tokenizer), f"{where}, tokenizer"), None)
    return StoredTeacher(store, processor)
