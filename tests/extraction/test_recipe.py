"""The recipe `extract_blemore` as it is: tiny checkpoints of its architectures lie where its models would be."""

from importlib.util import find_spec
from pathlib import Path

import datasets
import pytest
import transformers as hf
import yaml
from clip_files import tone, write_clip
from face_scenes import BrightFaces, patches
from tiny_encoders import LARGE, MODELS, speech_extractor

from hf_blemo.encoders.encoder_options import OPENSMILE_SETS
from hf_blemo.extraction.run import extract_features
from hf_blemo.extraction.settings import ExtractionSettings
from hf_blemo.feature_sets import read_features
from hf_blemo.programs.recipes import recipes
from hf_blemo.programs.settings import read_settings

pytest.importorskip("cv2", reason="opencv-python-headless is not installed")
pytestmark = pytest.mark.usefixtures("fresh_accelerate_state")

# Middle layers are asked for, so these have as many as the base models.
SPEECH = {**LARGE, "num_hidden_layers": 12}
STAND_INS = {
    "out/clip_rd_vit_t_16": MODELS["student"],
    "openai/clip-vit-base-patch16": MODELS["clip"],
    "MCG-NJU/videomae-large": MODELS["videomae"],
    "facebook/hubert-large-ll60k": lambda: (hf.HubertModel(hf.HubertConfig(**SPEECH)), speech_extractor(True)),
    "microsoft/wavlm-large": lambda: (hf.WavLMModel(hf.WavLMConfig(**SPEECH)), speech_extractor(True)),
}


def test_every_encoder_gives_features_of_a_clip_with_a_face(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place, make in STAND_INS.items():
        for part in make():
            part.save_pretrained(Path(place))
    Path("bright.onnx").touch()
    monkeypatch.setattr("hf_blemo.encoders.face_cropping.read_detector", lambda path, name=None: BrightFaces())
    pictures = [patches((60 + 2 * number, 60, 60, 60)) for number in range(25)]
    Path("data/BlEmoRE").mkdir(parents=True)
    for name, frames in (("A1_hap_int2_ver1", pictures), ("A2_neu_sit1_ver1", [patches()] * 25)):
        write_clip(f"data/BlEmoRE/{name}.mp4", pictures=frames, frame_rate=25, sound=tone(1.0, 16000))
    detectors = [f"--encoders.{name}_face.extraction.detector=bright.onnx" for name in ("student", "clip")]
    settings = read_settings(ExtractionSettings, ["--config", "extract_blemore", *detectors])
    models = {name: entry["model_id"] for name, entry in settings.encoders.items()}
    assert models.pop("prosody") == f"opensmile:{OPENSMILE_SETS[0]}" and set(models.values()) == set(STAND_INS)
    if find_spec("opensmile") is None:
        del settings.encoders["prosody"]
    result = extract_features(settings, progress=False)
    assert result["failed"] == {} and list(result["encoders"]) == list(settings.encoders)
    assert result["without"] == {"student_face": 1, "clip_face": 1}
    made = datasets.Dataset.load_from_disk("out/blemore_clips")
    rows = {name: len(values) for name, values in read_features(made)[0].items()}
    rows.pop("prosody", None)
    assert rows.pop("hubert") == rows.pop("wavlm") >= 49
    assert rows == {"student": 25, "student_face": 25, "clip": 5, "clip_face": 5, "videomae": 2}
    # The fusion of the next recipe is trained on what this one writes.
    assert yaml.safe_load(recipes()["fusion_clips"].read_text())["data"] == settings.output_dir
