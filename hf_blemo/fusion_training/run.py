"""A whole run: data, cross-validation, final models, and the folder with all results."""

import platform
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from accelerate import Accelerator

from hf_blemo import blemore
from hf_blemo._registration import __version__
from hf_blemo.errors import check_once
from hf_blemo.feature_sets.folds import group_in_two_folds
from hf_blemo.feature_sets.label_spaces import space_entry
from hf_blemo.feature_sets.layout import check_known_encoders
from hf_blemo.files import write_json
from hf_blemo.fusion_training.cross_validation import cross_validate, train_on_all
from hf_blemo.fusion_training.data import load_data, model_config, with_unlabelled
from hf_blemo.fusion_training.feature_store import FeatureStore
from hf_blemo.fusion_training.judging import Judge
from hf_blemo.fusion_training.plots import plot_cross_validation
from hf_blemo.fusion_training.results import CrossValidationResults
from hf_blemo.fusion_training.settings import PROTOCOLS, FusionSettings
from hf_blemo.hub import write_card
from hf_blemo.hub.training_pushes import TrainingPushes
from hf_blemo.programs.checkpoints import start_trackers
from hf_blemo.programs.processes import check_same, together
from hf_blemo.programs.run_folder import (
    CHECKPOINTS,
    begin_run,
    check_resumable,
    named_inputs,
    whole_results,
)
from hf_blemo.rank_aware_fusion.configuration_rank_aware_fusion import RankAwareFusionConfig
from hf_blemo.rank_aware_fusion.label_space_rank_aware_fusion import Blend
from hf_blemo.rank_aware_fusion.modeling_rank_aware_fusion import RankAwareFusionModel
from hf_blemo.rank_aware_fusion.processing_rank_aware_fusion import RankAwareFusionProcessor


def train_fusion(settings: FusionSettings, command: str | None = None) -> dict[str, Any]:
    """Trains, scores and saves a run into `settings.output_dir`.

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
        FileExistsError: the folder holds an earlier run's result or checkpoints, or another run writes there.
    """
    accelerator = Accelerator(
        log_with=settings.trackers or None,
        project_dir=settings.output_dir,
        step_scheduler_with_optimizer=False,
    )
    with together(accelerator, settings) as stack:
        return _train_fusion(accelerator, settings, command, stack)


def _train_fusion(
    accelerator: Accelerator, settings: FusionSettings, command: str | None, stack: ExitStack
) -> dict[str, Any]:
    start = time.perf_counter()
    output = settings.check_places()
    data = load_data(settings.data, settings.synthetic)
    config = model_config(data, settings)
    target = {**settings.synthetic, "domain": "target"}
    seed = settings.synthetic.get("seed", 0)
    # All checks come before any change to an earlier run.
    test = None
    if settings.test_data is not None:
        test = _test_store(load_data(settings.test_data, {**target, "seed": seed + 2}), config)
    if settings.unlabelled_data is not None:
        data = with_unlabelled(data, load_data(settings.unlabelled_data, {**target, "seed": seed + 1}))
    store = FeatureStore(data, config, settings.align_folds, progress=accelerator.is_main_process)
    store.labelled_rows(settings.protocol)
    judge = store.judge
    judge.selection_metric(settings.selection_metric, settings.protocol)
    decoding = judge.decoding(settings.decoding)
    known = asdict(settings) | {"labels": f"{judge.space!r}, {judge.kind}"}
    inputs = named_inputs("data", store.fingerprint)
    run = (output, known, settings.free_in_resume, inputs)
    check_resumable(*run)
    check_same(accelerator, inputs)
    pushes = TrainingPushes(settings, accelerator)
    if accelerator.is_main_process:
        stack.enter_context(begin_run(*run))
    accelerator.wait_for_everyone()
    start_trackers(accelerator, settings, "hf_blemo-fusion")
    checkpoints = output / CHECKPOINTS

    results = None
    history: list[dict[str, Any]] = []
    num_epochs = settings.num_epochs
    if settings.protocol != "none":
        log = accelerator.log if settings.trackers else None
        results, history = cross_validate(accelerator, store, settings, checkpoints, log)
        num_epochs = results.best_epochs()
    processors = _processors(settings, store, results)

    def on_save(epoch: int, model: RankAwareFusionModel) -> None:
        def save(folder: Path) -> None:
            model.save_pretrained(folder)
            processors[0].save_pretrained(folder)

        pushes.on_save(f"epoch {epoch}", save)

    models = train_on_all(accelerator, store, settings, num_epochs, checkpoints, on_save)

    metrics: dict[str, Any] = {}
    if accelerator.is_main_process:
        adapts = config.domain_adaptation != "none"
        store.fit_novelty(models, np.arange(len(store)) if adapts else np.flatnonzero(store.labelled))
        metrics = _metrics(settings, store, results)
        metrics |= {
            "final_epochs": num_epochs,
            "config": asdict(settings),
            "command": command,
            "versions": _versions(),
            "num_parameters": models[0].num_parameters(),
        }
        with whole_results(output) as made:
            for seed, model, processor in zip(settings.seeds, models, processors, strict=True):
                folder = made if seed == settings.seeds[0] else made / f"seed_{seed}"
                model.save_pretrained(folder)
                processor.save_pretrained(folder)
            if test is not None:
                found = test.predict(models)
                blends = processors[0].post_process_blends(found)
                predictions = {name: values.numpy() for name, values in found.items()}
                content = _predictions(test.clips, blends, predictions, judge, processors[0].decoding)
                write_json({made / "test_predictions.json": content})
                metrics["test"] = {"source": settings.test_data, "clips": len(test)}
                if test.labelled.all():
                    metrics["test"] |= judge.shown(judge.measure(blends, test.labels.numpy(), predictions))
            metrics["wall_seconds"] = round(time.perf_counter() - start, 1)
            write_json({made / "history.json": history})
            if results is not None:
                blends = results.ensemble(decoding)[1]
                content = _predictions(results.clips, blends, results.pooled(), judge, decoding)
                write_json({made / "predictions.json": content})
                plot_cross_validation(results, history, decoding, list(config.encoders), made / "plots")
            write_json({made / "metrics.json": metrics})
            write_card(made, metrics)
        pushes.at_end(output)
    return metrics


def _predictions(
    clips: Sequence[str], blends: Sequence[Blend], predictions: Mapping[str, np.ndarray], judge: Judge, decoding: str
) -> dict[str, Any]:
    """Blend of every clip, as a submission has it, the probabilities by name, and labels other than BlEmoRE's."""
    names = judge.space.names
    shares = [dict(zip(names, row, strict=True)) for row in predictions["probabilities"].tolist()]
    labels: dict[str, Any] = {}
    if not judge.is_benchmark:
        entry = space_entry(judge.space, judge.kind) | {"presence_share": judge.presence_share}
        labels = {"decoding": {"name": decoding}, "label_space": entry}
    return {
        **labels,
        "predictions": dict(zip(clips, blends, strict=True)),
        "shares": dict(zip(clips, shares, strict=True)),
    }


def _test_store(data: datasets.Dataset, config: RankAwareFusionConfig) -> FeatureStore:
    """The test data, read and checked once."""
    try:
        check_known_encoders(data, config.encoders, "the test data")
        store = FeatureStore(data, config, progress=False)
        check_once("clip", store.clips)
    except ValueError as error:
        raise ValueError(f"test_data: {error}") from None
    return store


def _processors(
    settings: FusionSettings,
    store: FeatureStore,
    results: CrossValidationResults | None,
) -> list[RankAwareFusionProcessor]:
    """One processor per seed; the thresholds are fitted on that seed's out-of-fold predictions of all folds."""
    processors = []
    for seed in settings.seeds:
        options: dict[str, Any] = {"decoding": settings.decoding, "blend_share": store.blend_share}
        if results is not None and store.judge.space.blend_percents:
            options |= store.judge.fit_thresholds(results.pooled([seed])["probabilities"], results.first.labels)
        processor = RankAwareFusionProcessor.from_config(store.config, **options)
        processors.append(processor)
    return processors


def _metrics(settings: FusionSettings, store: FeatureStore, results: CrossValidationResults | None) -> dict[str, Any]:
    encoders: dict[str, dict[str, Any]] = {}
    for index, (name, options) in enumerate(store.config.encoders.items()):
        encoders[name] = {key: options[key] for key in ("feature_size", "modality", "pooling")}
        if results is not None:
            encoders[name]["mean_weight"] = float(results.gate["mean_weight"][index])
            encoders[name]["selected"] = float(results.gate["mean_selected"][index])
    scored = {
        "protocol": "none",
        "protocol_description": PROTOCOLS["none"],
        "decoding": store.judge.decoding(settings.decoding),
        "seeds": settings.seeds,
        "summary": {},
    }
    labelled = int(store.labelled.sum())
    groups = store.groups[store.labelled]
    apart = (groups >= 0).all() and group_in_two_folds([*map(str, groups)], store.folds[store.labelled]) is None
    return {
        "schema_version": 1,
        "model_type": store.config.model_type,
        **(scored if results is None else results.summary(store.judge.decoding(settings.decoding))),
        "measures": list(store.judge.columns),
        "data": {
            "source": settings.data,
            "hub_id": None if settings.data == "synthetic" or Path(settings.data).exists() else settings.data,
            "clips": labelled,
            "unlabelled_clips": len(store) - labelled,
            "folds": [] if results is None else results.folds,
            "blend_share": store.blend_share,
            "is_blemore": store.judge.is_benchmark and blemore.named_by_labels(store.clips, store.labels.numpy()),
            "groups": len(set(groups.tolist())) if apart else None,
            "folds_aligned": settings.align_folds,
        },
        "encoders": encoders,
    }


def _versions() -> dict[str, str]:
    """Versions of the packages that a result depends on."""
    found = {name: version(name) for name in ("torch", "transformers", "datasets", "accelerate")}
    return {"hf_blemo": __version__, **found, "python": platform.python_version()}
