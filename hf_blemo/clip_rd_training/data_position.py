"""How far all processes have read their data: positions in streams, and counts of broken pairs."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object

logger = logging.getLogger(__name__)

SHOWN = 5
# The share of broken pairs says little about fewer.
LEAST_SEEN = 100


class DataPosition:
    """Counts the pairs that were read, and keeps every consumer's position; part of the checkpoint.

    More than `max_broken_share` of broken pairs ends the run.
    """

    def __init__(self, accelerator: Accelerator, max_broken_share: float):
        self.accelerator, self.max_broken_share = accelerator, max_broken_share
        self.seen = self.broken = 0
        self.examples: list[str] = []
        # Process -> consumer -> position in every source.
        self.states: dict[int, dict[int, list[dict[str, int]]]] = {}
        self._new: dict[str, Any] = {"seen": 0, "broken": 0, "examples": []}

    def take(self, report: Mapping[str, Any]) -> None:
        """Adds the report that came with a batch of this process."""
        self.count(report["seen"], report["broken"], report["examples"])
        own = self.states.setdefault(self.accelerator.process_index, {})
        own[report["consumer"]] = [dict(state) for state in report["states"]]

    def count(self, seen: int, broken: int, examples: Sequence[str]) -> None:
        """Counts pairs that this process has read."""
        self._new["seen"] += seen
        self._new["broken"] += broken
        self._new["examples"] += examples

    def own_states(self) -> dict[int, list[dict[str, int]]]:
        """Returns this process's positions."""
        return self.states.get(self.accelerator.process_index, {})

    def description(self) -> dict[str, Any]:
        """Returns the pairs seen and broken, for `metrics.json`."""
        return {"seen": self.seen, "broken": self.broken, "broken_examples": self.examples}

    def share(self) -> None:
        """Adds up the counts of all processes, which must call this together; refuses too many broken pairs on
        every one."""
        own = {**self._new, "process": self.accelerator.process_index, "states": self.own_states()}
        reports = gather_object([own]) if self.accelerator.num_processes > 1 else [own]
        broken = sum(report["broken"] for report in reports)
        self.seen += sum(report["seen"] for report in reports)
        self.broken += broken
        for report in reports:
            self.examples = (self.examples + report["examples"])[:SHOWN]
            self.states[report["process"]] = report["states"]
        self._new = {"seen": 0, "broken": 0, "examples": []}
        if broken and self.accelerator.is_main_process:
            newest = next(example for report in reports for example in report["examples"])
            logger.warning("%d of %d pairs could not be read so far, for instance: %s", self.broken, self.seen, newest)
        if self.broken > self.max_broken_share * max(self.seen, LEAST_SEEN):
            raise ValueError(
                f"{self.broken} of {self.seen} pairs could not be read, more than max_broken_share "
                f"{self.max_broken_share} allows; for instance: {'; '.join(self.examples)}"
            )

    def state_dict(self) -> dict[str, Any]:
        """Returns plain numbers and texts."""
        return {"seen": self.seen, "broken": self.broken, "examples": self.examples, "states": self.states}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores [`state_dict`] of as many processes."""
        found = self.accelerator.num_processes
        positions = [state for own in state["states"].values() for states in own.values() for state in states]
        if any(positions) and len(state["states"]) != found:
            raise ValueError(
                f"resume: the streams were read by {len(state['states'])} processes, found {found}; every process "
                "resumes from a position of its own"
            )
        self.seen, self.broken, self.examples = state["seen"], state["broken"], list(state["examples"])
        self.states = state["states"]
