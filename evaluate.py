"""Score a trained model, or the mean of several, on a split of an Arrow cache: both directions, metrics.json and ranks.csv.

    python evaluate.py --checkpoint runs/tap/best [--split evaluation] [--cache DIR] [--output DIR]
    python evaluate.py --checkpoint runs/a/best --checkpoint runs/b/best --output DIR     # the mean of their score matrices
    python evaluate.py --checkpoint runs/tap/best --relevance FILE                        # several right clips a query (DCASE 2025)
    python evaluate.py --checkpoint runs/tap/best --split development --save-scores       # scores.npy as well, for distillation
    python evaluate.py --checkpoint runs/tap/best --submission dcase2025 FILE [--queries FILE]

--relevance and --queries bring their own texts: then the clips need no captions.
Cache, batch sizes and precision are those of the run (RUN/config.yaml), with several checkpoints of the first, unless given here.
`import evaluate` is the Hugging Face package and never this script: see retrieval/__init__.py.
"""

import argparse
from pathlib import Path

from retrieval.errors import OneLineParser, UserError, run_main
from retrieval.relevance import MAP_AT, read_relevance, relevant_columns
from retrieval.reporting import METRICS, RANKS, check_checkpoints, check_default_output, check_not_among, check_outputs, default_output, report
from retrieval.score_files import ABOUT, ARRAY, write_scores
from retrieval.submission import FORMATS, check_file_names, check_format, read_queries, write_submission


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    relevance = read_relevance(arguments.relevance) if arguments.relevance else None
    queries = read_queries(arguments.queries) if arguments.queries else None
    # Below the checks, because these take seconds to import.
    import torch
    import transformers

    from retrieval.checkpoint import git_commit
    from retrieval.evaluation import EvaluationResult, captions_of
    from retrieval.scoring import Scorer

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    given = {name: getattr(arguments, name) for name in ("cache", "text_encoder", "mixed_precision", "audio_batch_size", "text_batch_size")}
    scorer = Scorer(arguments.checkpoint, **given)
    split, accelerator = scorer.cache.split(arguments.split, need_captions=not (relevance or queries)), scorer.accelerator
    if arguments.submission:
        check_file_names(split.file_names)
    check_default_output(arguments.default_output, scorer.cache.path, scorer.is_other_cache)
    names = list(map(str, arguments.checkpoint))
    about = {"checkpoint": names[0] if len(names) == 1 else names, "cache": str(scorer.cache.path)}
    about |= {"fingerprint": split.fingerprint(), "sample_rate": split.sample_rate, "mixed_precision": accelerator.mixed_precision}
    relevant, map_at = None, (10,)
    if relevance is not None:
        relevant, map_at = relevant_columns(relevance, split), MAP_AT
        captions, clips = list(relevance), [columns[0] for columns in relevant]
        about["relevance"] = str(arguments.relevance)
    else:
        captions, clips = (queries, None) if queries else captions_of(split)
    accelerator.print(
        f"scoring {', '.join(names)} on {split.name} of {scorer.cache.path}, {accelerator.device}, mixed precision {accelerator.mixed_precision}"
    )
    if arguments.save_scores and accelerator.is_main_process:
        file = write_scores(arguments.output, scorer.columns(captions, split), split, about | {"git_commit": git_commit()})
        scores = torch.from_numpy(file.scores)
    else:
        scores = scorer.matrix(captions, split)
    if accelerator.is_main_process:
        if arguments.submission:
            write_submission(*arguments.submission, captions, split.file_names, scores.numpy())
            print(f"written: {arguments.submission[1]}")
        if queries is None:
            result = EvaluationResult(split.name, scores, captions, clips, split.clip_ids, split.file_names, relevant, map_at)
            report(result, arguments.output, about)
    return 0


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, action="append", help="model folder, such as runs/tap/best, or a .ckpt of salsa")
    parser.add_argument("--text-encoder", type=Path, metavar="DIR", help="tokenizer of a .ckpt, which holds none; default: that of roberta-large")
    parser.add_argument("--split", default="evaluation", help="default: evaluation")
    parser.add_argument("--cache", type=Path, help="Arrow cache; default: data.cache in the config.yaml beside the model folder")
    parser.add_argument("--output", type=Path, help="folder of what is written; default: CHECKPOINT/results/SPLIT, SPLIT_relevance with --relevance")
    parser.add_argument("--relevance", type=Path, metavar="FILE", help="CSV query,audio_filenames: the queries and all their right clips")
    parser.add_argument("--save-scores", action="store_true", help="also write scores.npy and scores.json")
    parser.add_argument("--submission", nargs=2, metavar=("FORMAT", "FILE"), help=f"DCASE file: {' or '.join(FORMATS)}")
    parser.add_argument("--queries", type=Path, metavar="FILE", help="CSV with a column caption: what --submission asks in place of the captions")
    parser.add_argument("--audio-batch-size", type=int, help="clips encoded at once")
    parser.add_argument("--text-batch-size", type=int, help="captions encoded at once")
    parser.add_argument("--mixed-precision", choices=["auto", "no", "bf16", "fp16"], help="of the encoders; scores are float32")
    arguments = parser.parse_args(argv)
    for name in ("audio_batch_size", "text_batch_size"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, found {value}")
    check_paths(arguments)
    return arguments


def check_paths(arguments: argparse.Namespace) -> None:
    """What can be known to fail before anything is scored; fills in --output. Raises UserError."""
    if arguments.queries and (arguments.relevance or arguments.save_scores or not arguments.submission):
        raise UserError("--queries asks other questions than the captions, for --submission alone: no --relevance, no --save-scores")
    if arguments.relevance and arguments.save_scores:
        raise UserError("--save-scores keeps the scores of the split's own captions: leave out --relevance")
    check_checkpoints(arguments.checkpoint)
    files = ([METRICS, RANKS] if not arguments.queries else []) + ([ARRAY, ABOUT] if arguments.save_scores else [])
    arguments.default_output = None
    if files and arguments.output is None:
        name = arguments.split + ("_relevance" if arguments.relevance else "")
        arguments.output = arguments.default_output = default_output(arguments.checkpoint, name)
    outputs = [arguments.output / name for name in files]
    if arguments.submission:
        kind, file = arguments.submission
        check_format(kind)
        arguments.submission = kind, Path(file)
        results = [arguments.output / name for name in (METRICS, RANKS, ARRAY, ABOUT)] if arguments.output else []
        check_not_among("--submission", Path(file), [*results, *filter(None, (arguments.queries, arguments.relevance))])
        outputs.append(Path(file))
    check_outputs(outputs)


if __name__ == "__main__":
    run_main(main)
