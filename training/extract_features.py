"""Extracts features of clips with pre-trained encoders, as a data set for training the fusion.

Example:
    accelerate launch training/extract_features.py --config training/configs/extract_blemore.yaml --data clips/
"""

from hf_blemo.errors import one_line_errors, say
from hf_blemo.extraction.settings import ExtractionSettings
from hf_blemo.programs.settings import parse_settings


def main() -> None:
    settings = parse_settings(ExtractionSettings, description=__doc__)
    from hf_blemo.extraction.run import extract_features

    result = extract_features(settings, report_line=lambda line: say(line, error=True))
    if result:
        widths = ", ".join(f"{name} {width}" for name, width in result["encoders"].items())
        say(f"{result['clips']} clips, {len(result['failed'])} failed; {widths}: {settings.output_dir}")


if __name__ == "__main__":
    with one_line_errors():
        main()
