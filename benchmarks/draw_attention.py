"""Draw what captions of one clip listen to: the spectrogram, and under it TAP's attention over time for each caption.

    python -m benchmarks.draw_attention --checkpoint runs/sample_tap/best --cache data/sample/cache \
        [--split evaluation] [--clip 0] [--captions 0 1] [--output docs/attention.png]
"""

import argparse
from pathlib import Path

from retrieval.errors import OneLineParser, UserError, run_main


def main(argv: list[str] | None = None) -> int:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--split", default="evaluation")
    parser.add_argument("--clip", type=int, default=0, help="number of the clip in the split")
    parser.add_argument("--captions", type=int, nargs="+", default=[0, 1], help="numbers of its captions")
    parser.add_argument("--output", type=Path, default=Path("docs/attention.png"))
    arguments = parser.parse_args(argv)

    import torch

    from retrieval.data import open_cache
    from retrieval.models import DualEncoder
    from retrieval.tracking import attention_figure

    model = DualEncoder.from_pretrained(arguments.checkpoint)
    split = open_cache(arguments.cache, model.sample_rate).split(arguments.split)
    if not 0 <= arguments.clip < len(split):
        raise UserError(f"--clip {arguments.clip}: split {split.name} has clips 0 to {len(split) - 1}")
    captions = split.captions[arguments.clip]
    if not all(0 <= number < len(captions) for number in arguments.captions):
        raise UserError(f"--captions: clip {arguments.clip} has captions 0 to {len(captions) - 1}")
    figure = attention_figure(model, torch.from_numpy(split.read(arguments.clip)), *(captions[number] for number in arguments.captions))
    try:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(arguments.output)
    except (OSError, ValueError) as error:  # ValueError: a suffix that is no kind of picture
        raise UserError(f"--output {arguments.output} cannot be written ({' '.join(str(error).split())})") from None
    print(f"{split.file_names[arguments.clip]}: {arguments.output}")
    return 0


if __name__ == "__main__":
    run_main(main)
