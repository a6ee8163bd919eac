"""The choice of epoch and decoding on predictions made by hand, where the right choice is known."""

import numpy as np
import pytest

from hf_blemo import blemore
from hf_blemo.fusion_training.lockstep import PREDICTED, Member
from hf_blemo.fusion_training.selection import Selection

# Ten rows in three folds; fold 0 has singles alone.
FOLDS = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 1])
LABELS = np.array([0, 6, 10, 3, 7, 20, 5, 13, 2, 1])
SOFT = blemore.LABEL_MATRIX[LABELS].astype(np.float64)


def in_fold(fold):
    """(N,) which rows are in a fold."""
    return np.equal(FOLDS, fold)


def joint(share, labels=LABELS):
    """(N, 36) with `share` (scalar or (N,)) on the true labels and the rest spread evenly."""
    share = np.broadcast_to(share, len(labels))
    rows = np.repeat((1 - share)[:, None] / 35, 36, axis=1)
    rows[np.arange(len(labels)), labels] = share
    return rows


def predictions_of(members, share):
    """Predictions whose share on the true label is `share(held_out, fold)`; other parts tell member and row."""
    num_members, num_rows = len(members), len(FOLDS)
    made = np.stack([joint([share(member.held_out, fold) for fold in FOLDS]) for member in members])
    probabilities = made @ blemore.LABEL_MATRIX
    tags = np.arange(num_members * num_rows, dtype=np.float32).reshape(num_members, num_rows, 1)
    return {
        "joint_probabilities": made,
        "probabilities": probabilities / probabilities.sum(-1, keepdims=True),
        "encoder_weights": tags,
        "selected_encoders": tags.astype(np.int64),
    }


def make_selection(protocol="honest", selection_metric="loss", seeds=(5,)):
    made = Selection(protocol, FOLDS, SOFT, seeds, selection_metric, "expected_score")
    return made.members, made


def test_honest_has_a_member_per_fold_and_pair_of_folds_the_published_style_one_per_fold():
    members, _ = make_selection(seeds=(7, 5))
    held_out = [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)]
    assert members == [Member(seed, folds) for seed in (7, 5) for folds in held_out]
    assert make_selection("published_style")[0] == [Member(5, (fold,)) for fold in range(3)]


def test_negative_log_likelihood_by_hand():
    _, selection = make_selection()
    assert selection.loss(joint(0.25)) == pytest.approx(-np.log(0.25))
    shares, rows = np.linspace(0.1, 0.9, 10), np.array([7, 2])
    assert selection.loss(joint(shares)) == pytest.approx(-np.log(shares).mean())
    assert selection.loss(joint(shares)[rows], rows) == pytest.approx(-np.log(shares[rows]).mean())
    assert np.isfinite(selection.loss(joint(0.0)))


def test_honest_choice_rests_on_the_inner_models_alone():
    """Each fold is best at an epoch of its own by the inner models, while the scored models say another."""
    members, selection = make_selection()
    best = {0: 1, 1: 2, 2: 3}
    # Judging fold k weighs the inner models by their rows of the other folds.
    script = {
        1: {(0, 1): {0: 0.1, 1: 0.9}, (0, 2): {0: 0.1, 2: 0.9}, (1, 2): {1: 0.1, 2: 0.1}},
        2: {(0, 1): {0: 0.9, 1: 0.1}, (0, 2): {0: 0.1, 2: 0.1}, (1, 2): {1: 0.1, 2: 0.9}},
        3: {(0, 1): {0: 0.1, 1: 0.1}, (0, 2): {0: 0.9, 2: 0.1}, (1, 2): {1: 0.9, 2: 0.1}},
    }
    given = {}
    for epoch, inner in script.items():
        # A scored model is perfect at the epoch after the one its fold has to choose, an inner model on rows it was
        # trained on always.
        def share(held_out, fold, epoch=epoch, inner=inner):
            if len(held_out) == 1:
                return 1.0 if epoch != best[held_out[0]] else 0.2
            return inner[held_out].get(fold, 1.0)

        given[epoch] = predictions_of(members, share)
        report = selection.update(epoch, given[epoch])
        for fold in range(3):
            shares = [inner[tuple(sorted((fold, other)))][other] for other in FOLDS[~in_fold(fold)]]
            assert report[5, fold]["validation_loss"] == pytest.approx(-np.log(shares).mean())
    for seed, fold, choice in selection:
        assert (seed, choice.epoch) == (5, best[fold])
        scored = members.index(Member(5, (fold,)))
        for name in PREDICTED:
            np.testing.assert_array_equal(choice.scored[name], given[best[fold]][name][scored][in_fold(fold)])
        rows = selection.judging_rows(fold)
        assert rows.tolist() == np.flatnonzero(~in_fold(fold)).tolist()
        owners = [members.index(Member(5, tuple(sorted((fold, other))))) for other in FOLDS[rows]]
        for name in PREDICTED:
            np.testing.assert_array_equal(choice.judging[name], given[best[fold]][name][owners, rows])


def test_published_style_chooses_on_the_scored_fold_by_the_score():
    members, selection = make_selection("published_style", selection_metric="loss")
    # Epoch 1 gets more labels right, epoch 2 has the lower loss: one certain error costs a likelihood much.
    certain = np.full(10, 0.4)
    certain[[0, 1, 2]] = 1e-9
    for epoch, share in ((1, certain), (2, np.full(10, 0.02)), (3, np.full(10, 0.9))):
        made = np.repeat(joint(share)[None], 3, 0)
        if epoch == 3:
            made[1:] = made[1:, :, ::-1]
        predictions = {**predictions_of(members, lambda held_out, fold: 0.5), "joint_probabilities": made}
        selection.update(epoch, predictions)
    assert {fold: choice.epoch for _, fold, choice in selection} == {0: 3, 1: 1, 2: 1}
    for _, fold, choice in selection:
        assert selection.judging_rows(fold).tolist() == np.flatnonzero(in_fold(fold)).tolist()
        np.testing.assert_array_equal(choice.judging["probabilities"], choice.scored["probabilities"])


def test_the_score_may_choose_another_epoch_than_the_loss():
    members, selection = make_selection(selection_metric="score")
    mostly_right = np.full(10, 0.5)
    mostly_right[[0, 4, 8]] = 1e-12
    for epoch, share in ((1, mostly_right), (2, np.full(10, 0.03)), (3, np.full(10, 0.01))):
        made = np.repeat(joint(share)[None], len(members), 0)
        if epoch > 1:
            # The true label second to another one: a fair likelihood, and no hit.
            made[..., 4] += 0.2
            made /= made.sum(-1, keepdims=True)
        report = selection.update(
            epoch, {**predictions_of(members, lambda held_out, fold: 0.5), "joint_probabilities": made}
        )
        assert (report[5, 0]["validation_score"] > 0.3) == (epoch == 1)
    assert {choice.epoch for _, _, choice in selection} == {1}


def test_blend_share_is_that_of_the_other_folds():
    _, selection = make_selection()
    assert [selection.blend_share(fold) for fold in range(3)] == pytest.approx([5 / 7, 2 / 6, 3 / 7])
    predictions = {"joint_probabilities": np.random.default_rng(0).dirichlet(np.ones(36), 200)}
    blends, settings = selection.decode(predictions, 1, "expected_score", {})
    assert settings == {"blend_share": pytest.approx(1 / 3)}
    assert blends == blemore.decode_expected_score(predictions["joint_probabilities"], 1 / 3)
    assert blends != blemore.decode_expected_score(predictions["joint_probabilities"], 3 / 7)


def test_a_fold_closes_after_its_patience_however_long_the_others_go_on():
    selection = Selection("honest", FOLDS, SOFT, (5,), "loss", "expected_score", patience=2)
    for epoch in range(1, 7):
        # The models without folds 0 and 1 judge fold 0 on fold 1 and fold 1, which improves in every epoch, on fold 0.
        def share(held_out, fold, epoch=epoch):
            judged = (0.1 * epoch, {1: 0.2, 3: 0.3, 6: 0.6}.get(epoch, 0.1))
            return judged[fold] if held_out == (0, 1) and fold < 2 else 0.5

        selection.update(epoch, predictions_of(selection.members, share))
    assert {fold: choice.epoch for _, fold, choice in selection} == {0: 3, 1: 6, 2: 1}


def test_stale_epochs_count_from_the_last_fold_that_found_a_better_one():
    members, selection = make_selection()
    stale = []
    for epoch, shares in enumerate([(0.1, 0.1), (0.2, 0.3), (0.1, 0.2), (0.3, 0.2), (0.3, 0.1), (0.1, 0.1)], 1):
        # What the models without folds 0 and 1 predict for fold 0 judges fold 1 alone, and the other way round.
        def share(held_out, fold, shares=shares):
            return shares[fold] if held_out == (0, 1) and fold < 2 else 0.5

        selection.update(epoch, predictions_of(members, share))
        stale.append(selection.stale_epochs(epoch))
    # A tie keeps the earlier epoch.
    assert stale == [0, 0, 1, 0, 1, 2]
    assert {fold: choice.epoch for _, fold, choice in selection} == {0: 2, 1: 4, 2: 1}
