"""What a run of each family leaves in metrics.json."""

MEASURES = {
    "acc_presence": {"mean": 0.3125, "std": 0.0211},
    "acc_salience": {"mean": 0.1402, "std": 0.0333},
    "score": {"mean": 0.22635, "std": 0.0187},
}
FUSION = {
    "schema_version": 1,
    "model_type": "rank_aware_fusion",
    "protocol": "honest",
    "protocol_description": "Epoch and thresholds come from the following fold.",
    "decoding": "expected_score",
    "data": {"source": "/home/someone/blemore", "hub_id": None, "clips": 2456, "folds": [0, 1], "blend_share": 0.5443},
    "seeds": [0, 1, 2],
    "summary": MEASURES,
    "ensemble": {"acc_presence": 0.33, "acc_salience": 0.15, "score": 0.24},
    "alternatives": {"expected_score": MEASURES, "thresholds": {"acc_presence": {"mean": 0.29, "std": 0.01}}},
    "folds": [
        {"seed": seed, "fold": fold, "epoch": 7, "alpha": 0.14474, "beta": 0.09737, "score": 0.2 + 0.01 * fold}
        for seed in range(3)
        for fold in range(2)
    ],
    "encoders": {
        "wavlm": {
            "feature_size": 1024,
            "modality": "audio",
            "pooling": "attention",
            "mean_weight": 0.61,
            "selected": 0.9,
        },
        "image|bind": {"feature_size": 7168, "modality": "video", "pooling": "mean"},
    },
    "config": {"learning_rate": 0.001, "data": "/home/someone/blemore"},
    "command": "python training/train_fusion.py --config training/configs/a.yaml --data=/home/someone/blemore",
    "versions": {"hf_blemo": "0.1.0", "torch": "2.13.0"},
    "num_parameters": 1234567,
    "wall_seconds": 61.6,
}


def evaluated(step, share):
    """An evaluation whose numbers are a share of the best of these."""
    recalls = {
        f"{direction}_r@{cutoff}": share * value
        for direction, values in (("image_to_text", (0.4, 0.6, 0.8)), ("text_to_image", (0.3, 0.5, 0.7)))
        for cutoff, value in zip((1, 5, 10), values, strict=True)
    }
    alone = {f"one_caption_{name}": value / 2 for name, value in recalls.items()}
    return {
        "step": step,
        "tasks": {
            "zero_shot": {
                "kind": "zero_shot",
                "data": "synthetic",
                "images": 500,
                "classes": 36,
                "top_1": share * 0.2,
                "top_5": share * 0.5,
            },
            "coco": {"kind": "retrieval", "data": "owner/coco", "images": 1000, "captions": 5000, **recalls, **alone},
        },
    }


TERMS = ("task", "fd", "icl", "hrd", "vrd", "vrd_image", "vrd_text", "xrd")
CLIP_RD = {
    "schema_version": 1,
    "model_type": "clip_rd",
    "student": "vit-t-16",
    "teachers": [{"source": "owner/teacher", "parameters": 149620737, "logit_scale": 100.0, "stored": False}],
    "data": {
        "sources": [
            {"data": "owner/pairs", "weight": 3.0},
            {"data": "/home/someone/pairs", "weight": 1.0, "pairs": 4000},
        ],
        "pairs": None,
        "seen": 19200,
        "broken": 3,
        "broken_examples": ["row 5: cannot read /home/someone/pairs/5.png"],
    },
    "num_parameters": 46116097,
    "num_parameters_vision": 5622912,
    "num_processes": 1,
    "num_steps": 150,
    "batch_size": 128,
    "history": [
        {"step": 10, "loss": 20.0, **dict.fromkeys(TERMS, 4.0), "fd": 0.00391234, "logit_scale": 14.3},
        {"step": 150, "loss": 10.0, **dict.fromkeys(TERMS, 2.0), "fd": 0.00051234, "logit_scale": 15.0},
    ],
    "evaluation": evaluated(150, 0.85),
    "evaluations": [evaluated(100, 0.5), evaluated(150, 0.85)],
    "teacher_evaluation": {"tasks": evaluated(0, 1.0)["tasks"]},
    "config": {
        "data": "/home/someone/pairs",
        "output_dir": "out/student",
        "weights": {**dict.fromkeys(TERMS, 1.0), "fd": 250.0},
        "weight_schedule": {"xrd": [[0, 0.0], [100, 1.0]]},
    },
    "command": "python training/distill_clip_rd.py --config training/configs/a.yaml --data=/home/someone/pairs",
    "wall_seconds": 61.6,
    "versions": {"hf_blemo": "0.1.0", "torch": "2.13.0"},
}


FAMILIES = {"rank_aware_fusion": FUSION, "clip_rd": CLIP_RD}


def set_first_number(metrics, value):
    """Changes the first number of the card's model index."""
    if metrics["model_type"] == "clip_rd":
        metrics["evaluation"]["tasks"]["zero_shot"]["top_1"] = value
    else:
        metrics["summary"]["acc_presence"]["mean"] = value
