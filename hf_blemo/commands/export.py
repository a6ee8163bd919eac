"""`hf-blemo export`: a model as ONNX files."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_blemo.commands.parsing import add_command
from hf_blemo.errors import check_extra, say
from hf_blemo.loading import FUSION, find_config
from hf_blemo.programs.start import importing

if TYPE_CHECKING:
    from hf_blemo.prediction.fusion_files import FusionFiles


def add_export(commands: Any) -> None:
    """Adds `hf-blemo export` to the subcommands that `add_subparsers` made."""
    parser = add_command(
        commands,
        "export",
        _export,
        "write a model as ONNX files (extra onnx)",
        """\
Reads MODEL: a fusion, a student or a CLIP. Writes model.onnx of a fusion, or image_model.onnx and text_model.onnx of a
student or CLIP, with free batch and time axes, and onnx.json with the names and shapes of their inputs. A student or
CLIP also gets its tokenizer.json and processor_config.json there.

Example:
  hf-blemo export out/fusion --output out/fusion_onnx --int8""",
    )
    parser.add_argument("model", metavar="MODEL", help="folder or Hub id of a fusion, a student or a CLIP")
    parser.add_argument("--revision", help="branch, tag or commit of the model on the Hub")
    parser.add_argument("--output", metavar="DIR", required=True, help="folder to write into")
    parser.add_argument("--overwrite", action="store_true", help="replace existing ONNX files in DIR")
    parser.add_argument("--int8", action="store_true", help="also write every file quantised to int8")


def _export(arguments: argparse.Namespace) -> None:
    output = Path(arguments.output)
    if output.exists() and not output.is_dir():
        raise NotADirectoryError(f"--output {output}: found a file, expected a folder")
    if output.is_dir() and any(output.glob("*.onnx")) and not arguments.overwrite:
        raise FileExistsError(f"--output {output}: holds ONNX files already; pass --overwrite to replace them")

    check_extra("onnx", load=False)
    config = find_config(arguments.model, f"model {arguments.model!r}", arguments.revision) or {}
    files = None
    if config.get("model_type") == FUSION:
        from hf_blemo.prediction.fusion_files import find_fusion

        files = find_fusion(arguments.model, arguments.revision)
    with importing():
        from hf_blemo.hub import export_onnx

    model, processor = _load(arguments.model, arguments.revision, files)
    for path in export_onnx(model, output, arguments.int8, processor):
        say(f"{path}  {path.stat().st_size / 2**20:.2f} MiB")


def _load(model: str, revision: str | None, files: "FusionFiles | None") -> tuple[Any, Any]:
    """A fusion; or a student and its processor, which its towers cannot do without."""
    from hf_blemo.clip_rd.modeling_clip_rd import CLIPRDModel
    from hf_blemo.pairs.clip_models import load_clip
    from hf_blemo.prediction.fusion import load_fusion

    if files is not None:
        return load_fusion(files)[0], None
    loaded, processor, _ = load_clip(model, "model", revision)
    if type(loaded).__name__ == "CLIPModel":
        loaded = CLIPRDModel.from_clip(loaded)
    return loaded, processor
