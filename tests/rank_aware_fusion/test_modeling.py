"""What the model computes: against a reference in numpy, and under everything that must change nothing."""

import math

import numpy as np
import pytest
import torch
from tiny_models import EXTENDED

from hf_blemo import RankAwareFusionConfig, RankAwareFusionModel

GATES = ["attention", "static", "uniform"]
FUSIONS = ["rank_aware", "weighted_sum", "concatenation"]
OUTPUTS = (
    "probabilities", "presence_logits", "salience_logits", "joint_probabilities", "encoder_weights",
    "selected_encoders", "fused_features",
)  # fmt: skip
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

    def features(self, index: int, options: dict, steps: np.ndarray) -> np.ndarray:
        """What both the latent and the expert of one encoder see of it."""
        steps = steps.astype(np.float64)
        mean, std = (self.weights[f"poolings.{index}.feature_{name}"] for name in ("mean", "std"))
        bend = np.arcsinh if self.config.squash == "asinh" else np.array
        if options["transform"] == "log_softmax":
            steps = np.stack([log_softmax(step) for step in steps])
        if options["pooling"] == "attention":
            steps = bend((steps - mean) / std)
            hidden = [np.tanh(self.linear(f"poolings.{index}.attention_hidden", step)) for step in steps]
            scores = np.array([self.linear(f"poolings.{index}.attention_score", step)[0] for step in hidden])
            pooled = np.exp(log_softmax(scores)) @ steps
        elif options["pooling"] == "statistics":
            percentiles = np.percentile(steps, [10, 25, 50, 75, 90], axis=0)
            pooled = bend((np.concatenate([steps.mean(0), steps.std(0), *percentiles]) - mean) / std)
        else:
            pooled = bend((steps.mean(0) - mean) / std)
        if self.config.feature_weighting == "relevance":
            pooled = pooled * self.weights[f"poolings.{index}.feature_relevance"] / self.relevance(index)
        return pooled

    def relevance(self, index: int) -> float:
        return float(np.sqrt(np.mean(self.weights[f"poolings.{index}.feature_relevance"] ** 2)))

    def latent(self, index: int, features: np.ndarray) -> np.ndarray:
        values = self.linear(f"projections.{index}.linear", features)
        return gelu(values) if self.config.latent_activation == "gelu" else values

    def seen(self, index: int, latent: np.ndarray, said: np.ndarray) -> np.ndarray:
        """What the gate reads of one encoder."""
        if self.config.gate != "attention" or self.config.gate_reads == "latents":
            return latent
        shares = np.exp(log_softmax(len(self.config.encoders) * said[len(said) // 2 :]))
        words = np.concatenate([shares, [-(shares * np.log(shares)).sum(), shares.max()]])
        read = words @ self.weights["gate.reading"][index]
        return latent + read if self.config.gate_reads == "both" else read

    def gate(self, seen: dict[int, np.ndarray]) -> tuple[dict[int, float], list[int]]:
        """Weight of each encoder that is present, and all of them in rank order."""
        if self.config.gate == "attention":
            query = self.weights["gate.query"]
            if self.config.gate_context:
                query = query + self.linear("gate.context", np.mean(list(seen.values()), axis=0))
            scores = {}
            for index, latent in seen.items():
                key = self.linear("gate.key", latent) + self.weights["gate.encoder_embedding"][index]
                scores[index] = key @ query / math.sqrt(len(query))
        elif self.config.gate == "static":
            scores = {index: self.weights["gate.static_scores"][index] for index in seen}
        else:
            scores = dict.fromkeys(seen, 0.0)
        if self.config.gate != "static" and self.config.gate_prior == "relevance":
            scores = {index: score + math.log(self.relevance(index)) for index, score in scores.items()}
        order = sorted(scores, key=lambda index: (-scores[index], index))
        if self.config.gate == "static":
            return dict.fromkeys(seen, 1 / len(seen)), order
        shares = np.exp(log_softmax(np.array(list(scores.values()))))
        return dict(zip(scores, shares.tolist(), strict=True)), order

    def fuse(self, latents: dict[int, np.ndarray], share: dict[int, float]) -> np.ndarray:
        """Of the selected encoders in rank order, whose shares sum to 1."""
        placed = np.zeros((len(self.config.encoders), self.config.hidden_size))
        for rank, (index, weight) in enumerate(share.items()):
            latent = latents[index]
            if self.config.fusion == "rank_aware":
                scale, embedding = (self.weights[f"fusion.rank_{name}"][rank] for name in ("scale", "embedding"))
                latent = scale * latent + embedding
            placed[index] = weight * latent
        if self.config.fusion == "concatenation" or self.config.fusion_maps == "encoder":
            return gelu(self.linear("fusion.linear", len(share) * placed.reshape(-1)))
        return gelu(self.linear("fusion.linear", placed.sum(0)))

    def joined(self, said: dict[int, np.ndarray], share: dict[int, float]) -> np.ndarray:
        """What the experts of the selected encoders say together."""
        total = 32 * self.weights["experts.bias"]
        for rank, (index, weight) in enumerate(share.items()):
            factor = self.weights["fusion.rank_weight"][rank] if self.config.fusion == "rank_aware" else 1.0
            total = total + len(share) * weight * factor * said[index]
        return total

    def __call__(self, sample: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        features = {
            index: self.features(index, options, sample[name])
            for index, (name, options) in enumerate(self.config.encoders.items())
            if name in sample
        }
        latents = {index: self.latent(index, values) for index, values in features.items()}
        said: dict[int, np.ndarray] = {}
        if self.config.experts:
            for index, values in features.items():
                matrix = self.weights[f"experts.matrices.{index}"]
                said[index] = values @ matrix * 32 / math.sqrt(len(matrix))
        weights, order = self.gate(
            {index: self.seen(index, latents[index], said.get(index, latents[index])) for index in latents}
        )
        selected = order[: self.config.top_n]
        share = {index: weights[index] / sum(weights[other] for other in selected) for index in selected}
        fused = self.fuse(latents, share)
        logits = np.concatenate([self.linear(f"heads.{name}", fused) for name in ("presence", "salience")])
        if said:
            logits = logits + self.joined(said, share)
        presence_logits, salience_logits = np.split(logits, 2)
        presence, log_salience = 1 / (1 + np.exp(-presence_logits)), log_softmax(salience_logits)
        exponent = {"presence": 1.0, "salience": 0.0, "geometric": self.config.head_exponent}[self.config.head_fusion]
        if self.config.head_fusion == "geometric" and self.config.learn_head_exponent:
            exponent = 1 / (1 + np.exp(-self.weights["heads.exponent_logit"]))
        probabilities = presence**exponent * np.exp(log_salience) ** (1 - exponent)
        probabilities /= probabilities.sum()
        blends = self.config.label_space.blend_percents
        return {
            "encoder_weights": np.array([weights.get(index, 0.0) for index in range(len(self.config.encoders))]),
            "selected_encoders": np.array(selected + [-1] * (self.config.top_n - len(selected))),
            "fused_features": fused,
            "presence_logits": presence_logits,
            "salience_logits": salience_logits,
            "probabilities": probabilities,
            "joint_probabilities": self.joint(presence, log_salience, fused) if blends else probabilities,
        }

    def joint(self, presence: np.ndarray, log_salience: np.ndarray, fused: np.ndarray) -> np.ndarray:
        """Label by label: log-likelihood of its set, divergence of its shares, and its own interaction."""
        presence_scale, salience_scale = np.exp(self.weights["heads.joint_scale"])
        energies = self.weights["heads.joint_bias"].copy()
        if "heads.interaction.weight" in self.weights:
            energies += self.weights["heads.interaction.weight"] @ fused
        for index, label in enumerate(self.config.label_space.percent / 100):
            if self.config.head_fusion != "salience":
                energies[index] += presence_scale * np.log(np.where(label > 0, presence, 1 - presence)).sum()
            if self.config.head_fusion != "presence":
                parts = [share * (math.log(share) - log_salience[place]) for place, share in enumerate(label) if share]
                energies[index] -= salience_scale * sum(parts)
        return np.exp(log_softmax(energies))


@pytest.mark.parametrize(
    "options",
    [
        *({"gate": gate, "fusion": fusion, "top_n": 2} for gate in GATES for fusion in FUSIONS),
        *({"top_n": top_n} for top_n in (1, 3, 4)),
        {"gate": "static", "top_n": 3},
        {"gate_context": False},
        {"head_fusion": "presence"},
        {"head_fusion": "salience", "joint_interaction": True},
        {"head_exponent": 0.9, "learn_head_exponent": False, "joint_interaction": False},
        {"head_exponent": 0.25, "learn_head_exponent": True, "joint_interaction": True},
        {"id2label": dict(enumerate("abc")), "label_kind": "soft"},
        {"squash": "asinh"},
        {"latent_activation": "none"},
        {"feature_weighting": "relevance"},
        *({"experts": True, "fusion": fusion, "top_n": top_n} for fusion in FUSIONS for top_n in (2, 4)),
        *({"fusion_maps": "encoder", "fusion": fusion} for fusion in FUSIONS[:2]),
        *({"experts": True, "gate_reads": reads} for reads in ("experts", "both")),
        *({"gate_prior": "relevance", "feature_weighting": "relevance", "gate": gate} for gate in GATES),
        *({**EXTENDED, "gate": gate, "fusion": fusion, "top_n": 3} for gate in GATES for fusion in FUSIONS),
        *({**EXTENDED, "top_n": top_n, "id2label": dict(enumerate("abc"))} for top_n in (1, 4)),
        {**EXTENDED, "gate_reads": "experts", "gate_context": False, "id2label": dict(enumerate("abcd")),
         "blend_percents": [[60, 40], [40, 60]], "unblended": ["b"]},
    ],
    ids=str,
)  # fmt: skip
def test_every_sample_of_a_batch_is_the_reference(make_model, make_samples, collate, options):
    model = make_model(**options)
    samples = make_samples(8, ABSENT)
    output = model(**collate(samples, fill=float("nan")))
    reference = Reference(model)
    for row, sample in enumerate(samples):
        for name, expected in reference(sample).items():
            found = output[name][row].detach().numpy()
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5, err_msg=f"{name} of sample {row}")
    assert options.get("gate") or len({tuple(order) for order in output.selected_encoders.tolist()}) > 1


@pytest.mark.parametrize("labelled", [True, False])
def test_names_order_and_kinds_of_the_outputs(make_model, make_samples, make_labels, collate, labelled):
    model, inputs = make_model(), {**collate(make_samples(3)), "labels": make_labels(3) if labelled else None}
    output = model(**inputs)
    assert list(output) == (["loss", *OUTPUTS, "domain_adaptation_loss"] if labelled else list(OUTPUTS))
    for name in output:
        assert output[name].dtype == (torch.int64 if name == "selected_encoders" else torch.float32), name
    if labelled:
        assert output.loss.shape == output.domain_adaptation_loss.shape == ()
        # What a trainer leaves out of its predictions.
        ignored = model.config.keys_to_ignore_at_inference
        assert set(ignored) - {"novelty"} <= set(output)
        assert [name for name in output if name not in ignored] == ["loss", "probabilities", "joint_probabilities"]
        # The loss takes the number of labelled rows of the whole step.
        assert model.accepts_loss_kwargs is True
    found = model(**inputs, return_dict=False)
    assert isinstance(found, tuple)
    for left, right in zip(found, output.values(), strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=0)


@pytest.mark.parametrize("options", [{}, EXTENDED, {**EXTENDED, "squash": "none"}], ids=["plain", "extended", "far"])
def test_probabilities_survive_extreme_features(make_model, make_samples, collate, options):
    batch = collate(make_samples(5, ABSENT))
    output = make_model(**options)(
        {name: 1e4 * values for name, values in batch["features"].items()}, batch["feature_mask"]
    )
    for values in (output.probabilities, output.joint_probabilities, output.encoder_weights):
        assert values.isfinite().all() and values.ge(0).all()
        torch.testing.assert_close(values.sum(-1), torch.ones(5))


def test_without_a_mask_every_step_is_valid(make_model, collate, make_samples):
    model = make_model()
    samples = [{name: steps[:1].repeat(3, 0) for name, steps in sample.items()} for sample in make_samples(4)]
    batch = collate(samples)
    expected = model(**batch)
    assert_same_outputs(model(batch["features"]), expected, rtol=0, atol=0)
    partial = {name: batch["feature_mask"][name] for name in ("clip", "action units")}
    assert_same_outputs(model(batch["features"], partial), expected, rtol=0, atol=0)


@pytest.mark.parametrize("more", [{}, EXTENDED], ids=["plain", "extended"])
@pytest.mark.parametrize("name", ["wavlm.large", "clip", "action units"])
def test_an_encoder_left_out_of_the_batch_is_absent_in_every_sample(
    make_model, make_samples, make_labels, collate, name, more
):
    options = {"domain_adaptation": "adversarial", "encoder_loss_weight": 0.5, "gate_loss_weight": 0.4}
    model = make_model(top_n=4, **options, **more)
    batch = collate(make_samples(4, absent=dict.fromkeys(range(4), [name])))
    expected = model(**batch)
    for part in batch.values():
        del part[name]
    output = model(**batch, labels=make_labels(4))
    assert_same_outputs(output, expected, rtol=1e-5, atol=1e-6)
    # Distributed training waits for the gradient of every parameter in every step.
    output.loss.backward()
    assert [key for key, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("options", [{}, EXTENDED], ids=["plain", "extended"])
def test_a_sample_without_any_encoder_is_finite_and_selects_none(
    make_model, make_samples, make_labels, collate, options
):
    samples = make_samples(3)
    samples[1] = {}
    model = make_model(**options, top_n=3, encoder_loss_weight=0.2, gate_loss_weight=0.2, gate_balance_weight=0.1)
    output = model(**collate(samples, fill=float("nan")), labels=make_labels(3))
    assert output.encoder_weights[1].tolist() == [0, 0, 0, 0]
    assert output.selected_encoders[1].tolist() == [-1, -1, -1]
    assert all(values.isfinite().all() for values in output.values())
    output.loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("options", [{}, {**EXTENDED, "gate_reads": "latents"}], ids=["plain", "extended"])
def test_an_encoder_of_no_weight_may_as_well_be_absent(make_model, make_samples, collate, options, fusion):
    """What the weights say is honest: no other weight depends on one of zero, where the gate reads latents alone."""
    model, samples = make_model(**options, fusion=fusion, gate_context=False, top_n=4), make_samples(8, {4: ["clip"]})
    with torch.no_grad():
        model.gate.encoder_embedding[0] = -1e4 * model.gate.query
    output = model(**collate(samples))
    assert output.encoder_weights[:, 0].eq(0).all() and output.selected_encoders.eq(0).any(-1).all()
    without = model(
        **collate([{name: sample[name] for name in sample if name != "wavlm.large"} for sample in samples])
    )
    for name in ("encoder_weights", "probabilities", "joint_probabilities", "fused_features"):
        torch.testing.assert_close(output[name], without[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{}, EXTENDED], ids=["plain", "extended"])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_peaked_gate_selects_as_many_and_trains(make_model, make_samples, make_labels, collate, fusion, options):
    model = make_model(**options, fusion=fusion, gate_context=False, encoder_loss_weight=0.5, gate_loss_weight=0.5)
    with torch.no_grad():
        model.gate.query.mul_(1e5)
    output = model(**collate(make_samples(10)), labels=make_labels(10))
    assert output.encoder_weights.amax(-1).gt(0.999).all()
    assert output.selected_encoders.ge(0).all()
    output.loss.backward()
    assert output.loss.isfinite() and all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_values_by_the_name_of_an_encoder_are_named_and_complete(make_model):
    model, static = make_model(), make_model(gate="static")
    scores = dict.fromkeys(model.config.encoders, 1.0)
    for call, message in (
        (lambda: static.set_static_scores({"wavlm.large": 1.0}), "clip"),
        (lambda: static.set_static_scores({**scores, "klip": 1.0}), "klip"),
        (lambda: model.set_static_scores(scores), "gate='static', this model has gate='attention'"),
        (lambda: model.set_feature_statistics("klip", torch.zeros(4), torch.ones(4)), "klip.*wavlm.large, clip"),
        (lambda: model.set_feature_statistics("clip", torch.zeros(1), torch.ones(1)), "clip.*4"),
        (lambda: model.set_feature_statistics("clip", *torch.ones(2, 4), torch.ones(1)), "clip.*relevance.*4.*1"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.fixture
def many(make_samples, collate):
    """The features of one clip with all encoders, 4,000 times."""
    batch = collate(make_samples(1))
    torch.manual_seed(0)
    return {name: values.expand(4000, -1, -1) for name, values in batch["features"].items()}


def test_gate_noise_has_its_size_and_changes_selections_in_training_alone(make_model, many):
    model = make_model(gate_noise=0.7, gate_context=False)
    with torch.no_grad():
        model.gate.query.zero_()
    assert model(many).encoder_weights.eq(0.25).all()
    output = model.train()(many)
    assert len(output.selected_encoders.unique(dim=0)) == 12
    logits = output.encoder_weights.log()
    # The difference of two encoders' scores has twice the variance of one.
    assert (logits[:, 0] - logits[:, 1]).std().item() == pytest.approx(0.7 * math.sqrt(2), rel=0.05)


def test_encoder_dropout_hides_at_its_rate_and_always_leaves_one(make_model, many):
    model = make_model(encoder_dropout=0.5, gate="uniform", top_n=4)
    assert model(many).encoder_weights.eq(0.25).all()
    visible = model.train()(many).encoder_weights.gt(0)
    assert visible.any(-1).all()
    # One draw in 16 would hide all four and is taken back.
    torch.testing.assert_close(visible.float().mean(0), torch.full((4,), 0.5 + 1 / 16), rtol=0, atol=0.03)


def test_modality_dropout_hides_all_encoders_of_a_modality_together(make_model, many):
    visible = make_model(modality_dropout=0.3, gate="uniform", top_n=4).train()(many).encoder_weights.gt(0)
    assert visible.any(-1).all()
    audio, first_video, audiovisual, second_video = visible.unbind(-1)
    assert first_video.eq(second_video).all()
    # Three modalities; all of them at once, 0.3 ** 3, is taken back.
    for column in (audio, first_video, audiovisual):
        assert column.float().mean().item() == pytest.approx(0.7 + 0.027, abs=0.03)


@pytest.mark.parametrize("options", [{"encoder_dropout": 0.6}, {"modality_dropout": 0.6}], ids=str)
def test_dropout_of_encoders_never_shows_an_absent_one(make_model, make_samples, collate, options):
    samples, model = make_samples(6, ABSENT) * 50, make_model(**options, top_n=4).train()
    present = torch.tensor([[name in sample for name in model.config.encoders] for sample in samples])
    torch.manual_seed(0)
    output = model(**collate(samples, fill=float("nan")))
    weights = output.encoder_weights
    assert not (weights.gt(0) & ~present).any()
    assert (weights.eq(0) & present).any()
    assert weights.gt(0).any(-1).all()
    torch.testing.assert_close(output.selected_encoders.ge(0).sum(-1), weights.gt(0).sum(-1))


@pytest.mark.parametrize("options", [{"dropout": 0.5}, {"input_dropout": 0.5}], ids=str)
def test_dropout_acts_in_training_alone(make_model, make_samples, collate, options):
    model = make_model(**options)
    batch = collate(make_samples(4))
    assert_same_outputs(model(**batch), model(**batch), rtol=0, atol=0)
    model.train()
    assert model(**batch).probabilities.sub(model(**batch).probabilities).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("gate", "fusion", "pooling"), list(zip(GATES, FUSIONS, ("statistics", "mean", "attention"), strict=True))
)
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
        ({"clip": (2, 4)}, {"clip": (3, 1)}, "'clip': feature_mask has shape \\(3, 1\\), expected \\(2, 1\\)"),
        ({"clip": (2, 4)}, {"clip": (2,)}, "'clip': feature_mask has shape \\(2,\\), expected \\(2, 1\\)"),
        ({"clip": (2, 3, 4)}, {"klip": (2, 3)}, "klip"),
    ],
)
def test_features_that_do_not_fit_are_refused_by_name(make_model, features, mask, message):
    features = {name: torch.zeros(shape) for name, shape in features.items()}
    mask = mask and {name: torch.ones(shape, dtype=torch.bool) for name, shape in mask.items()}
    with pytest.raises(ValueError, match=message):
        make_model()(features, mask)
