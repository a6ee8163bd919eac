"""One table of what every part of the design is worth, on one data set."""

import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from accelerate import Accelerator

from hf_blemo import feature_sets
from hf_blemo.built_in import SYNTHETIC
from hf_blemo.errors import did_you_mean, listed, say
from hf_blemo.files import held, within, write_json, write_text
from hf_blemo.fusion_training.adaptation import adapt_to_folds, adapt_to_shift, adaptation_table
from hf_blemo.fusion_training.cross_validation import cross_validate
from hf_blemo.fusion_training.data import load_data, model_config
from hf_blemo.fusion_training.explanation import explain, explanation_table
from hf_blemo.fusion_training.feature_store import FeatureStore
from hf_blemo.fusion_training.judging import better
from hf_blemo.fusion_training.naive_fusion import NaiveFusions, naive_fusions, naive_names
from hf_blemo.fusion_training.out_of_fold import OutOfFold, Truth, chosen_inside, paired_bootstrap
from hf_blemo.fusion_training.results import CrossValidationResults
from hf_blemo.fusion_training.settings import ABLATION_FILE, AblationSettings, ExperimentSettings
from hf_blemo.programs.processes import check_same, check_shared, together
from hf_blemo.programs.run_folder import CHECKPOINTS, earlier_result, named_inputs
from hf_blemo.programs.tables import interval, mean_and_std, plus_minus, table
from hf_blemo.rank_aware_fusion.configuration_rank_aware_fusion import RankAwareFusionConfig


@dataclass(frozen=True)
class _Variant:
    """One row of the table: what it changes in the model's settings and in the others, and the encoders it uses."""

    name: str
    model: dict[str, Any] = field(default_factory=dict)
    encoders: tuple[str, ...] | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    trained: bool = True


# What `only` can ask for beside rows.
_OTHER_PARTS = ("adaptation", "explanations")
_ROWS = "rows"
CHOSEN = "rank-aware, n chosen inside the training folds"
_RANKED = "rank-aware, n = "


def _variants(settings: ExperimentSettings, encoder_names: list[str]) -> Iterator[_Variant]:
    """The rows for a data set: baselines, the method for every n, and the method with one part changed at a time."""
    every, model = len(encoder_names), settings.model
    top_n = model.get("top_n", 3)
    for name in encoder_names:
        yield _Variant(f"single encoder: {name}", {"gate": "uniform", "fusion": "weighted_sum", "top_n": 1}, (name,))
    for name in naive_names(encoder_names):
        yield _Variant(name, trained=False)
    yield _Variant("mean of all", {"gate": "uniform", "fusion": "weighted_sum", "top_n": every})
    yield _Variant("concatenation of all", {"gate": "uniform", "fusion": "concatenation", "top_n": every})
    for number in sorted({min(number, every) for number in (1, 2, top_n)}):
        yield _Variant(f"static top-{number}", {"gate": "static", "top_n": number})
    for number in range(1, every + 1):
        mark = " (the method as configured)" if number == top_n else ""
        yield _Variant(f"{_RANKED}{number}{mark}", {"top_n": number})
    yield _Variant(CHOSEN, trained=False)
    for number in range(1, every + 1):
        if number != top_n:
            yield _Variant(f"without rank order, n = {number}", {"fusion": "weighted_sum", "top_n": number})
    yield _Variant("  without rank order (weighted sum)", {"fusion": "weighted_sum"})
    yield _Variant("  gated concatenation", {"fusion": "concatenation"})
    yield _Variant("  without experts", {"experts": False, "gate_reads": "latents"})
    yield _Variant("  without relevance of features", {"feature_weighting": "none", "gate_prior": "uniform"})
    yield _Variant("  without squashing", {"squash": "none"})
    yield _Variant("  one map for all encoders", {"fusion_maps": "shared"})
    yield _Variant("  gate reads latents", {"gate_reads": "latents"})
    yield _Variant("  gate without prior", {"gate_prior": "uniform", "gate_prior_weight": 0.0})
    yield _Variant("  fixed weights (the prior)", {"gate": "uniform"})
    yield _Variant("  presence head alone", {"head_fusion": "presence"})
    yield _Variant("  salience head alone", {"head_fusion": "salience"})
    yield _Variant("  without joint interaction", {"joint_interaction": False})
    yield _Variant("  without joint loss", {"joint_loss_weight": 0.0})
    yield _Variant("  gate without context", {"gate_context": False})
    yield _Variant("  without gate noise", {"gate_noise": 0.0})
    if model.get("gate_noise", 0.0) == 0:
        yield _Variant("  with gate noise", {"gate_noise": 0.5})
    yield _Variant("  without balance term", {"gate_balance_weight": 0.0})
    yield _Variant("  without gate loss", {"gate_loss_weight": 0.0})
    yield _Variant("  without encoder loss", {"encoder_loss_weight": 0.0, "gate_loss_weight": 0.0})
    if model.get("encoder_loss_weight", 0.0) == 0:
        yield _Variant("  with encoder loss", {"encoder_loss_weight": 0.2})
    yield _Variant("  without encoder dropout", {"encoder_dropout": 0.0})
    yield _Variant("  scored the published way (optimistic)", settings={"protocol": "published_style"})
    if settings.exchange_groups:
        yield _Variant("  without exchange of groups", settings={"exchange_groups": 0.0})
    if settings.align_folds:
        yield _Variant("  without alignment of the folds", settings={"align_folds": False})


def _planted_share(results: CrossValidationResults, data: datasets.Dataset, encoder_names: list[str]) -> float | None:
    """Share of clips whose selected encoders are exactly the planted ones, out of fold, mean over seeds; None where
    nothing was planted."""
    if "informative" not in data.column_names:
        return None
    row_of = {clip: row for row, clip in enumerate(data["clip"])}
    truth = np.asarray(data["informative"])[[row_of[clip] for clip in results.clips]]
    names, shares = list(feature_sets.encoder_widths(data)), []
    for seed in results.seeds:
        selected = results.pooled([seed])["selected_encoders"]
        # The planted numbers count the encoders of the data, the selected ones those of the model.
        selected = np.array([*(names.index(name) for name in encoder_names), -1])[selected]
        if selected.shape[1] != truth.shape[1]:
            return None
        shares.append(float((np.sort(selected, 1) == np.sort(truth, 1)).all(1).mean()))
    return float(np.mean(shares))


def ablate(settings: AblationSettings) -> dict[str, Any]:
    """Cross-validates every variant with the same budget, folds and seeds.

    `ablation.json` and `ablation.md` in `settings.output_dir` grow row by row; `rows/` there keeps each row's
    out-of-fold probabilities of every seed and clip.

    Returns:
        The content of `ablation.json`: `settings`, `labels`, `columns`; `rows`, one per variant as of
        [`measure_variant`], with `against_naive`, the paired difference to the best naive fusion of each measure;
        `comparisons` of rows; and, where they are asked for, `explanations` as of [`explain`] and `adaptation`. On the
        built-in data that has rows as of [`adapt_to_shift`], on other data as of [`adapt_to_folds`].

    Raises:
        ValueError: `only` asks for rows that do not exist, another setting or the data is not usable, or the run to be
            resumed had others.
        FileExistsError: the folder holds an earlier table, or another run writes there.
    """
    accelerator = Accelerator()
    with together(accelerator, settings) as stack:
        return _ablate(accelerator, settings, stack)


def _ablate(accelerator: Accelerator, settings: AblationSettings, stack: ExitStack) -> dict[str, Any]:
    output = settings.check_places()
    data = load_data(settings.data, settings.synthetic)
    base = model_config(data, settings)
    chosen = _chosen_variants(settings, base)
    names = [*(variant.name.strip() for variant in _variants(settings, list(base.encoders))), *_OTHER_PARTS]
    for name in settings.only:
        if not any(known.startswith(name) for known in names):
            hint = did_you_mean(name, names) or f", expected {listed(names)}"
            raise ValueError(f"only: no row begins with {name!r}{hint}")
    adapts, explains = (not settings.only or part in settings.only for part in _OTHER_PARTS)
    if not chosen and not adapts and not explains:
        raise ValueError(f"only {settings.only} asks for no row; the rows are {', '.join(names)}")
    store = FeatureStore(data, base, settings.align_folds, progress=False)
    labelled, _ = store.labelled_rows(settings.protocol)
    judge = store.judge
    judge.selection_metric(settings.selection_metric, settings.protocol)
    judge.decoding(settings.decoding)
    truth = Truth.of(data, judge, store.labels.numpy(), labelled)
    result: dict[str, Any] = {
        "settings": asdict(settings),
        "inputs": named_inputs("data", store.fingerprint),
        "labels": f"{judge.space!r}, {judge.kind}",
        "columns": list(judge.columns),
        "resampled": truth.grouping,
        "rows": [],
    }
    rows: dict[str, dict[str, Any]] = {}
    resumes = settings.resume and (output / ABLATION_FILE).is_file()
    if resumes:
        own = {**asdict(settings), "labels": result["labels"]}
        earlier = earlier_result(output / ABLATION_FILE, own, settings.free_in_resume, result["inputs"])
        # Parts that are not asked for again are kept, as rows are.
        result |= {part: earlier[part] for part in ("explanations", "adaptation") if part in earlier}
        rows = {row["name"]: row for row in earlier["rows"]}
    measured = {name: row for name, row in rows.items() if _kept(output, name).is_file()}
    check_same(accelerator, result["inputs"])
    if accelerator.is_main_process:
        stack.enter_context(held(output))
        if not resumes:
            shutil.rmtree(output / _ROWS, ignore_errors=True)
    check_shared(accelerator, output)
    naive = NaiveFusions(store, labelled, truth)
    table_of = _Table(accelerator, output, result, truth, rows)
    # Says whose rows and checkpoints these are, before there are any.
    table_of.save()
    for variant in _variants(settings, list(base.encoders)):
        if variant.name in measured:
            table_of.add(measured[variant.name])
        elif variant not in chosen:
            continue
        elif variant.name == CHOSEN:
            table_of.add_chosen()
        elif not variant.trained:
            start = time.perf_counter()
            made = naive.rows()[variant.name]()
            table_of.add_made(variant.name, made, time.perf_counter() - start)
        else:
            row = measure_variant(
                accelerator, data, settings, variant.name, variant.model, variant.encoders, truth, **variant.settings
            )
            table_of.add(row)
    if explains:
        configured = [row for row in result["rows"] if row["name"].endswith("(the method as configured)")]
        epochs = configured[0]["epochs"] if configured else None
        result["explanations"] = explain(
            accelerator, store, settings, truth, labelled, table_of.singles(naive), epochs
        )
        table_of.write()
    if adapts:
        result["adaptation"] = []
        found = (
            adapt_to_shift(accelerator, settings, data)
            if settings.data == SYNTHETIC
            else adapt_to_folds(accelerator, settings, data, store, truth, labelled)
        )
        for row in found:
            result["adaptation"].append(row)
            table_of.write()
    if accelerator.is_main_process:
        say("", *_markdown(result).split("\n"), f"Written to {output / 'ablation.md'} and {output / 'ablation.json'}")
    return result


def _kept(output: Path, name: str) -> Path:
    """Where the predictions of a row are."""
    return output / _ROWS / f"{re.sub(r'[^a-z0-9]+', '_', name.lower()).strip('_')}.safetensors"


class _Table:
    """The rows so far, what they predict clip by clip, and the files that show them.

    Args:
        result: content of `ablation.json`, to whose rows new ones are added.
        earlier: name -> row of an earlier run; those that this one does not reach are kept.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        output: Path,
        result: dict[str, Any],
        truth: Truth,
        earlier: Mapping[str, dict[str, Any]],
    ):
        self.accelerator, self.output, self.result, self.truth = accelerator, output, result, truth
        self.earlier = earlier
        self.made: dict[str, OutOfFold] = {}
        self.per_clip: dict[str, dict[str, np.ndarray]] = {}

    def add(self, row: dict[str, Any]) -> None:
        """Adds a row whose predictions are kept."""
        self.accelerator.wait_for_everyone()
        self.made[row["name"]] = OutOfFold.load(_kept(self.output, row["name"]))
        self.per_clip[row["name"]] = self.made[row["name"]].per_clip(self.truth)
        self.result["rows"].append(row)
        self._compare()
        self.write()

    def add_made(self, name: str, made: OutOfFold, seconds: float, **more: Any) -> None:
        """Adds a row that needed no training."""
        if self.accelerator.is_main_process:
            made.save(_kept(self.output, name))
        self.add({**_measured(name, made, self.truth), "planted": None, "seconds": round(seconds, 1), **more})

    def add_chosen(self) -> None:
        """Adds the row whose n is chosen inside the training folds, if there are rows to choose from."""
        names = [name for name in self.made if name.startswith(_RANKED)]
        if len(names) > 1:
            made, best = chosen_inside([self.made[name] for name in names], self.truth.folds)
            numbers = [int(name.removeprefix(_RANKED).split()[0]) for name in names]
            self.add_made(CHOSEN, made, 0.0, chosen=np.array(numbers)[best].tolist(), chosen_from=numbers)

    def singles(self, naive: NaiveFusions) -> np.ndarray:
        """(E, N) how often each encoder alone is right, by the rows of this table, else by linear models."""
        names = list(naive.features)
        if all(f"single encoder: {name}" in self.per_clip for name in names):
            return np.stack([self.per_clip[f"single encoder: {name}"]["accuracy"] for name in names])
        rows = naive.rows()
        return np.stack([rows[f"linear, single encoder: {name}"]().per_clip(self.truth)["accuracy"] for name in names])

    def _compare(self) -> None:
        """Paired differences of all rows to the best naive fusion, and of the chosen n to all encoders."""
        fusions = naive_fusions(self.per_clip)
        for row in self.result["rows"]:
            row["against_naive"] = {
                measure: self._difference(row["name"], self._best(fusions, measure), measure)
                for measure in ("accuracy", self.truth.loss)
                if fusions
            }
        ranked = [name for name in self.per_clip if name.startswith(_RANKED)]
        self.result["comparisons"] = [
            {"row": CHOSEN, "measure": measure, **self._difference(CHOSEN, ranked[-1], measure)}
            for measure in ("accuracy", self.truth.loss)
            if CHOSEN in self.per_clip
        ]

    def _best(self, names: Sequence[str], measure: str) -> str:
        return min(names, key=lambda name: better(measure, float(self.per_clip[name][measure].mean())))

    def _difference(self, name: str, other: str, measure: str) -> dict[str, Any]:
        differences = self.per_clip[name][measure] - self.per_clip[other][measure]
        return {"against": other, **paired_bootstrap(differences, self.truth.groups)}

    def write(self) -> None:
        """Prints the newest line and writes the tables so far."""
        if self.accelerator.is_main_process:
            say(_tables(self.result)[-1].splitlines()[-1])
        self.save()

    def save(self) -> None:
        """Writes the tables so far, and the rows of an earlier run that are not reached yet or not asked for."""
        if self.accelerator.is_main_process:
            done = {row["name"] for row in self.result["rows"]}
            rows = self.result["rows"] + [row for name, row in self.earlier.items() if name not in done]
            write_json({self.output / ABLATION_FILE: {**self.result, "rows": rows}})
            write_text(self.output / "ablation.md", _markdown(self.result))


def _measured(name: str, made: OutOfFold, truth: Truth) -> dict[str, Any]:
    """The entries that all rows have."""
    by_fold, measures = made.measures(truth, by_fold=True), made.measures(truth)
    return {
        "name": name,
        truth.judge.decodings[0]: {column: by_fold[column] for column in truth.judge.columns if column in by_fold},
        "measures": measures,
        "loss": measures[truth.loss],
    }


def _chosen_variants(settings: AblationSettings, base: RankAwareFusionConfig) -> list[_Variant]:
    """The rows that `settings.only` asks for, without those that would change nothing."""
    chosen = []
    for variant in _variants(settings, list(base.encoders)):
        if settings.only and not variant.name.strip().startswith(tuple(settings.only)):
            continue
        changes = {key: value for key, value in variant.model.items() if settings.model.get(key) != value}
        unchanged = all(getattr(base, key) == value for key, value in changes.items()) and not variant.settings
        if not (variant.name.startswith("  ") and unchanged):
            chosen.append(variant)
    return chosen


def measure_variant(
    accelerator: Accelerator,
    data: datasets.Dataset,
    settings: AblationSettings,
    name: str,
    model: dict[str, Any],
    encoders: Sequence[str] | None = None,
    truth: Truth | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """Cross-validates one row of a table.

    Args:
        model, changes: what the row changes of the model's settings, and of the others.
        encoders: the encoders to use; those of the settings by default.
        truth: what it is measured against, if its predictions shall be kept in `rows` under `output_dir`.

    Returns:
        `name`; for each decoding mean and sample standard deviation over the seeds of the measures' means over the
        folds; `measures`, the same of all clips at once; the seeds' `ensemble`; the joint `loss`; `planted`, the share
        of clips whose selected encoders are the planted ones; `epochs`, the mean of the chosen ones; `seconds`.
    """
    start = time.perf_counter()
    own = replace(
        settings,
        model={**settings.model, **model},
        encoders=list(encoders) if encoders else settings.encoders,
        encoder_options={
            encoder: options
            for encoder, options in settings.encoder_options.items()
            if encoders is None or encoder in encoders
        },
        **changes,
    )
    store = FeatureStore(data, model_config(data, own), own.align_folds, progress=False)
    row_folder = within(Path(settings.output_dir, _ROWS, CHECKPOINTS), name.strip().replace("/", "_"))
    results, _ = cross_validate(accelerator, store, own, row_folder, description=name.strip())
    if accelerator.is_main_process:
        shutil.rmtree(row_folder, ignore_errors=True)
    made = OutOfFold.of(results)
    if truth is None:
        labelled, _ = store.labelled_rows(own.protocol)
        truth = Truth.of(data, store.judge, store.labels.numpy(), labelled)
    elif accelerator.is_main_process:
        made.save(_kept(Path(settings.output_dir), name))
    default, *others = results.judge.decodings
    return {
        **_measured(name, made, truth),
        **{decoding: results.over_seeds(decoding) for decoding in others},
        "loss": mean_and_std(results.losses()),
        "ensemble": results.over_folds(default),
        "planted": _planted_share(results, data, list(store.config.encoders)),
        "epochs": results.best_epochs(),
        "seconds": round(time.perf_counter() - start, 1),
    }


OFFICIAL = {"score": "Score", "acc_presence": "presence", "acc_salience": "salience"}


def _header(result: dict[str, Any]) -> list[str]:
    """Columns of the table: for BlEmoRE its own, for other labels their measures."""
    official = "score" in result["columns"]
    loss = _loss_name(result)
    if official:
        names = [*OFFICIAL.values(), "Score, thresholds", "Score, ensemble", "NLL", "gate = planted", "accuracy"]
    else:
        names = [*result["columns"], "accuracy, ensemble"]
    return ["method", *names, "accuracy - best naive", f"{loss} - best naive"]


def _loss_name(result: dict[str, Any]) -> str:
    return "kl" if "js_distance" in result["columns"] else "nll"


def _table_row(row: dict[str, Any], result: dict[str, Any]) -> list[str]:
    """Cells of a row; mean ± std over seeds, for BlEmoRE of the mean over folds."""
    cells = [row["name"].replace("  ", "&nbsp;&nbsp;")]
    if "score" in result["columns"]:
        cells += [plus_minus(row["expected_score"][metric]) for metric in OFFICIAL]
        cells.append(plus_minus(row["thresholds"]["score"]) if "thresholds" in row else "")
        cells.append(f"{row['ensemble']['score']['mean']:.4f}" if "ensemble" in row else "")
        cells += [plus_minus(row["loss"]), "" if row["planted"] is None else f"{row['planted']:.3f}"]
        cells.append(plus_minus(row["measures"]["accuracy"]))
    else:
        cells += [plus_minus(row["measures"][name]) for name in result["columns"]]
        cells.append(f"{row['ensemble']['accuracy']['mean']:.4f}" if "ensemble" in row else "")
    against = row.get("against_naive") or {}
    for name in ("accuracy", _loss_name(result)):
        entry = against.get(name)
        own = entry is not None and entry["against"] == row["name"]
        cells.append("" if entry is None else "the best" if own else interval(entry))
    return cells


def _notes(result: dict[str, Any]) -> list[str]:
    """What the differences are, and the comparisons that are no rows."""
    notes = []
    against: dict[str, Any] = next((row["against_naive"] for row in result["rows"] if row.get("against_naive")), {})
    if against:
        best = " and ".join(f"{entry['against']} ({name})" for name, entry in against.items())
        notes.append(
            f"Differences to the best naive fusion, {best}: mean and 95 % interval of a paired bootstrap over "
            f"{result['resampled']}. ± is the sample standard deviation over the seeds."
        )
    for entry in result.get("comparisons", []):
        notes.append(f"{entry['row']}, against {entry['against']}: {entry['measure']} {interval(entry)}.")
    return notes


def _tables(result: dict[str, Any]) -> list[str]:
    """The tables so far, the newest last."""
    tables = []
    if result["rows"]:
        tables.append(table(_header(result), [_table_row(row, result) for row in result["rows"]], padded=False))
    if "explanations" in result:
        tables.append(explanation_table(result["explanations"]))
    if result.get("adaptation"):
        tables.append(adaptation_table(result["adaptation"]))
    return tables


def _markdown(result: dict[str, Any]) -> str:
    """Notes and tables of [`ablate`] as Markdown."""
    return "\n\n".join([*_notes(result), *_tables(result)]) + "\n"
