"""Pushes of a model while it is trained, and its publication at the end."""

import logging
import tempfile
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from huggingface_hub import HfApi

from hf_blemo.errors import one_line
from hf_blemo.programs.settings import PushSettings

from .card import CARD_FILE
from .publishing import publish
from .uploads import hub_errors, prepare_repository, upload

logger = logging.getLogger(__name__)


class TrainingPushes:
    """What a training does with the Hub: nothing without `settings.push_to_hub`.

    Every process makes one, which checks the repository as [`prepare_repository`]; only the first one uses it. A
    push in the middle runs beside the training, in one commit with model, inputs and code, and leaves card and
    results alone: the latest revision is always a whole model. If a push fails, the training continues and pushes
    again later.
    """

    def __init__(self, settings: PushSettings, accelerator: Accelerator):
        self.settings = settings
        self.repo_id = settings.push_to_hub
        self._push: Future | None = None
        if self.repo_id is not None:
            prepare_repository(self.repo_id, accelerator, private=settings.hub_private, tag=settings.hub_tag)

    def on_save(self, when: str, save: Callable[[Path], None]) -> None:
        """Pushes the model as it is now, unless the last push is still under way.

        Args:
            when: for the commit, for instance "step 100".
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
        with folder as name:
            paths = {path.relative_to(name).as_posix(): path for path in Path(name).rglob("*") if path.is_file()}
            paths.pop(CARD_FILE, None)
            upload(str(self.repo_id), paths, message, private=self.settings.hub_private)

    def _report(self) -> None:
        """Waits for the push under way and logs its failure."""
        if self._push is not None:
            error = self._push.exception()
            if error is not None:
                logger.warning("a push to %s failed, the training continues: %s", self.repo_id, one_line(error))
        self._push = None

    def at_end(self, folder: Path) -> str | None:
        """Publishes the finished folder, with model, inputs, metrics and card; where that fails, it can be
        published later."""
        if self.repo_id is None:
            return None
        self._report()
        again = f"publish it later: hf-blemo publish {folder} --repo {self.repo_id}"
        with hub_errors(f"{folder} is complete but was not published to {self.repo_id}; {again}"):
            options: Any = {"tag": self.settings.hub_tag, "license": self.settings.hub_license}
            return publish(folder, self.repo_id, private=self.settings.hub_private, **options)
