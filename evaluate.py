"""Score a trained model, or the mean of several, on a split of an Arrow cache: both directions,
metrics.json and ranks.csv.

    python evaluate.py --checkpoint runs/tap/best [--split evaluation] [--cache DIR] [--output DIR]
    python evaluate.py --checkpoint runs/a/best --checkpoint runs/b/best --output DIR     # the mean of their score matrices
    python evaluate.py --checkpoint runs/tap/best --relevance FILE                        # several right clips a query (DCASE 2025)
    python evaluate.py --checkpoint runs/tap/best --split development --save-scores       # scores.npy as well, for distillation
    python evaluate.py --checkpoint runs/tap/best --submission dcase2025 FILE [--queries FILE]
    python evaluate.py --checkpoint runs/tap/best --report DIR [--against runs/mean/best] # a page to look inside the run

--relevance and --queries bring their own texts: then the clips need no captions.
Cache, batch sizes and precision are those of the run (RUN/config.yaml), with several checkpoints of
the first, unless given here. `import evaluate` is the Hugging Face package and never this script:
see retrieval/__init__.py.
"""

from retrieval.base.command import run_main
from retrieval.base.extras import needs_extra
from retrieval.base.launch import check_environment
from retrieval.base.progress import set_quiet, silence_transformers
from retrieval.evaluation.options import parse_arguments
from retrieval.evaluation.outputs import check_default_output, report
from retrieval.evaluation.relevance import MAP_AT, read_relevance, relevant_columns
from retrieval.evaluation.score_files import ABOUT, ARRAY, write_scores
from retrieval.evaluation.submission import check_file_names, read_queries, write_submission


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv, __doc__)
    set_quiet(arguments.quiet)
    relevance = read_relevance(arguments.relevance) if arguments.relevance else None
    queries = read_queries(arguments.queries) if arguments.queries else None
    check_environment()
    # Below the checks, because these take seconds to import.
    import torch

    from retrieval.base.versions import git_commit
    from retrieval.evaluation.result import EvaluationResult
    from retrieval.evaluation.score_matrix import Scorer, captions_of

    silence_transformers()
    if arguments.report:
        with needs_extra("tracking"):
            from retrieval.evaluation.report import Against, write_report
    against = Against(arguments.against, arguments.text_encoder) if arguments.against else None
    sizes = {name: getattr(arguments, name) for name in ("audio_batch_size", "text_batch_size")}
    scorer = Scorer(
        arguments.checkpoint,
        arguments.cache,
        arguments.text_encoder,
        arguments.mixed_precision,
        **sizes,
    )
    split, accelerator = (
        scorer.cache.split(arguments.split, need_captions=not (relevance or queries)),
        scorer.accelerator,
    )
    if arguments.submission:
        check_file_names(split.file_names)
    check_default_output(arguments.default_output, scorer.cache.path, scorer.is_other_cache)
    names = list(map(str, arguments.checkpoint))
    about = {"checkpoint": names[0] if len(names) == 1 else names, "cache": str(scorer.cache.path)}
    about |= {
        "fingerprint": split.fingerprint(),
        "sample_rate": split.sample_rate,
        "mixed_precision": accelerator.mixed_precision,
    }
    relevant, map_at = None, (10,)
    if relevance is not None:
        relevant, map_at = relevant_columns(relevance, split), MAP_AT
        captions, clips = list(relevance), [columns[0] for columns in relevant]
        about["relevance"] = str(arguments.relevance)
    else:
        captions, clips = (queries, None) if queries else captions_of(split)
    if against:
        against.check(scorer, split, captions, relevant)
    accelerator.print(
        f"scoring {', '.join(names)} on {split.name} of {scorer.cache.path}, {accelerator.device},"
        f" mixed precision {accelerator.mixed_precision}"
    )
    if arguments.save_scores and accelerator.is_main_process:
        file = write_scores(
            arguments.output,
            scorer.columns(captions, split),
            split,
            about | {"git_commit": git_commit()},
        )
        scores = torch.from_numpy(file.scores)
    else:
        scores = scorer.matrix(captions, split)
    if against:
        against.score(scorer, captions, split, **sizes)
    if accelerator.is_main_process:
        if arguments.submission:
            write_submission(*arguments.submission, captions, split.file_names, scores.numpy())
            print(f"written: {arguments.submission[1]}")
        if queries is None:
            result = EvaluationResult(
                split.name,
                scores,
                captions,
                clips,
                split.clip_ids,
                split.file_names,
                relevant,
                map_at,
            )
            report(result, arguments.output, about)
            if arguments.save_scores:
                print(f"written: {arguments.output / ARRAY}, {arguments.output / ABOUT}")
            if arguments.report:
                other = against.other_run(result) if against else None
                write_report(
                    result, split, scorer, arguments.report, about, arguments.report_queries, other
                )
    return 0


if __name__ == "__main__":
    run_main(main)
