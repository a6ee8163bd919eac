"""Plain transformers' Trainer trains, evaluates, predicts and resumes every kind of model."""

import copy
import shutil

import numpy as np
import pytest
import torch
from trainer_cases import CASES, NUM_ROWS, clip_rd_case, fusion_case
from transformers import AutoModel, AutoProcessor, TrainerCallback
from transformers.utils.generic import can_return_loss, find_labels

from hf_blemo import CLIPRDModel, blemore
from hf_blemo.rank_aware_fusion.processing_rank_aware_fusion import RankAwareFusionProcessor
from hf_blemo.trainer import BlendCollator, PublishingTrainer, fusion_metrics


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]()


def losses(trainer):
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def assert_same_weights(one, two, **tolerance):
    first, second = one.state_dict(), two.state_dict()
    assert list(first) == list(second)
    for name in first:
        torch.testing.assert_close(
            first[name], second[name], msg=lambda text, name=name: f"{name}: {text}", **tolerance
        )


def test_training_lowers_the_loss_and_evaluates_with_default_arguments(case, tmp_path):
    trainer = case.trainer(tmp_path, max_steps=24, learning_rate=1e-2, eval_strategy="steps", eval_steps=12)
    assert trainer.args.remove_unused_columns
    trainer.train()
    found = losses(trainer)
    assert np.mean(found[-4:]) < np.mean(found[:4]) - 0.02
    evaluations = [row for row in trainer.state.log_history if "eval_loss" in row]
    assert len(evaluations) == 2 and all(np.isfinite(row["eval_loss"]) for row in evaluations)
    if case.options.get("compute_metrics"):
        assert {"eval_acc_presence", "eval_acc_salience", "eval_score"} <= set(evaluations[-1])


def test_metrics_and_predictions_are_those_of_the_model(tmp_path):
    case = fusion_case()
    trainer = case.trainer(tmp_path, per_device_eval_batch_size=5)
    rows = case.dataset.select(range(32, 48))
    predicted = trainer.predict(rows)
    probabilities, joint = predicted.predictions
    with torch.no_grad():
        output = trainer.model.eval()(**case.collator(list(rows)))
    np.testing.assert_allclose(probabilities, output.probabilities.numpy(), atol=1e-6)
    np.testing.assert_allclose(joint, output.joint_probabilities.numpy(), atol=1e-6)
    blends = blemore.decode_expected_score(joint)
    labels = np.array(rows["labels"][:])
    expected = {
        "acc_presence": blemore.acc_presence(blends, labels),
        "acc_salience": blemore.acc_salience(blends, labels),
        "score": blemore.score(blends, labels),
    }
    assert {name: predicted.metrics[f"test_{name}"] for name in expected} == pytest.approx(expected)


def test_pairs_are_evaluated_batch_by_batch(tmp_path):
    """Logits of a batch are B x B and never joined: 16 pairs in batches of 6, 6 and 4 give embeddings alone."""
    case = clip_rd_case()
    rows, model = case.dataset.select(range(16)), case.make_model().eval()
    assert can_return_loss(CLIPRDModel) and find_labels(CLIPRDModel) == []
    predicted = case.trainer(tmp_path).predict(rows)
    assert [np.shape(part) for part in predicted.predictions] == [(16, 12), (16, 12)]
    with torch.no_grad():
        parts = [list(rows.select(range(start, min(start + 6, 16)))) for start in (0, 6, 12)]
        mean = sum(model(**case.collator(part)).loss.item() * len(part) for part in parts) / 16
    assert predicted.metrics["test_loss"] == pytest.approx(mean, rel=1e-4)


def test_a_resumed_training_ends_like_an_uninterrupted_one(case, tmp_path):
    whole = case.trainer(tmp_path / "whole", save_strategy="steps", save_steps=3)
    whole.train()
    shutil.copytree(tmp_path / "whole" / "checkpoint-3", tmp_path / "resumed" / "checkpoint-3")
    resumed = case.trainer(tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "resumed" / "checkpoint-3"))
    assert_same_weights(resumed.model, whole.model, rtol=0, atol=0)
    assert losses(resumed) == losses(whole)


def test_the_student_of_a_distillation_is_saved_where_it_can_be_loaded(tmp_path):
    case = CASES["distillation"]()
    trainer = case.trainer(tmp_path, max_steps=4, save_strategy="steps", save_steps=2)
    before = copy.deepcopy(trainer.model.teacher.state_dict())
    weights = []

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            weights.append(kwargs["model"].loss.weights["xrd"])

    trainer.add_callback(Watch)
    trainer.train()
    assert weights == [0.0, 0.25, 0.5, 0.75]
    for folder in (tmp_path, tmp_path / "checkpoint-4"):
        assert_same_weights(AutoModel.from_pretrained(folder / "student"), trainer.model.student, rtol=0, atol=0)
        assert AutoProcessor.from_pretrained(folder / "student").tokenizer is not None
    # The teacher is neither trained nor kept in checkpoints.
    assert all(torch.equal(before[name], values) for name, values in trainer.model.teacher.state_dict().items())
    assert not any("teacher" in name for name in trainer.model.state_dict())


def test_half_precision_towers_have_a_float32_loss(case, tmp_path):
    trainer = case.trainer(tmp_path, bf16=True, max_steps=3)
    trainer.train()
    assert all(np.isfinite(losses(trainer)))
    batch = trainer._prepare_inputs(case.collator(list(case.dataset.select(range(4)))))
    with trainer.autocast_smart_context_manager():
        assert trainer.model(**batch).loss.dtype == torch.float32


# torch's compiler looks at the attribute and hides the warning, which it cannot where warnings are errors.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("name", ["fusion", "distillation"])
def test_training_is_compiled_where_asked(name, tmp_path):
    case = CASES[name]()
    if shutil.which("g++") is None and shutil.which("c++") is None:
        pytest.skip("torch.compile needs a C++ compiler")
    expected = case.trainer(tmp_path, max_steps=2)
    expected.train()
    # The compiled gradients, too, of one kind of model, and of the other the captured graph: each takes seconds.
    backend = "aot_eager" if name == "fusion" else "eager"
    trainer = case.trainer(tmp_path, max_steps=2, torch_compile=True, torch_compile_backend=backend)
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    trainer.train()
    assert counters["stats"]["calls_captured"] > 20
    assert_same_weights(trainer.model, expected.model, rtol=1e-4, atol=1e-5)


def test_a_fusion_has_no_activations_worth_recomputing(tmp_path):
    with pytest.raises(ValueError, match="does not support"):
        fusion_case().trainer(tmp_path, activation_checkpointing=True).train()


def test_unlabelled_rows_mixed_in_are_adapted_to(tmp_path):
    from datasets import concatenate_datasets

    from hf_blemo.built_in import make_synthetic_blends

    case = fusion_case(domain_adaptation="coral", domain_adaptation_weight=1.0)
    target = make_synthetic_blends(num_clips=32, seed=5, domain="target")
    unlabelled = target.map(lambda row: {"labels": [-100.0] * 6})
    trainer = case.trainer(tmp_path, max_steps=12)
    seen = []
    trainer.model.register_forward_hook(
        lambda model, _, output: seen.append((model.training, output.domain_adaptation_loss.item()))
    )
    trainer.train_dataset = concatenate_datasets([trainer.train_dataset, unlabelled])
    # Half of the rows of an evaluation may be unlabelled, too: metrics are of the others.
    trainer.eval_dataset = concatenate_datasets([trainer.eval_dataset, unlabelled.select(range(4))])
    trainer.train()
    adapted = [value for training, value in seen if training]
    assert len(adapted) == 12 and all(np.isfinite(adapted)) and min(adapted) > 0
    expected = fusion_case().trainer(tmp_path, model=trainer.model).evaluate()
    found = trainer.evaluate()
    assert found["eval_score"] == pytest.approx(expected["eval_score"])


def named_case(kind="valid", **labels):
    """Three names on the built-in features, as Trainer's users have them: a column `label`, or rows of shares."""
    case = fusion_case(id2label=dict(enumerate(["calm", "tense", "tired"])), label_kind=kind, **labels)
    config = case.make_model().config
    generator = np.random.default_rng(0)
    shares = generator.dirichlet(np.ones(3), NUM_ROWS)
    labels = shares.tolist() if kind == "soft" else [config.label_space.names[place] for place in shares.argmax(1)]
    case.dataset = case.dataset.remove_columns("labels").add_column("labels" if kind == "soft" else "label", labels)
    case.collator = BlendCollator(RankAwareFusionProcessor.from_config(config))
    case.options = {"compute_metrics": fusion_metrics(config), "processing_class": case.collator.processor}
    return case


@pytest.mark.parametrize(
    ("kind", "keys"),
    [("valid", {"accuracy", "uar", "macro_f1", "nll", "kl"}), ("soft", {"accuracy", "kl", "js_distance", "mae"})],
)
@pytest.mark.parametrize(
    "settings",
    [
        {"include_for_metrics": ["inputs", "loss"]},
        {"eval_do_concat_batches": False, "train_sampling_strategy": "group_by_length"},
        {"gradient_accumulation_steps": 2, "include_num_input_tokens_seen": "all"},
    ],
    ids=str,
)
def test_names_of_ones_own_under_the_settings_of_trainer(kind, keys, settings, tmp_path):
    case, handed = named_case(kind), []
    case.options["compute_metrics"] = lambda predicted, metrics=case.options["compute_metrics"]: (
        handed.append(predicted) or metrics(predicted)
    )
    best = {"load_best_model_at_end": True, "metric_for_best_model": "acc_presence", "save_steps": 2}
    trainer = case.trainer(
        tmp_path, eval_strategy="steps", eval_steps=2, **{"save_strategy": "steps", **best, **settings}
    )
    trainer.train()
    found = [row for row in trainer.state.log_history if "eval_loss" in row]
    assert len(found) == 3 and {f"eval_{key}" for key in keys} <= set(found[0])
    assert trainer.state.best_metric == max(row["eval_acc_presence"] for row in found)
    if "include_for_metrics" in settings:
        assert {name: len(values) for name, values in handed[0].inputs.items()} == dict.fromkeys(
            case.collator.processor.encoders, 16
        )
        assert np.mean(handed[0].losses) == pytest.approx(found[0]["eval_loss"])
    loaded, processor = (
        AutoModel.from_pretrained(tmp_path / "checkpoint-6"),
        AutoProcessor.from_pretrained(tmp_path / "checkpoint-6"),
    )
    assert loaded.config.label_space == processor.label_space == case.collator.processor.label_space
    assert processor.label_kind == loaded.config.label_kind == kind


def test_rows_are_grouped_by_a_column_of_lengths(tmp_path):
    case = named_case()
    lengths = [max(len(values) for values in row["features"].values() if values) for row in case.dataset]
    case.dataset = case.dataset.add_column("length", lengths)
    settings = {"train_sampling_strategy": "group_by_length", "remove_unused_columns": False}
    trainer = case.trainer(tmp_path, **settings)
    assert list(trainer._get_train_sampler().lengths) == lengths[:32]
    trainer.train()


def test_smoothing_of_class_indices_is_refused(tmp_path):
    with pytest.raises(ValueError, match="leave label_smoothing_factor at 0; smoothed labels are soft labels"):
        fusion_case().trainer(tmp_path, label_smoothing_factor=0.1).train()


def half_labelled(unlabelled, **settings):
    """Names of one's own, some rows without one, and every loss of rows."""
    terms = {"encoder_loss_weight": 0.3, "gate_loss_weight": 0.2, "gate_prior_weight": 0.1, "experts": True}
    case = named_case(**{**terms, **settings})
    labels = [None if place % 8 in unlabelled else name for place, name in enumerate(case.dataset["label"])]
    case.dataset = case.dataset.remove_columns("label").add_column("label", labels)
    return case


@pytest.mark.parametrize("unlabelled", [(), (0, 1, 2, 7)])
def test_accumulated_batches_step_as_one_batch(unlabelled, tmp_path):
    models, found = [], []
    for size, parts in ((8, 1), (2, 4)):
        # A balance is of a batch.
        case = half_labelled(unlabelled, gate_balance_weight=0.0)
        settings = {"per_device_train_batch_size": size, "gradient_accumulation_steps": parts, "optim": "sgd"}
        settings |= {"learning_rate": 1e-4}
        trainer = case.trainer(tmp_path, max_steps=2, train_sampling_strategy="sequential", **settings)
        found.append(trainer.train().training_loss)
        models.append(trainer.model)
    assert_same_weights(*models, rtol=0, atol=1e-6)
    assert found[0] == pytest.approx(found[1], rel=1e-6)


@pytest.mark.parametrize("unlabelled", [(), (4, 5)])
def test_a_last_batch_of_another_size_changes_no_measure(unlabelled, tmp_path):
    # A balance is of a batch, and so no part of the loss of an evaluation.
    case, found = half_labelled(unlabelled, gate_balance_weight=1e4), []
    nine = case.dataset.select(range(9))
    for size in (4, 9, 1):
        metrics = case.trainer(tmp_path, per_device_eval_batch_size=size).predict(nine).metrics
        found.append({key: value for key, value in metrics.items() if not key.endswith(("per_second", "time"))})
    assert {"test_uar", "test_loss"} <= set(found[0])
    assert all(found[0] == pytest.approx(other, rel=1e-6) for other in found[1:])
    # The mean over the labelled rows, times their share of all.
    labelled = [row for row in nine if row["label"] is not None]
    expected = case.trainer(tmp_path).predict(labelled).metrics["test_loss"] * len(labelled) / 9
    assert found[0]["test_loss"] == pytest.approx(expected, rel=1e-6)
    with torch.no_grad():
        model = half_labelled(unlabelled, gate_balance_weight=0.0).make_model().eval()
        assert model(**case.collator(labelled)).loss * len(labelled) / 9 == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("kind", "says"), [("valid", "single"), ("soft", "single, any distribution over them")])
def test_the_card_of_trainer_says_the_labels(kind, says, tmp_path):
    trainer = named_case(kind).trainer(tmp_path, trainer_class=PublishingTrainer, eval_strategy="steps", eval_steps=6)
    trainer.train()
    trainer.create_model_card()
    card = (tmp_path / "README.md").read_text()
    assert f"Trained by transformers' Trainer. Labels: 3 names (calm, tense, tired), {says}.\n\n<!--" in card
    assert "| UAR | 0." in card and "Blem" not in card and "hap" not in card


def test_a_distillation_callback_refuses_another_model(tmp_path):
    case = clip_rd_case()
    case.options = CASES["distillation"]().options
    with pytest.raises(ValueError, match="expected a CLIPRDDistiller, found a CLIPRDModel"):
        case.trainer(tmp_path).train()
