"""Run by the tests of Trainer: `python trainer_on_processes.py FOLDER` is one of the processes of a training."""

import gc
import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState
from safetensors.torch import save_file
from trainer_cases import CASES, Case, fusion_case, pairs
from watched_processes import watch


def alone_may_evaluate(case: Case, folder: Path) -> None:
    """The first process evaluates a student while the others do something else."""
    model = case.make_model()
    if dist.is_initialized() and dist.get_rank() != 0:
        return
    with torch.no_grad():
        batch = case.collator([pairs()[row] for row in range(4)])
        assert model.train()(**batch).loss.isfinite() and model.eval()(**batch).loss.isfinite()


def some_unlabelled() -> Case:
    """The fusion, every loss of rows and none of a batch, with unequally many labelled rows in parts of a step."""
    case = fusion_case(gate_balance_weight=0.0, encoder_loss_weight=0.3, gate_loss_weight=0.2)
    case.dataset = case.dataset.map(
        lambda row, place: {"labels": [-100.0] * 6} if place % 8 in (0, 1, 2, 7) else {}, with_indices=True
    )
    return case


def run(
    name: str, case: Case, folder: Path, state: PartialState, accumulation: int = 1, learning_rate: float = 0.1
) -> dict[str, Any]:
    """What a training of a case reports, by steps of eight rows; its weights are in the folder."""
    trainer = case.trainer(
        folder / name, max_steps=3, per_device_train_batch_size=8 // (state.num_processes * accumulation),
        gradient_accumulation_steps=accumulation, optim="sgd", learning_rate=learning_rate,
        lr_scheduler_type="constant",
        ddp_find_unused_parameters=False, per_device_eval_batch_size=8,
    )  # fmt: skip
    trainer.train()
    evaluation = trainer.evaluate()
    if name == "clip_rd":
        alone_may_evaluate(case, folder)
    if state.is_main_process:
        weights = {key: value.contiguous() for key, value in trainer.model.state_dict().items()}
        save_file(weights, folder / f"{name}.safetensors")
    return {
        "losses": [row["loss"] for row in trainer.state.log_history if "loss" in row],
        "evaluation": {key: value for key, value in evaluation.items() if "score" in key or "acc" in key},
        "eval_loss": evaluation["eval_loss"],
    }


def main() -> None:
    folder = Path(sys.argv[1])
    state = PartialState(cpu=True)
    report: dict[str, Any] = {"processes": state.num_processes}
    for name, make_case in CASES.items():
        report[name] = run(name, make_case(), folder, state)
    report["accumulated"] = run("accumulated", CASES["fusion"](), folder, state, accumulation=2)
    for parts in (1, 2):
        name = f"unlabelled_{parts}"
        report[name] = run(name, some_unlabelled(), folder, state, accumulation=parts, learning_rate=1e-3)
    if state.is_main_process:
        (folder / "report.json").write_text(json.dumps(report))
    state.wait_for_everyone()
    # No wrapped model may outlive the group of its processes; see `hf_blemo.programs.processes.together`.
    gc.collect()
    state.destroy_process_group()


if __name__ == "__main__":
    dist.destroy_process_group = watch(dist.destroy_process_group)
    main()
