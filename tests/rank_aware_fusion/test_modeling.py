"""What the model computes: against a reference in numpy, and under everything that must change nothing."""

import math

import numpy as np
import pytest
import torch

from hf_blemo import RankAwareFusionConfig, RankAwareFusionModel, blemore

GATES = ["attention", "static", "uniform"]
FUSIONS = ["rank_aware", "weighted_sum", "concatenation"]
OUTPUTS = {
    "probabilities": (6,),
    "presence_logits": (6,),
    "salience_logits": (6,),
    "joint_probabilities": (36,),
    "encoder_weights": (4,),
    "selected_encoders": (2,),
    "fused_features": (8,),
}
# Clips that lack some of the four encoders, one of them all but one.
ABSENT = {
    1: ["clip"],
    2: ["wavlm.large", "clip", "action units"],
    3: ["hicmae/logits", "action units"],
    4: ["wavlm.large"],
}


def assert_same_outputs(found, expected, rows=slice(None), **tolerance):
    """All outputs of the samples are equal but for rounding."""
    for name in OUTPUTS:
        torch.testing.assert_close(
            found[name], expected[name][rows], msg=lambda text, name=name: f"{name}: {text}", **tolerance
        )


# --- A reference, one sample at a time, in float64 ---


def gelu(values: np.ndarray) -> np.ndarray:
    return 0.5 * values * (1 + np.vectorize(math.erf)(values / math.sqrt(2)))


def log_softmax(values: np.ndarray) -> np.ndarray:
    return values - values.max() - np.log(np.exp(values - values.max()).sum())


class Reference:
    """The model's method written out for one clip, reading the weights of `model` by name."""

    def __init__(self, model: RankAwareFusionModel):
        self.config = model.config
        self.weights = {name: value.detach().double().numpy() for name, value in model.state_dict().items()}

    def linear(self, name: str, values: np.ndarray) -> np.ndarray:
        return self.weights[f"{name}.weight"] @ values + self.weights.get(f"{name}.bias", 0.0)

    def latent(self, index: int, options: dict, steps: np.ndarray) -> np.ndarray:
        steps = steps.astype(np.float64)
        mean, std = (self.weights[f"poolings.{index}.feature_{name}"] for name in ("mean", "std"))
        if options["transform"] == "log_softmax":
            steps = np.stack([log_softmax(step) for step in steps])
        if options["pooling"] == "attention":
            steps = (steps - mean) / std
            hidden = [np.tanh(self.linear(f"poolings.{index}.attention_hidden", step)) for step in steps]
            scores = np.array([self.linear(f"poolings.{index}.attention_score", step)[0] for step in hidden])
            pooled = np.exp(log_softmax(scores)) @ steps
        elif options["pooling"] == "statistics":
            percentiles = np.percentile(steps, [10, 25, 50, 75, 90], axis=0)
            pooled = (np.concatenate([steps.mean(0), steps.std(0), *percentiles]) - mean) / std
        else:
            pooled = (steps.mean(0) - mean) / std
        return gelu(self.linear(f"projections.{index}.linear", pooled))

    def gate(self, latents: dict[int, np.ndarray]) -> tuple[dict[int, float], list[int]]:
        """Weight of each encoder that is present, and all of them in rank order."""
        if self.config.gate == "attention":
            query = self.weights["gate.query"]
            if self.config.gate_context:
                query = query + self.linear("gate.context", np.mean(list(latents.values()), axis=0))
            scores = {}
            for index, latent in latents.items():
                key = self.linear("gate.key", latent) + self.weights["gate.encoder_embedding"][index]
                scores[index] = key @ query / math.sqrt(len(query))
        elif self.config.gate == "static":
            scores = {index: self.weights["gate.static_scores"][index] for index in latents}
        else:
            scores = dict.fromkeys(latents, 0.0)
        order = sorted(scores, key=lambda index: (-scores[index], index))
        if self.config.gate != "attention":
            return dict.fromkeys(latents, 1 / len(latents)), order
        shares = np.exp(log_softmax(np.array(list(scores.values()))))
        return dict(zip(scores, shares.tolist(), strict=True)), order

    def fuse(self, latents: dict[int, np.ndarray], weights: dict[int, float], selected: list[int]) -> np.ndarray:
        total = sum(weights[index] for index in selected)
        share = {index: weights[index] / total for index in selected}
        if self.config.fusion == "concatenation":
            joined = np.zeros((len(self.config.encoders), self.config.hidden_size))
            for index in selected:
                joined[index] = len(selected) * share[index] * latents[index]
        else:
            joined = np.zeros(self.config.hidden_size)
            for rank, index in enumerate(selected):
                latent = latents[index]
                if self.config.fusion == "rank_aware":
                    scale, embedding = (self.weights[f"fusion.rank_{name}"][rank] for name in ("scale", "embedding"))
                    latent = scale * latent + embedding
                joined += share[index] * latent
        return gelu(self.linear("fusion.linear", joined.reshape(-1)))

    def __call__(self, sample: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        latents = {
            index: self.latent(index, options, sample[name])
            for index, (name, options) in enumerate(self.config.encoders.items())
            if name in sample
        }
        weights, order = self.gate(latents)
        selected = order[: self.config.top_n]
        fused = self.fuse(latents, weights, selected)
        return {
            "encoder_weights": np.array([weights.get(index, 0.0) for index in range(len(self.config.encoders))]),
            "selected_encoders": np.array(selected + [-1] * (self.config.top_n - len(selected))),
            "fused_features": fused,
            "presence_logits": self.linear("heads.presence", fused),
            "salience_logits": self.linear("heads.salience", fused),
        }


@pytest.mark.parametrize("top_n", [1, 2, 3, 6])
@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("gate", GATES)
def test_forward_is_the_reference(make_model, make_samples, collate, gate, fusion, top_n):
    model = make_model(gate=gate, fusion=fusion, top_n=top_n)
    samples = make_samples(6, ABSENT)
    output = model(**collate(samples, fill=float("nan")))
    reference = Reference(model)
    for row, sample in enumerate(samples):
        for name, expected in reference(sample).items():
            np.testing.assert_allclose(
                output[name][row].detach().numpy(), expected, rtol=1e-4, atol=1e-5, err_msg=f"{name} of sample {row}"
            )


def test_forward_without_gate_context_is_the_reference(make_model, make_samples, collate):
    model = make_model(gate_context=False)
    samples = make_samples(6, ABSENT)
    output = model(**collate(samples))
    reference = Reference(model)
    for row, sample in enumerate(samples):
        expected = reference(sample)["encoder_weights"]
        np.testing.assert_allclose(output.encoder_weights[row].detach().numpy(), expected, rtol=1e-4, atol=1e-5)


# --- Outputs ---


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("top_n", [1, 2, 4, 6])
def test_names_order_shapes_and_kinds_of_the_outputs(make_model, make_samples, make_labels, collate, top_n, labelled):
    model = make_model(top_n=top_n)
    output = model(**collate(make_samples(5, ABSENT)), labels=make_labels(5) if labelled else None)
    names = list(OUTPUTS)
    assert list(output) == (["loss", *names, "domain_adaptation_loss"] if labelled else names)
    for name, shape in {**OUTPUTS, "selected_encoders": (top_n,)}.items():
        assert output[name].shape == (5, *shape), name
        assert output[name].dtype == (torch.int64 if name == "selected_encoders" else torch.float32), name
    if labelled:
        assert output.loss.shape == output.domain_adaptation_loss.shape == ()


def test_return_dict_false_is_the_tuple_of_what_is_there(make_model, make_samples, make_labels, collate):
    model, batch, labels = make_model(), collate(make_samples(3)), make_labels(3)
    for options in ({}, {"labels": labels}):
        output = model(**batch, **options)
        found = model(**batch, **options, return_dict=False)
        assert isinstance(found, tuple) and len(found) == len(output)
        for left, right in zip(found, output.values(), strict=True):
            torch.testing.assert_close(left, right, rtol=0, atol=0)


def test_settings_name_the_outputs_that_a_trainer_leaves_out(make_model, make_samples, make_labels, collate):
    model = make_model()
    output = model(**collate(make_samples(3)), labels=make_labels(3))
    ignored = model.config.keys_to_ignore_at_inference
    assert set(ignored) <= set(output)
    assert [name for name in output if name not in ignored] == ["loss", "probabilities", "joint_probabilities"]
    assert model.accepts_loss_kwargs is False


# --- Heads ---


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("exponent", [0.25, 0.5, 0.9])
def test_geometric_probabilities_by_hand(encoders, make_samples, collate, exponent, learned):
    options = {"head_exponent": exponent, "learn_head_exponent": learned}
    model = RankAwareFusionModel(RankAwareFusionConfig(encoders=encoders, **options)).eval()
    output = model(**collate(make_samples(4)))
    presence = 1 / (1 + np.exp(-output.presence_logits.detach().double().numpy()))
    salience = np.exp([log_softmax(row) for row in output.salience_logits.detach().double().numpy()])
    expected = presence**exponent * salience ** (1 - exponent)
    expected /= expected.sum(-1, keepdims=True)
    np.testing.assert_allclose(output.probabilities.detach().numpy(), expected, rtol=1e-5)
    assert ("heads.exponent_logit" in dict(model.named_parameters())) is learned


def test_probabilities_of_one_head_by_hand(make_model, make_samples, collate):
    for kind in ("presence", "salience"):
        output = make_model(head_fusion=kind)(**collate(make_samples(4)))
        logits = output[f"{kind}_logits"].detach().double().numpy()
        values = 1 / (1 + np.exp(-logits)) if kind == "presence" else np.exp(logits)
        expected = values / values.sum(-1, keepdims=True)
        np.testing.assert_allclose(output.probabilities.detach().numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("interaction", [True, False])
@pytest.mark.parametrize("head_fusion", ["geometric", "presence", "salience"])
def test_joint_probabilities_by_brute_force_from_the_heads(
    make_model, make_samples, collate, head_fusion, interaction
):
    model = make_model(head_fusion=head_fusion, joint_interaction=interaction)
    output = model(**collate(make_samples(4)))
    weights = {name: value.detach().double().numpy() for name, value in model.heads.state_dict().items()}
    scales = np.exp(weights["joint_scale"])
    for row in range(4):
        presence = 1 / (1 + np.exp(-output.presence_logits[row].detach().double().numpy()))
        log_salience = log_softmax(output.salience_logits[row].detach().double().numpy())
        energies = []
        for index, label in enumerate(blemore.LABELS):
            energy = weights["joint_bias"][index]
            shares = {blemore.EMOTIONS.index(part["emotion"]): part["salience"] / 100 for part in label}
            if head_fusion != "salience":
                hits = [presence[emotion] if emotion in shares else 1 - presence[emotion] for emotion in range(6)]
                energy += scales[0] * sum(math.log(hit) for hit in hits)
            if head_fusion != "presence":
                divergence = sum(
                    share * (math.log(share) - log_salience[emotion]) for emotion, share in shares.items()
                )
                energy -= scales[1] * divergence
            if interaction:
                energy += weights["interaction.weight"][index] @ output.fused_features[row].detach().double().numpy()
            energies.append(energy)
        expected = np.exp(log_softmax(np.array(energies)))
        np.testing.assert_allclose(output.joint_probabilities[row].detach().numpy(), expected, rtol=1e-4, atol=1e-7)


def test_probabilities_sum_to_one_and_survive_extreme_features(make_model, make_samples, collate):
    model = make_model()
    batch = collate(make_samples(5, ABSENT))
    for scale in (1.0, 1e4):
        features = {name: scale * values for name, values in batch["features"].items()}
        output = model(features, batch["feature_mask"])
        for values in (output.probabilities, output.joint_probabilities, output.encoder_weights):
            assert values.isfinite().all() and values.ge(0).all()
            torch.testing.assert_close(values.sum(-1), torch.ones(5))


# --- Absent encoders and padding ---


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("fill", [1e30, float("nan"), float("inf")])
def test_garbage_at_masked_steps_changes_nothing(make_model, make_samples, make_labels, collate, gate, fill):
    samples, labels = make_samples(6, ABSENT), make_labels(6)
    results = []
    for value in (0.0, fill):
        model = make_model(gate=gate, encoder_loss_weight=0.3, joint_loss_weight=1.0)
        output = model(**collate(samples, fill=value), labels=labels)
        output.loss.backward()
        results.append((output, {name: parameter.grad for name, parameter in model.named_parameters()}))
    (clean, clean_gradients), (garbage, gradients) = results
    assert_same_outputs(garbage, clean, rtol=0, atol=0)
    torch.testing.assert_close(garbage.loss, clean.loss, rtol=0, atol=0)
    torch.testing.assert_close(gradients, clean_gradients)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_batch_is_its_samples_one_by_one(make_model, make_samples, collate, gate, fusion):
    model = make_model(gate=gate, fusion=fusion, top_n=3)
    samples = make_samples(6, ABSENT)
    together = model(**collate(samples))
    for row, sample in enumerate(samples):
        assert_same_outputs(model(**collate([sample])), together, slice(row, row + 1), rtol=1e-5, atol=1e-6)


def test_neighbours_and_their_order_do_not_matter(make_model, make_samples, collate):
    model = make_model()
    samples = make_samples(6, ABSENT)
    together = model(**collate(samples))
    for rows in ([5, 2, 0], [2, 4], [3, 3, 1, 0, 5, 2, 4]):
        assert_same_outputs(model(**collate([samples[row] for row in rows])), together, rows, rtol=1e-5, atol=1e-6)


def test_length_of_the_padding_does_not_matter(make_model, make_samples, collate):
    model = make_model()
    samples = make_samples(6, ABSENT)
    assert_same_outputs(model(**collate(samples, extra=9)), model(**collate(samples)), rtol=1e-5, atol=1e-6)


def test_without_a_mask_every_step_is_valid(make_model, collate, make_samples):
    model = make_model()
    samples = [{name: steps[:1].repeat(3, 0) for name, steps in sample.items()} for sample in make_samples(4)]
    batch = collate(samples)
    expected = model(**batch)
    assert_same_outputs(model(batch["features"]), expected, rtol=0, atol=0)
    partial = {name: batch["feature_mask"][name] for name in ("clip", "action units")}
    assert_same_outputs(model(batch["features"], partial), expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["wavlm.large", "clip", "hicmae/logits", "action units"])
def test_an_encoder_left_out_of_the_batch_is_absent_in_every_sample(make_model, make_samples, collate, name):
    model = make_model(top_n=4)
    batch = collate(make_samples(4, absent=dict.fromkeys(range(4), [name])))
    expected = model(**batch)
    for part in batch.values():
        del part[name]
    assert_same_outputs(model(**batch), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("top_n", [1, 2, 3, 4, 6])
def test_absent_encoders_have_no_weight_and_are_never_selected(make_model, make_samples, collate, gate, top_n):
    samples = make_samples(6, ABSENT)
    output = make_model(gate=gate, top_n=top_n)(**collate(samples, fill=1e6))
    names = ["wavlm.large", "clip", "hicmae/logits", "action units"]
    for row, sample in enumerate(samples):
        weights, selected = output.encoder_weights[row], output.selected_encoders[row].tolist()
        present = [index for index, name in enumerate(names) if name in sample]
        assert [index for index in range(4) if weights[index] > 0] == present
        assert weights.sum().item() == pytest.approx(1, abs=1e-6)
        num_used = min(top_n, len(present))
        assert len(set(selected[:num_used])) == num_used and set(selected[:num_used]) <= set(present)
        assert selected[num_used:] == [-1] * (top_n - num_used)


def test_a_sample_without_any_encoder_is_finite_and_selects_none(make_model, make_samples, make_labels, collate):
    samples = make_samples(3)
    samples[1] = {}
    model = make_model(top_n=3, encoder_loss_weight=0.2, gate_loss_weight=0.2, gate_balance_weight=0.1)
    output = model(**collate(samples, fill=float("nan")), labels=make_labels(3))
    assert output.encoder_weights[1].tolist() == [0, 0, 0, 0]
    assert output.selected_encoders[1].tolist() == [-1, -1, -1]
    assert all(values.isfinite().all() for values in output.values())
    output.loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_absent_encoders_get_no_gradient(make_model, make_samples, make_labels, collate):
    model = make_model(encoder_loss_weight=0.5, gate_loss_weight=0.5, gate_balance_weight=0.5, top_n=4)
    samples = make_samples(4, absent=dict.fromkeys(range(4), ["clip"]))
    model(**collate(samples), labels=make_labels(4)).loss.backward()
    for index, is_absent in enumerate([False, True, False, False]):
        gradient = model.projections[index].linear.weight.grad
        assert gradient.eq(0).all() if is_absent else gradient.ne(0).any()


# --- Selection and ranks ---


def test_order_of_the_attention_gate_is_that_of_its_weights(make_model, make_samples, collate):
    output = make_model(top_n=4)(**collate(make_samples(40)))
    torch.testing.assert_close(output.selected_encoders, output.encoder_weights.argsort(-1, descending=True))
    assert len({tuple(order) for order in output.selected_encoders.tolist()}) > 1, "the gate does not see the sample"


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("gate", ["attention", "static"])
def test_unselected_encoders_cannot_be_seen(make_model, make_samples, collate, gate, fusion):
    # Without the context, in which every encoder that is present is heard, a selection depends on the scores alone.
    model = make_model(gate=gate, fusion=fusion, gate_context=False)
    batch = collate(make_samples(30))
    output = model(**batch)
    num_unseen = num_seen = 0
    for index, name in enumerate(model.config.encoders):
        values = batch["features"][name]
        features = {**batch["features"], name: values + 0.5 * torch.randn_like(values)}
        found = model(features, batch["feature_mask"])
        same_selection = found.selected_encoders.eq(output.selected_encoders).all(-1)
        unseen = same_selection & output.selected_encoders.ne(index).all(-1)
        for key in ("probabilities", "joint_probabilities", "fused_features"):
            torch.testing.assert_close(found[key][unseen], output[key][unseen], rtol=1e-5, atol=1e-5)
        num_unseen += int(unseen.sum())
        changed = (found.probabilities - output.probabilities).abs().amax(-1).gt(1e-4)
        num_seen += int((changed & output.selected_encoders.eq(index).any(-1)).sum())
    # Of the 4 * 30 changes half fall on an encoder that is selected, and some of the others change the selection.
    assert num_unseen >= 30
    assert num_seen >= 50


@pytest.mark.parametrize("fusion", FUSIONS)
def test_order_of_the_ranks_matters_to_rank_aware_fusion_alone(make_model, make_samples, collate, fusion):
    model = make_model(gate="static", fusion=fusion, top_n=2)
    batch = collate(make_samples(5))
    outputs = []
    for scores in ([3.0, 2.0, 1.0, 0.0], [2.0, 3.0, 1.0, 0.0]):
        model.set_static_scores(dict(zip(model.config.encoders, scores, strict=True)))
        outputs.append(model(**batch))
    assert outputs[0].selected_encoders.tolist() == [[0, 1]] * 5
    assert outputs[1].selected_encoders.tolist() == [[1, 0]] * 5
    difference = (outputs[0].probabilities - outputs[1].probabilities).abs().amax(-1)
    if fusion == "rank_aware":
        assert difference.gt(1e-3).all()
    else:
        assert difference.lt(1e-6).all()


def test_ranks_without_an_encoder_are_silent(make_model, make_samples, collate):
    # Of two encoders present, a third rank must neither add its embedding nor a copy of another encoder.
    model = make_model(top_n=3)
    batch = collate(make_samples(4, absent=dict.fromkeys(range(4), ["clip", "hicmae/logits"])))
    expected = model(**batch).fused_features
    with torch.no_grad():
        model.fusion.rank_embedding[2] += 10.0
        model.fusion.rank_scale[2] += 10.0
    torch.testing.assert_close(model(**batch).fused_features, expected, rtol=0, atol=0)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_peaked_gate_selects_as_many_and_trains(make_model, make_samples, make_labels, collate, fusion):
    model = make_model(fusion=fusion, gate_context=False, encoder_loss_weight=0.5, gate_loss_weight=0.5)
    with torch.no_grad():
        model.gate.query.mul_(1e5)
    output = model(**collate(make_samples(10)), labels=make_labels(10))
    assert output.encoder_weights.amax(-1).gt(0.999).all()
    assert output.selected_encoders.ge(0).all()
    output.loss.backward()
    assert output.loss.isfinite() and all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_static_scores_are_named_and_complete(make_model):
    model = make_model(gate="static")
    with pytest.raises(ValueError, match="clip"):
        model.set_static_scores({name: 1.0 for name in model.config.encoders if name != "clip"})
    with pytest.raises(ValueError, match="klip"):
        model.set_static_scores({**dict.fromkeys(model.config.encoders, 1.0), "klip": 1.0})
    with pytest.raises(ValueError, match="gate='static', this model has gate='attention'"):
        make_model().set_static_scores(dict.fromkeys(model.config.encoders, 1.0))


# --- Randomness in training ---


def test_gate_noise_changes_selections_in_training_alone(make_model, make_samples, collate):
    model = make_model(gate_noise=2.0)
    batch = collate(make_samples(40))
    quiet = model(**batch)
    assert_same_outputs(model(**batch), quiet, rtol=0, atol=0)
    model.train()
    torch.manual_seed(0)
    first, second = model(**batch), model(**batch)
    assert first.selected_encoders.ne(second.selected_encoders).any()
    torch.manual_seed(0)
    assert_same_outputs(model(**batch), first, rtol=0, atol=0)


def test_size_of_the_gate_noise(make_model, make_samples, collate):
    model = make_model(gate_noise=0.7, gate_context=False).train()
    with torch.no_grad():
        model.gate.query.zero_()
    batch = collate(make_samples(1))
    features = {name: values.expand(4000, -1, -1) for name, values in batch["features"].items()}
    logits = model(features).encoder_weights.log()
    # The difference of two encoders' scores has twice the variance of one.
    assert (logits[:, 0] - logits[:, 1]).std().item() == pytest.approx(0.7 * math.sqrt(2), rel=0.05)


def test_encoder_dropout_hides_at_its_rate_and_always_leaves_one(make_model, make_samples, collate):
    model = make_model(encoder_dropout=0.5, gate="uniform", top_n=4)
    batch = collate(make_samples(1))
    features = {name: values.expand(4000, -1, -1) for name, values in batch["features"].items()}
    assert model(features).encoder_weights.eq(0.25).all()
    torch.manual_seed(0)
    visible = model.train()(features).encoder_weights.gt(0)
    assert visible.any(-1).all()
    # One draw in 16 would hide all four and is taken back.
    torch.testing.assert_close(visible.float().mean(0), torch.full((4,), 0.5 + 1 / 16), rtol=0, atol=0.03)


def test_modality_dropout_hides_all_encoders_of_a_modality_together(make_model, make_samples, collate):
    model = make_model(modality_dropout=0.3, gate="uniform", top_n=4)
    batch = collate(make_samples(1))
    features = {name: values.expand(4000, -1, -1) for name, values in batch["features"].items()}
    torch.manual_seed(0)
    visible = model.train()(features).encoder_weights.gt(0)
    assert visible.any(-1).all()
    audio, first_video, audiovisual, second_video = visible.unbind(-1)
    assert first_video.eq(second_video).all()
    # Three modalities; all of them at once, 0.3 ** 3, is taken back.
    for column in (audio, first_video, audiovisual):
        assert column.float().mean().item() == pytest.approx(0.7 + 0.027, abs=0.03)


@pytest.mark.parametrize("options", [{"encoder_dropout": 0.6}, {"modality_dropout": 0.6}], ids=str)
def test_dropout_of_encoders_never_shows_an_absent_one(make_model, make_samples, collate, options):
    samples = make_samples(6, ABSENT) * 50
    names = ["wavlm.large", "clip", "hicmae/logits", "action units"]
    present = torch.tensor([[name in sample for name in names] for sample in samples])
    torch.manual_seed(0)
    output = make_model(**options, top_n=4).train()(**collate(samples, fill=float("nan")))
    weights = output.encoder_weights
    assert not (weights.gt(0) & ~present).any()
    assert (weights.eq(0) & present).any()
    assert weights.gt(0).any(-1).all()
    torch.testing.assert_close(output.selected_encoders.ge(0).sum(-1), weights.gt(0).sum(-1))


def test_dropout_acts_in_training_alone(make_model, make_samples, collate):
    model = make_model(dropout=0.5)
    batch = collate(make_samples(4))
    assert_same_outputs(model(**batch), model(**batch), rtol=0, atol=0)
    model.train()
    assert model(**batch).probabilities.sub(model(**batch).probabilities).abs().max() > 1e-3


# --- Shapes at their limits ---


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("pooling", ["mean", "statistics", "attention"])
def test_one_clip_of_one_step_of_one_encoder(gate, fusion, pooling):
    encoders = {"only": {"feature_size": 3, "pooling": pooling}}
    config = RankAwareFusionConfig(encoders=encoders, hidden_size=4, gate=gate, fusion=fusion, gate_balance_weight=0.5)
    model = RankAwareFusionModel(config).train()
    label = torch.tensor([[0.7, 0.3, 0, 0, 0, 0]])
    output = model({"only": torch.ones(1, 1, 3)}, labels=label)
    assert output.selected_encoders.tolist() == [[0, -1, -1]]
    assert output.encoder_weights.tolist() == [[1.0]]
    output.loss.backward()
    assert output.loss.isfinite() and all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_pooled_vectors_give_what_their_steps_give(make_model, make_samples, collate):
    model = make_model(top_n=4)
    batch = collate(make_samples(6, ABSENT))
    expected = model(**batch)
    features, mask = dict(batch["features"]), dict(batch["feature_mask"])
    for name, pooling in zip(model.config.encoders, model.poolings, strict=True):
        if pooling.pooling != "attention":
            features[name] = pooling.pool(features[name], mask[name])
            mask[name] = mask[name].any(1, keepdim=True)
            assert features[name].shape == (6, model.config.pooled_size(name))
            # What stands in the row of an absent encoder does not matter here either.
            features[name][~mask[name][:, 0]] = float("nan")
    assert_same_outputs(model(features, mask), expected, rtol=1e-5, atol=1e-6)


def test_statistics_of_features_are_set_by_name(make_model, make_samples, collate):
    model = make_model()
    batch = collate(make_samples(4))
    mean, std = torch.tensor([1.0, -2, 3, 0]), torch.tensor([2.0, 0.5, 1, 0])
    model.set_feature_statistics("clip", torch.zeros(4), torch.ones(4))
    expected = model(**batch).fused_features
    model.set_feature_statistics("clip", mean, std)
    assert model.poolings[1].feature_std.tolist() == [2, 0.5, 1, 1]
    scaled = torch.where(std > 0, std, 1) * batch["features"]["clip"] + mean
    found = model({**batch["features"], "clip": scaled}, batch["feature_mask"]).fused_features
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_statistics_of_an_unknown_encoder_or_of_another_width_are_refused(make_model):
    model = make_model()
    with pytest.raises(ValueError, match="klip.*wavlm.large, clip"):
        model.set_feature_statistics("klip", torch.zeros(4), torch.ones(4))
    with pytest.raises(ValueError, match="clip.*4"):
        model.set_feature_statistics("clip", torch.zeros(1), torch.ones(1))


# --- What is refused ---


def test_a_model_without_encoders_is_refused():
    with pytest.raises(ValueError, match="encoders is empty"):
        RankAwareFusionModel(RankAwareFusionConfig())


@pytest.mark.parametrize(
    ("features", "mask", "message"),
    [
        ({}, None, "features is empty: expected some of wavlm.large, clip"),
        ({"klip": (2, 3, 4)}, None, "unknown encoder 'klip'"),
        ({"clip": (2, 3, 5)}, None, "'clip': expected features of shape .*found \\(2, 3, 5\\)"),
        ({"action units": (2, 3)}, None, "'action units': .*\\(2, time, 3\\).*\\(2, 21\\), found \\(2, 3\\)"),
        ({"clip": (2, 3, 1, 4)}, None, "'clip': .*found \\(2, 3, 1, 4\\)"),
        ({"clip": (2, 3, 4), "action units": (3, 3, 3)}, None, "'action units': .*\\(2, .*found \\(3, 3, 3\\)"),
        ({"clip": (2, 3, 4)}, {"clip": (2, 4)}, "'clip': feature_mask has shape \\(2, 4\\), expected \\(2, 3\\)"),
        ({"clip": (2, 3, 4)}, {"clip": (2, 1)}, "'clip': feature_mask has shape \\(2, 1\\), expected \\(2, 3\\)"),
        ({"clip": (2, 4)}, {"clip": (3, 1)}, "'clip': feature_mask has shape \\(3, 1\\), expected \\(2, 1\\)"),
        ({"clip": (2, 4)}, {"clip": (2,)}, "'clip': feature_mask has shape \\(2,\\), expected \\(2, 1\\)"),
        ({"clip": (2, 3, 4)}, {"klip": (2, 3)}, "klip"),
    ],
    ids=["none", "unknown encoder", "width", "pooled width", "axes", "batch", "mask length", "pooled mask of steps",
         "pooled mask of another batch", "flat mask", "mask of an unknown encoder"],
)  # fmt: skip
def test_features_that_do_not_fit_are_refused_by_name(make_model, features, mask, message):
    features = {name: torch.zeros(shape) for name, shape in features.items()}
    mask = mask and {name: torch.ones(shape, dtype=torch.bool) for name, shape in mask.items()}
    with pytest.raises(ValueError, match=message):
        make_model()(features, mask)
