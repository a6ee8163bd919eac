"""Rows from the hidden states of chosen layers, for encoders of all families."""

import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from hf_blemo.encoders.encoder_options import asked_layers

# Part of the largest number by which two runs of one network may differ on a GPU.
_TOLERANCE = 1e-3


class HiddenLayers:
    """Takes the hidden states of the layers that `extraction` names out of a network of blocks.

    Layer 0 is what enters the first block; layer k is what block k gives, before any norm that closes the network.
    Only these are kept, and blocks after the last of them are dropped where the network runs without them.

    The first call finds the blocks: those whose states are what transformers gives as `hidden_states`.

    Args:
        extraction: options of an encoder, with `layer`, `layers` or neither.
        where: name of the model in errors.

    Raises:
        ValueError: an option has an invalid value; from the first call, there is no such layer, or the network gives
            no hidden states.
    """

    def __init__(self, extraction: Mapping[str, Any], where: str):
        self.numbers, self.is_mean = asked_layers(extraction, where)
        self.where = where
        # Parts of a batch run side by side, each in its own thread.
        self._caught = threading.local()
        self._is_bound = False

    def __bool__(self) -> bool:
        return bool(self.numbers)

    def __call__(self, network: Any, rows: Callable[[torch.Tensor], torch.Tensor], **inputs: Any) -> torch.Tensor:
        """Runs a network.

        Args:
            network: gives `last_hidden_state`; the same in each call, and a module where layers are chosen.
            rows: turns hidden states into rows (..., D).
            inputs: of the network.

        Returns:
            Rows of the last hidden states; with layers, their mean (..., D), or side by side (..., L * D).
        """
        if not self.numbers:
            return rows(network(**inputs).last_hidden_state)
        if not self._is_bound:
            self._bind(network, inputs)
        states, _ = self._run(network, inputs)
        found = [rows(states[number]) for number in self.numbers]
        if not self.is_mean:
            return torch.cat(found, -1)
        widths = [values.shape[-1] for values in found]
        if any(width != widths[0] for width in widths):
            shown = ", ".join(map(str, widths))
            raise ValueError(
                f"{self.where}: layers are {shown} wide, which have no mean; expected a list or one layer"
            )
        return torch.stack([values.float() for values in found]).mean(0)

    def _run(self, network: nn.Module, inputs: Mapping[str, Any]) -> tuple[dict[int, torch.Tensor], Any]:
        """States by layer, and the network's output."""
        states: dict[int, torch.Tensor] = {}
        self._caught.states = states
        try:
            return states, network(**inputs)
        finally:
            self._caught.states = None

    def _catch(self, number: int, state: Any) -> None:
        states = getattr(self._caught, "states", None)
        if states is not None:
            states[number] = state[0] if isinstance(state, tuple) else state

    def _hook(self, blocks: nn.ModuleList, numbers: Any) -> ExitStack:
        """Catches states of blocks; closing the result ends that."""
        hooks = ExitStack()
        for number in numbers:
            if number:
                handle = blocks[number - 1].register_forward_hook(
                    lambda module, args, output, number=number: self._catch(number, output)
                )
            else:
                handle = blocks[0].register_forward_pre_hook(
                    lambda module, args, kwargs: self._catch(0, args or kwargs.get("hidden_states")), with_kwargs=True
                )
            hooks.callback(handle.remove)
        return hooks

    def _bind(self, network: nn.Module, inputs: Mapping[str, Any]) -> None:
        asking = {**inputs, "output_hidden_states": True}
        try:
            last = len(network(**asking).hidden_states) - 1
        # Code from the Hub may not know the argument, or the output.
        except (AttributeError, TypeError):
            last = 0
        if last < 1:
            raise ValueError(f"{self.where}: gives no hidden states, so neither layer nor layers can be set for it")
        for number in self.numbers:
            if number > last:
                raise ValueError(f"{self.where}: layer must be from 0 to {last} or null, found {number}")
        name, blocks = self._blocks(network, last, asking)
        self._hook(blocks, self.numbers)
        self._is_bound = True
        self._shorten(network, name, blocks, inputs)

    def _blocks(self, network: nn.Module, last: int, asking: Mapping[str, Any]) -> tuple[str, nn.ModuleList]:
        """The list of blocks that give the hidden states, and its name."""
        for name, blocks in network.named_modules():
            if not isinstance(blocks, nn.ModuleList) or len(blocks) != last:
                continue
            with self._hook(blocks, range(last)):
                states, output = self._run(network, asking)
            # Of the last block, some models give the state after their closing norm.
            known = output.hidden_states
            if all(_same(states.get(number), known[number], 0.0) for number in range(last)):
                return name, blocks
        raise ValueError(
            f"{self.where}: gives hidden states that are not those of its blocks, so neither layer nor layers can be "
            "set for it"
        )

    def _shorten(self, network: nn.Module, name: str, blocks: nn.ModuleList, inputs: Mapping[str, Any]) -> None:
        expected, _ = self._run(network, inputs)
        parent, _, attribute = name.rpartition(".")
        owner = network.get_submodule(parent)
        setattr(owner, attribute, blocks[: max(1, *self.numbers)])
        try:
            found, _ = self._run(network, inputs)
            works = all(_same(found[number], expected[number], _TOLERANCE) for number in self.numbers)
        # Some networks look for all of their blocks.
        except (IndexError, KeyError, RuntimeError, TypeError, ValueError):
            works = False
        if not works:
            setattr(owner, attribute, blocks)


def _same(found: Any, expected: torch.Tensor, tolerance: float) -> bool:
    """Whether two states are the same, up to a part of the largest number."""
    if not isinstance(found, torch.Tensor) or found.shape != expected.shape:
        return False
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())
