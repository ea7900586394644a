"""Draw the spectrogram of a clip, and under it TAP's attention over time for each caption.

    python -m benchmarks.draw_attention --checkpoint DIR --cache DIR [--split evaluation]
        [--clip 0] [--captions 0 1] [--output docs/attention.png] [--scenes data/sample/scenes.json]

With --scenes it also takes the captions that name one event of a scene with three or more, and
prints how much weight TAP gives to that event; 1 is an equal share. It prints the average over the
split, and the clips with the highest weights.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.pictures import check_picture
from benchmarks.scenes import single_event_captions
from retrieval.base.command import run_main
from retrieval.base.errors import OneLineParser, UserError

if TYPE_CHECKING:
    from retrieval.data import ClipSplit
    from retrieval.models.dual_encoder import DualEncoder


def main(argv: list[str] | None = None) -> int:
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--split", default="evaluation")
    parser.add_argument("--clip", type=int, default=0, help="number of the clip in the split")
    parser.add_argument(
        "--captions", type=int, nargs="+", default=[0, 1], help="numbers of its captions"
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="picture to write; default: attention.png beside the model folder",
    )
    parser.add_argument(
        "--scenes", type=Path, metavar="FILE", help="scenes.json of the sample corpus"
    )
    arguments = parser.parse_args(argv)
    arguments.output = arguments.output or arguments.checkpoint.resolve().parent / "attention.png"
    check_picture(arguments.output)

    import torch

    from retrieval.data import open_cache
    from retrieval.models.dual_encoder import DualEncoder
    from retrieval.training.tracking import attention_figure

    spans = single_event_captions(arguments.scenes, arguments.split) if arguments.scenes else {}
    model = DualEncoder.from_pretrained(arguments.checkpoint)
    split = open_cache(arguments.cache, model.sample_rate).split(arguments.split)
    if not 0 <= arguments.clip < len(split):
        raise UserError(
            f"--clip {arguments.clip}: split {split.name} has clips 0 to {len(split) - 1}"
        )
    captions = split.captions[arguments.clip]
    if not all(0 <= number < len(captions) for number in arguments.captions):
        raise UserError(f"--captions: clip {arguments.clip} has captions 0 to {len(captions) - 1}")
    found = focus(model, split, spans) if spans else []
    waveform = torch.from_numpy(split.read(arguments.clip))
    figure = attention_figure(model, waveform, *(captions[n] for n in arguments.captions))
    figure.savefig(arguments.output)
    print(f"{split.file_names[arguments.clip]}: {arguments.output}")
    if found:
        average = sum(ratio for ratio, _, _ in found) / len(found)
        print(
            f"weight within the named event, 1 is an equal share: {average:.2f} over {len(found)}"
            " captions"
        )
        for ratio, clip, number in sorted(found, reverse=True)[:5]:
            print(f"    {ratio:.2f}  --clip {clip} --captions {number}")
    return 0


def focus(
    model: "DualEncoder", split: "ClipSplit", spans: dict[tuple[str, str], tuple[float, float]]
) -> list[tuple[float, int, int]]:
    """Measure the attention to the event of each caption in `spans` (onset, end; s).

    Returns mean weight of the frames within the event over that of all frames, clip, caption.
    """
    import numpy as np
    import torch

    from retrieval.evaluation.attention import listen

    found = []
    for clip, (file_name, captions) in enumerate(zip(split.file_names, split.captions)):
        numbers = [
            number for number, caption in enumerate(captions) if (file_name, caption) in spans
        ]
        if not numbers:
            continue
        waveform = torch.from_numpy(split.read(clip))  # (S,)
        _, weights, seconds = listen(model, waveform, [captions[number] for number in numbers])
        if weights is None:
            raise UserError(
                "--scenes: the model pools by the mean and has no attention; give a TAP model"
            )
        num_frames = weights.shape[1]
        middles = (np.arange(num_frames) + 0.5) * seconds / num_frames  # s
        for number, row in zip(numbers, weights, strict=True):
            onset, end = spans[file_name, captions[number]]
            within = (middles >= onset) & (middles < end)
            found.append((float(row[within].mean() / row.mean()), clip, number))
    if not found:
        raise UserError(
            f"--scenes: none of its captions is in split {split.name} of the cache; give the"
            " scenes.json of that corpus"
        )
    return found


if __name__ == "__main__":
    run_main(main)
