"""Settings of the pushes of a training to the Hub."""

from dataclasses import dataclass

from hf_blemo.programs.setting_checks import check_choices, check_repository

PUSH_SETTINGS = ("push_to_hub", "hub_strategy", "hub_private", "hub_tag")


@dataclass
class PushSettings:
    """Where, when and how a model is pushed.

    Args:
        push_to_hub: repository (owner/name) to publish to; the token and its rights are checked before training.
        hub_strategy: `end` publishes model, card and results after training; `every_save` also pushes the model at
            every checkpoint.
        hub_private: make a new repository private.
        hub_tag: tag of the release at the end, for instance `v1.0` (default: none).
    """

    push_to_hub: str | None = None
    hub_strategy: str = "end"
    hub_private: bool = True
    hub_tag: str | None = None

    def check_push_settings(self, checkpoint_every: int) -> None:
        """Refuses pushes that could not be made.

        Args:
            checkpoint_every: how often the program saves; 0 for never.

        Raises:
            ValueError: no id of a repository, an unknown strategy, or settings of a push that is not asked for.
        """
        check_repository("push_to_hub", self.push_to_hub)
        check_choices(self, {"hub_strategy": ("end", "every_save")})
        if self.push_to_hub is None and (self.hub_strategy != "end" or self.hub_tag is not None):
            raise ValueError("hub_strategy and hub_tag need push_to_hub")
        if self.hub_strategy == "every_save" and checkpoint_every == 0:
            raise ValueError("hub_strategy 'every_save' needs checkpoint_every of at least 1")
