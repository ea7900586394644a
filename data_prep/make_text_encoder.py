"""Write a RoBERTa without weights for the sample corpus: configuration and trained tokenizer.

    python data_prep/make_text_encoder.py --captions data/sample/clotho_captions_development.csv \\
        --output data/sample/text_encoder

The folder has the official Hugging Face layout, so that `text_encoder.name:
data/sample/text_encoder` with `text_encoder.pretrained: false` takes the same way through the code
as `roberta-large`; `python -m retrieval.pretraining` gives it weights. Same captions and settings,
same bytes.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # import from the repository, and nothing from this folder
    here = Path(__file__).resolve().parent
    sys.path[:] = [str(here.parent), *(path for path in sys.path if Path(path).resolve() != here)]

from data_prep.command import run  # first: from here on Ctrl-C prints one line

# isort: split

import hashlib
import json
import os

from data_prep.corpora.csv_files import caption_columns, read_csv
from retrieval.base.captions import normalise_caption
from retrieval.base.command import run_main
from retrieval.base.errors import OneLineParser, UserError
from retrieval.base.folders import MADE_FROM, read_made_from, whole_folder

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # a few thousand captions need no threads

SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")  # 0 to 3 as in RoBERTa
FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    MADE_FROM,
)
MIN_VOCAB_SIZE = 256 + len(SPECIAL_TOKENS)  # every byte must have a token


def main(arguments: list[str] | None = None) -> int:
    parser = OneLineParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--captions",
        type=Path,
        required=True,
        metavar="CSV",
        help="captions table of Clotho: file_name, caption_1, caption_2, ...",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--hidden-size", type=int, default=128)
    parser.add_argument("--num-layers", type=int, default=2)
    parser.add_argument("--num-heads", type=int, default=4)
    parser.add_argument("--vocab-size", type=int, default=1000)
    parser.add_argument(
        "--max-tokens", type=int, default=40, help="longest caption in tokens, with <s> and </s>"
    )
    options = parser.parse_args(arguments)
    names = ("hidden_size", "num_layers", "num_heads", "vocab_size", "max_tokens")
    sizes = {name: getattr(options, name) for name in names}
    return run(lambda: make_text_encoder(options.captions, options.output, sizes))


def make_text_encoder(captions_csv: Path, output: Path, sizes: dict[str, int]) -> None:
    """Write the folder `output`, or reuse one of the same captions and sizes. Raises UserError."""
    for name, size in sizes.items():
        if size < 1:
            raise UserError(f"--{name.replace('_', '-')} {size}: must be 1 or more")
    if sizes["hidden_size"] % sizes["num_heads"]:
        raise UserError(
            f"--hidden-size {sizes['hidden_size']} is not a multiple of --num-heads"
            f" {sizes['num_heads']}"
        )
    if sizes["vocab_size"] < MIN_VOCAB_SIZE:
        raise UserError(
            f"--vocab-size {sizes['vocab_size']}: must be {MIN_VOCAB_SIZE} or more (every byte and"
            f" {len(SPECIAL_TOKENS)} special tokens)"
        )
    if sizes["max_tokens"] < 3:
        raise UserError(
            f"--max-tokens {sizes['max_tokens']}: must be 3 or more, for <s>, one token and </s>"
        )
    captions = [normalise_caption(caption) for caption in read_captions(captions_csv)]
    digest = hashlib.sha256("\n".join(captions).encode()).hexdigest()
    made_from = {"captions_sha256": digest, **sizes}
    found = read_made_from(output, {"captions_sha256": str})
    if found == made_from and all((output / name).is_file() for name in FILES):
        print(f"{output} was made from these captions and sizes: reused")
        return
    # replaces an empty folder, or one made by this script
    with whole_folder(output, "the text encoder") as folder:
        vocab_size = _write(folder, captions, sizes)
        text = json.dumps(made_from, indent=1) + "\n"
        (folder / MADE_FROM).write_text(text, encoding="utf-8")
    print(
        f"{output}: RoBERTa of {sizes['num_layers']} layers of {sizes['hidden_size']}, without"
        f" weights; {vocab_size} tokens from {len(captions)} captions"
    )


def read_captions(path: Path) -> list[str]:
    """Return all captions of a Clotho captions table. Raises UserError."""
    captions = [
        row[column]
        for row in read_csv(path, (), ["utf-8-sig"])
        for column in caption_columns(row)
        if row[column]
    ]
    if not captions:
        raise UserError(
            f"captions {path} holds no caption: expected a table with columns file_name, caption_1,"
            " caption_2, ..."
        )
    return captions


def _write(folder: Path, captions: list[str], sizes: dict[str, int]) -> int:
    """Write configuration and tokenizer; return the number of tokens.

    Captions of few words give fewer tokens than asked for.
    """
    # here: a user's mistake or a reused folder need not wait for transformers
    from tokenizers import ByteLevelBPETokenizer
    from transformers import RobertaConfig, RobertaTokenizer

    # the first word of a caption gets the token that it has elsewhere
    bpe = ByteLevelBPETokenizer(add_prefix_space=True)
    bpe.train_from_iterator(
        captions,
        vocab_size=sizes["vocab_size"],
        min_frequency=2,
        special_tokens=list(SPECIAL_TOKENS),
        show_progress=False,
    )
    trained = json.loads(bpe.to_str())["model"]
    tokenizer = RobertaTokenizer(
        vocab=trained["vocab"],
        merges=[tuple(merge) for merge in trained["merges"]],
        add_prefix_space=True,
        model_max_length=sizes["max_tokens"],
    )
    tokenizer.save_pretrained(folder)
    special_tokens = json.dumps(tokenizer.special_tokens_map, indent=1) + "\n"
    (folder / "special_tokens_map.json").write_text(special_tokens, encoding="utf-8")
    RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=sizes["hidden_size"],
        num_hidden_layers=sizes["num_layers"],
        num_attention_heads=sizes["num_heads"],
        intermediate_size=4 * sizes["hidden_size"],
        # RoBERTa counts positions from pad_token_id + 1
        max_position_embeddings=sizes["max_tokens"] + 2,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        architectures=["RobertaModel"],
    ).save_pretrained(folder)
    return len(tokenizer)


if __name__ == "__main__":
    run_main(main)
