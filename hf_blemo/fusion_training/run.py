"""A whole run: data, cross-validation, final models, and a folder with everything that is worth keeping."""

import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from hf_blemo import blemore
from hf_blemo.files import write_json
from hf_blemo.fusion_training.cross_validation import cross_validate, labelled_rows, train_on_all
from hf_blemo.fusion_training.data import load_data, model_config, with_unlabelled
from hf_blemo.fusion_training.feature_store import FeatureStore
from hf_blemo.fusion_training.plots import (
    plot_confusion,
    plot_gate_weights,
    plot_learning_curves,
    plot_threshold_grid,
)
from hf_blemo.fusion_training.protocol import PROTOCOLS
from hf_blemo.fusion_training.results import CrossValidationResults, versions
from hf_blemo.fusion_training.selection import measure
from hf_blemo.fusion_training.settings import FusionSettings
from hf_blemo.hub import write_card
from hf_blemo.hub.training_pushes import TrainingPushes
from hf_blemo.prediction.fusion import predict_blends
from hf_blemo.programs.checkpoints import begin_checkpoints, check_resumable
from hf_blemo.programs.processes import end_training
from hf_blemo.programs.settings import check_output_folder
from hf_blemo.rank_aware_fusion.configuration_rank_aware_fusion import RankAwareFusionConfig
from hf_blemo.rank_aware_fusion.modeling_rank_aware_fusion import RankAwareFusionModel
from hf_blemo.rank_aware_fusion.processing_rank_aware_fusion import RankAwareFusionProcessor


def train_fusion(settings: FusionSettings, command: str | None = None) -> dict[str, Any]:
    """Runs what the settings say and fills `settings.output_dir`.

    The folder then holds the model of the first seed with its processor and card, the models of the other seeds under
    `seed_<n>/`, `metrics.json`, `predictions.json` (out of fold, the ensemble's), `history.json`, `plots/` and, with
    test data, `test_predictions.json`.

    Args:
        settings: of the run.
        command: the command line, for the card.

    Returns:
        The content of `metrics.json`.

    Raises:
        ValueError, FileNotFoundError: settings or data are not usable; nothing is written then.
    """
    start = time.perf_counter()
    accelerator = Accelerator(
        log_with=settings.trackers or None,
        project_dir=settings.output_dir,
        step_scheduler_with_optimizer=False,
    )
    output = check_output_folder(settings.output_dir)
    labelled = load_data(settings.data, settings)
    config = model_config(labelled, settings)
    seed = settings.synthetic.get("seed", 0)
    test = None
    if settings.test_data is not None:
        test = load_data(settings.test_data, settings, domain="target", seed=seed + 2)
    data = labelled
    if settings.unlabelled_data is not None:
        target = load_data(settings.unlabelled_data, settings, domain="target", seed=seed + 1)
        data = with_unlabelled(labelled, target)
    store = FeatureStore(data, config, settings.align_folds, progress=accelerator.is_main_process)
    # Whatever can be refused is refused before anything of an earlier run is touched.
    labelled_rows(store, settings)
    checkpoints = output / "checkpoints"
    if settings.resume:
        check_resumable(checkpoints, asdict(settings), settings.free_in_resume)
    if test is not None:
        found = list(blemore.encoder_widths(test))
        if not set(found) & set(config.encoders):
            raise ValueError(
                f"test_data: found the encoders {', '.join(found)}, expected some of {', '.join(config.encoders)}"
            )
        FeatureStore(test, config, progress=False)
    pushes = TrainingPushes(settings, accelerator)
    if accelerator.is_main_process:
        output.mkdir(parents=True, exist_ok=True)
        begin_checkpoints(checkpoints, asdict(settings), settings.checkpoint_every, settings.resume)
    accelerator.wait_for_everyone()
    if settings.trackers:
        accelerator.init_trackers("hf_blemo-fusion", config=_flat(asdict(settings)))

    results = None
    history: list[dict[str, Any]] = []
    num_epochs = settings.num_epochs
    if settings.protocol != "none":
        log = accelerator.log if settings.trackers else None
        results, history = cross_validate(accelerator, config, store, settings, checkpoints, log)
        num_epochs = results.best_epochs()
    processors = _processors(settings, config, store, results)

    def on_save(epoch: int, model: RankAwareFusionModel) -> None:
        def save(folder: Path) -> None:
            model.save_pretrained(folder)
            processors[0].save_pretrained(folder)

        pushes.on_save(f"epoch {epoch}", save)

    models = train_on_all(accelerator, config, store, settings, num_epochs, checkpoints, on_save)

    metrics: dict[str, Any] = {}
    if accelerator.is_main_process:
        metrics = _metrics(settings, config, store, results, models[0], num_epochs, command)
        for seed, model, processor in zip(settings.seeds, models, processors, strict=True):
            folder = output if seed == settings.seeds[0] else output / f"seed_{seed}"
            model.save_pretrained(folder)
            processor.save_pretrained(folder)
        if test is not None:
            metrics["test"] = _predict_test(settings, models, processors, test, output / "test_predictions.json")
        metrics["wall_seconds"] = round(time.perf_counter() - start, 1)
        write_json({output / "history.json": history})
        if results is not None:
            blends = results.ensemble(settings.decoding)[1]
            predictions = dict(zip(results.clips, blends, strict=True))
            write_json({output / "predictions.json": {"predictions": predictions}})
            _plots(results, history, config, settings, output / "plots")
        write_json({output / "metrics.json": metrics})
        _remove_stale(output, settings, results is not None)
        write_card(output, metrics)
        pushes.at_end(output)
    end_training(accelerator)
    return metrics


def _remove_stale(output: Path, settings: FusionSettings, scored: bool) -> None:
    """Removes what an earlier run left and this one does not make, so that the folder never mixes two runs."""
    kept = {f"seed_{seed}" for seed in settings.seeds[1:]}
    for folder in output.glob("seed_[0-9]*"):
        if folder.name not in kept:
            shutil.rmtree(folder)
    if not scored:
        shutil.rmtree(output / "plots", ignore_errors=True)
        (output / "predictions.json").unlink(missing_ok=True)
    if settings.test_data is None:
        (output / "test_predictions.json").unlink(missing_ok=True)


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as trackers take them."""
    return {
        key: value if isinstance(value, (int, float, str, bool)) else str(value) for key, value in settings.items()
    }


def _blend_share(store: FeatureStore) -> float:
    labels = store.labels.numpy()
    labelled = ~(labels == -100).all(1)
    return float(((labels[labelled] > 0).sum(1) == 2).mean()) or blemore.BLEND_SHARE


def _processors(
    settings: FusionSettings,
    config: RankAwareFusionConfig,
    store: FeatureStore,
    results: CrossValidationResults | None,
) -> list[RankAwareFusionProcessor]:
    """One processor per seed; the thresholds are fitted on that seed's out-of-fold predictions of all folds."""
    processors = []
    for seed in settings.seeds:
        processor = RankAwareFusionProcessor(
            config.encoders, decoding=settings.decoding, blend_share=_blend_share(store)
        )
        if results is not None:
            fitted = blemore.fit_thresholds(results.pooled([seed])["probabilities"], results.first.labels)
            processor.alpha, processor.beta = fitted.alpha, fitted.beta
        processors.append(processor)
    return processors


def _metrics(
    settings: FusionSettings,
    config: RankAwareFusionConfig,
    store: FeatureStore,
    results: CrossValidationResults | None,
    model: RankAwareFusionModel,
    num_epochs: int,
    command: str | None,
) -> dict[str, Any]:
    names = list(config.encoders)
    gate = None if results is None else results.gate_table(names)
    encoders = {}
    for index, name in enumerate(names):
        options = config.encoders[name]
        encoders[name] = {key: options[key] for key in ("feature_size", "modality", "pooling")}
        if gate is not None:
            encoders[name]["mean_weight"] = float(gate["mean_weight"][index])
            encoders[name]["selected"] = float(gate["mean_selected"][index])
    labelled = int((~(store.labels == -100).all(-1)).sum())
    scored = {
        "protocol": "none",
        "protocol_description": PROTOCOLS["none"],
        "decoding": settings.decoding,
        "seeds": settings.seeds,
        "summary": {},
    }
    return {
        "schema_version": 1,
        "model_type": config.model_type,
        **(scored if results is None else results.summary(settings.decoding)),
        "data": {
            "source": settings.data,
            "hub_id": None if settings.data == "synthetic" or Path(settings.data).exists() else settings.data,
            "clips": labelled,
            "unlabelled_clips": len(store) - labelled,
            "folds": [] if results is None else results.folds,
            "blend_share": _blend_share(store),
            "folds_aligned": settings.align_folds,
        },
        "final_epochs": num_epochs,
        "encoders": encoders,
        "config": asdict(settings),
        "command": command,
        "versions": versions(),
        "num_parameters": model.num_parameters(),
    }


def _predict_test(
    settings: FusionSettings,
    models: Sequence[RankAwareFusionModel],
    processors: Sequence[RankAwareFusionProcessor],
    test: Any,
    path: Path,
) -> dict[str, Any]:
    predicted = predict_blends(list(zip(models, processors, strict=True)), test)
    blends = {row["clip"]: row["blend"] for row in predicted}
    write_json({path: {"predictions": blends}})
    result: dict[str, Any] = {"source": settings.test_data, "clips": len(blends)}
    labels = np.asarray(test["labels"], dtype=np.float64) if "labels" in test.column_names else None
    if labels is not None and not (labels == blemore.UNLABELLED).all(1).any():
        result.update(measure(list(blends.values()), labels))
    return result


def _plots(
    results: CrossValidationResults,
    history: list[dict[str, Any]],
    config: RankAwareFusionConfig,
    settings: FusionSettings,
    folder: Path,
) -> None:
    folder.mkdir(exist_ok=True)
    names = list(config.encoders)
    protocol = settings.protocol.replace("_", " ")
    labels = results.first.labels
    blends = results.ensemble(settings.decoding)[1]
    plot_confusion(
        blemore.confusion(blends, labels),
        folder / "confusion.png",
        f"Emotion sets, out of fold, {protocol} protocol, {len(results.seeds)} seeds",
    )
    probabilities = results.pooled()["probabilities"]
    presence, salience = blemore.threshold_grid(probabilities, labels)
    fitted = blemore.fit_thresholds(probabilities, labels)
    plot_threshold_grid(
        presence,
        salience,
        blemore.THRESHOLD_GRID,
        blemore.THRESHOLD_GRID,
        (fitted.alpha, fitted.beta),
        folder / "thresholds.png",
        f"Thresholds on the pooled out-of-fold predictions, {len(labels):,} clips",
    )
    gate = results.gate_table(names)
    plot_gate_weights(
        gate["weights"],
        ["+".join(emotions) for emotions in blemore.EMOTION_SETS],
        names,
        folder / "gate_weights.png",
        selected=gate["selected"],
        title=f"Mean gate weight by emotion set and encoder, out of fold, {len(labels):,} clips",
    )
    plot_learning_curves(history, folder / "learning_curves.png", f"Learning curves, {protocol} protocol")
