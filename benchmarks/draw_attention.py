"""Draw what captions of one clip listen to: the spectrogram, and under it TAP's attention over time
for each caption.

    python -m benchmarks.draw_attention --checkpoint DIR --cache DIR [--split evaluation]
        [--clip 0] [--captions 0 1] [--output docs/attention.png] [--scenes data/sample/scenes.json]

With --scenes it also prints how much weight TAP gives to an event that a caption names alone among
three or more, 1 being an equal share: the average over all such captions of the split, and the
clips where it is highest.
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
    figure = attention_figure(
        model,
        torch.from_numpy(split.read(arguments.clip)),
        *(captions[number] for number in arguments.captions),
    )
    figure.savefig(arguments.output)
    print(f"{split.file_names[arguments.clip]}: {arguments.output}")
    if found:
        report_focus(found)
    return 0


def focus(
    model: "DualEncoder", split: "ClipSplit", spans: dict[tuple[str, str], tuple[float, float]]
) -> list[tuple[float, int, int]]:
    """(mean weight of the frames within the event over that of all frames, clip, caption) for the
    captions in `spans`.
    """
    import torch

    found = []
    for clip, (file_name, captions) in enumerate(zip(split.file_names, split.captions)):
        numbers = [
            number for number, caption in enumerate(captions) if (file_name, caption) in spans
        ]
        if not numbers:
            continue
        waveform = torch.from_numpy(split.read(clip))[None]  # (1, S)
        with torch.inference_mode():
            frames, mask = model.encode_audio(waveform, torch.tensor([waveform.shape[1]]))
            weights = model.attention(
                model.encode_text([captions[number] for number in numbers]), frames, mask
            )  # (n, 1, T)
        if weights is None:
            raise UserError(
                "--scenes: the model pools by the mean and has no attention; give a TAP model"
            )
        weights = weights[:, 0, mask[0]]
        middles = (
            (torch.arange(weights.shape[1]) + 0.5)
            * waveform.shape[1]
            / model.sample_rate
            / weights.shape[1]
        )  # s
        for number, row in zip(numbers, weights):
            onset, end = spans[file_name, captions[number]]
            found.append(
                (float(row[(middles >= onset) & (middles < end)].mean() / row.mean()), clip, number)
            )
    if not found:
        raise UserError(
            f"--scenes: none of its captions is in split {split.name} of the cache; give the"
            " scenes.json of that corpus"
        )
    return found


def report_focus(found: list[tuple[float, int, int]]) -> None:
    print(
        "weight within the named event, 1 is an equal share:"
        f" {sum(ratio for ratio, _, _ in found) / len(found):.2f} over {len(found)} captions"
    )
    for ratio, clip, number in sorted(found, reverse=True)[:5]:
        print(f"    {ratio:.2f}  --clip {clip} --captions {number}")


if __name__ == "__main__":
    run_main(main)
