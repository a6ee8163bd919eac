"""Pushes of a model while it is trained, and its publication at the end."""

import logging
import tempfile
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

from accelerate import Accelerator
from huggingface_hub import HfApi

from hf_blemo.programs.push_settings import PushSettings

from .hub_errors import hub_errors
from .publish import publish
from .repositories import prepare_repository

logger = logging.getLogger(__name__)


def prepare_pushes(settings: PushSettings, accelerator: Accelerator) -> "TrainingPushes":
    """The pushes of a run, checked; every process calls this.

    Args:
        settings: of the pushes.
        accelerator: of the run.

    Returns:
        To be used by the first process.

    Raises:
        ValueError: as `prepare_repository`.
    """
    if settings.push_to_hub is not None:
        prepare_repository(settings.push_to_hub, accelerator, private=settings.hub_private, tag=settings.hub_tag)
    return TrainingPushes(settings)


class TrainingPushes:
    """What a training does with the Hub; without `settings.push_to_hub` nothing. For the first process alone.

    A push in the middle runs beside the training, in one commit with model, inputs and code, and touches neither card
    nor results: the latest revision is always a whole model. Where it fails the training goes on, and so does the next
    push.

    Args:
        settings: of the pushes.

    Source: this project's choice.
    """

    def __init__(self, settings: PushSettings):
        self.settings = settings
        self.repo_id = settings.push_to_hub
        self._push: Future | None = None

    def on_save(self, when: str, save: Callable[[Path], None]) -> None:
        """Pushes the model as it is now, unless the last push is still under way.

        Args:
            when: said in the commit, for instance "step 100".
            save: writes model and inputs into a folder; done before this returns.
        """
        if self.repo_id is None or self.settings.hub_strategy != "every_save":
            return
        if self._push is not None and not self._push.done():
            logger.info("no push at %s: the last one is still under way", when)
            return
        self._report()
        folder = tempfile.TemporaryDirectory(prefix="hf_blemo_push_")
        save(Path(folder.name))
        self._push = HfApi().run_as_future(self._upload, folder, f"Training in progress, {when}")

    def _upload(self, folder: tempfile.TemporaryDirectory, message: str) -> None:
        with folder as path:
            HfApi().upload_folder(
                repo_id=str(self.repo_id), folder_path=path, commit_message=message, ignore_patterns=["README.md"]
            )

    def _report(self) -> None:
        """Waits for the push under way and says whether it failed."""
        if self._push is not None:
            error = self._push.exception()
            if error is not None:
                logger.warning("a push to %s failed, the training goes on: %s", self.repo_id, error)
        self._push = None

    def at_end(self, folder: Path) -> str | None:
        """Publishes the finished folder.

        Args:
            folder: with model, inputs, metrics and card.

        Returns:
            The address of the commit; None where nothing is pushed.

        Raises:
            ValueError: as [`publish`]; the folder is complete and can be published later.
        """
        if self.repo_id is None:
            return None
        self._report()
        again = f"publish it later: hf-blemo publish {folder} --repo {self.repo_id}"
        with hub_errors(f"{folder} is complete but was not published to {self.repo_id}; {again}"):
            return publish(folder, self.repo_id, private=self.settings.hub_private, tag=self.settings.hub_tag)
