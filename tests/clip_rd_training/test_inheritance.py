"""A student cut out of its teacher: the whole teacher where nothing is left out, else its most important parts."""

import pytest
import torch
from tiny_models import make_student

from hf_blemo.clip_rd_training.inheritance import inherit
from hf_blemo.clip_rd_training.run import distill
from hf_blemo.clip_rd_training.students import make_student as new_student
from hf_blemo.clip_rd_training.teachers import open_teacher
from hf_blemo.pairs.pair_sources import open_source


@pytest.fixture(scope="module")
def clip():
    return make_student(3)[0]


def inputs_of(count=4):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 500, (count, 9), generator=generator)
    return {"pixel_values": torch.randn(count, 3, 16, 16, generator=generator), "input_ids": ids}


def embeds(model, batch):
    with torch.no_grad():
        return model(**batch).image_embeds, model(**batch).text_embeds


@pytest.mark.parametrize("batches", [None, [inputs_of()]], ids=["magnitude", "activation"])
def test_a_student_of_the_teachers_sizes_is_the_teacher(clip, batches):
    student, inherited = inherit(clip.eval(), {}, batches)
    for one, other in zip(embeds(student.eval(), inputs_of()), embeds(clip, inputs_of()), strict=True):
        torch.testing.assert_close(one, other)
    assert inherited["vision"]["layers"] == [0, 1] and inherited["text"]["hidden_size"] == [16, 16]


def weakened(clip, factor):
    """The teacher with every second head, channel and neuron made as good as absent."""
    weak = type(clip)(clip.config).eval()
    weak.load_state_dict(clip.state_dict())
    with torch.no_grad():
        for tower in (weak.vision_model, weak.text_model):
            for name, value in tower.named_parameters():
                if name.endswith(("embedding.weight", "class_embedding")):
                    # Channels come last but in a patch embedding.
                    (value if value.dim() == 4 else value.movedim(-1, 0))[1::2] *= factor
            for layer in tower.encoder.layers:
                layer.self_attn.out_proj.weight[:, :8] *= factor
                layer.mlp.fc2.weight[:, 1::2] *= factor
                for writer in (layer.self_attn.out_proj, layer.mlp.fc2):
                    writer.weight[1::2] *= factor
                    writer.bias[1::2] *= factor
    return weak


def test_what_matters_most_is_kept(clip):
    weak = weakened(clip, 1e-3)
    sizes = {"hidden_size": 8, "num_attention_heads": 1, "intermediate_size": 16}
    for batches in (None, [inputs_of(16)]):
        student, inherited = inherit(weak, {"vision_config": sizes, "text_config": sizes}, batches)
        assert inherited["text"] == {
            **{"layers": [0, 1], "hidden_size": [8, 16]},
            **{"num_attention_heads": [1, 2], "intermediate_size": [16, 32]},
        }
        for side in ("vision_model", "text_model"):
            own, theirs = (getattr(model, side).encoder.layers[1] for model in (student, weak))
            assert torch.equal(own.mlp.fc2.weight, theirs.mlp.fc2.weight[::2, ::2])
            assert torch.equal(own.mlp.fc1.weight, theirs.mlp.fc1.weight[::2, ::2])
            # The second head, whose outputs are not weakened.
            assert torch.equal(own.self_attn.out_proj.weight, theirs.self_attn.out_proj.weight[::2, 8:])
            assert torch.equal(own.self_attn.v_proj.bias, theirs.self_attn.v_proj.bias[8:])
            assert torch.equal(own.layer_norm1.weight, theirs.layer_norm1.weight[::2])


def test_smaller_heads_keep_the_size_of_their_logits(clip):
    sizes = {"hidden_size": 8, "num_attention_heads": 2}
    marked = weakened(clip, 1.0)
    for name in ("q_proj", "k_proj"):
        torch.nn.init.normal_(getattr(marked.text_model.encoder.layers[0].self_attn, name).bias)
    student, _ = inherit(marked, {"vision_config": sizes, "text_config": sizes})
    own, theirs = (model.text_model.encoder.layers[0].self_attn for model in (student, marked))
    kept = [row for row in range(16) if any(torch.equal(theirs.k_proj.bias[row], value) for value in own.k_proj.bias)]
    assert len(kept) == 8 and sum(row < 8 for row in kept) == 4
    torch.testing.assert_close(own.q_proj.bias, theirs.q_proj.bias[kept] * 0.5**0.5)


@pytest.mark.parametrize("by", ["magnitude", "activation"])
def test_a_run_inherits_and_says_what(by, teacher, settings_for, tmp_path):
    towers = '{"vision_config": {"num_hidden_layers": 1}, "text_config": {"intermediate_size": 64}}'
    arguments = ("--teacher", teacher, "--student", "inherit", "--student_config", towers, "--inherit_by", by)
    metrics = distill(settings_for(tmp_path / "out", *arguments))
    assert metrics["inherited"]["vision"]["layers"] == [0]
    assert metrics["inherited"]["text"]["intermediate_size"][0] == 64
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Its vision tower was cut out of the teacher's: layers 0 (counted from 0), `hidden_size`" in card


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"vision_config": {"num_hidden_layers": 3}}, "num_hidden_layers: expected .* to the teacher's 2, found 3"),
        ({"text_config": {"hidden_size": 7}}, "hidden_size 7 is not a multiple of num_attention_heads 2"),
        ({"text_config": {"num_attention_heads": 1}}, "heads of 16 dimensions .* the teacher's have 8"),
        ({"vision_config": {"patch_size": 4}}, "student_config.vision_config: unknown setting 'patch_size'"),
        ({"projection_dim": 4}, "student_config: unknown setting 'projection_dim'"),
    ],
)
def test_what_a_teacher_does_not_have_is_refused(config, message, clip):
    with pytest.raises(ValueError, match=message):
        inherit(clip, config)


def test_nothing_is_inherited_from_other_shapes_or_from_nobody(settings_for, tmp_path):
    swin = make_student(vision={"model_type": "swin", "image_size": 16, "patch_size": 2, "embed_dim": 8})[0]
    with pytest.raises(ValueError, match="expected a teacher with a vision tower of CLIP's shape, found swin"):
        inherit(swin, {})
    settings = settings_for(tmp_path, "--student", "inherit", "--student_config", "{}")
    sources = [open_source(source) for source in settings.pair_sources()]
    with pytest.raises(ValueError, match="expected a teacher to inherit from, found none; pass --teacher"):
        new_student(settings, open_teacher(settings), sources)
