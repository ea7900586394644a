"""Published scores on ClothoV2, evaluation split, text to audio, in percent; single seeds.

tests/benchmarks/test_published.py compares the README's table and the headers of configs/ with
these scores.
"""

from dataclasses import dataclass

THESIS = "thesis"
EARLIER_README = "an earlier README of the thesis"
SALSA = "salsa"


@dataclass(frozen=True)
class Published:
    """Published scores of one experiment.

    Args:
        source: THESIS, EARLIER_README (both timoniko/PR-Text-To-Audio-Retrieval, one RTX 4090) or
            SALSA (OptimusPrimus/salsa).
        scores: Percent by metric, as text with the source's number of digits.
        scored: Which weights were scored: "last" for the last epoch, empty if the source does not
            say it.
    """

    source: str
    scores: dict[str, str]
    scored: str = ""

    def percent(self, metric: str) -> float:
        return float(self.scores[metric])


def _published(source: str, *scores: str) -> Published:
    scored = "" if source == SALSA else "last"
    names = ("mAP@10", "R@1", "R@5", "R@10")
    return Published(source, dict(zip(names, scores, strict=True)), scored)


# By the name of the file in configs/. all_stage1 is salsa's checkpoint passt_roberta.ckpt, trained
# on Clotho, AudioCaps and WavCaps.
PUBLISHED = {
    "baseline": _published(THESIS, "27.685", "16.861", "41.780", "56.612"),
    "low_lr": _published(THESIS, "30.103", "18.526", "46.010", "59.694"),
    "tap": _published(THESIS, "31.041", "19.368", "46.775", "60.976"),
    "passt": _published(EARLIER_README, "30.16", "18.96", "44.93", "59.44"),
    "passt_tap": _published(EARLIER_README, "31.91", "20.53", "47.46", "60.65"),
    "passt_tap_captions": _published(EARLIER_README, "32.45", "20.84", "48.51", "61.56"),
    "passt_stage1": _published(SALSA, "28.20", "17.24", "42.31", "56.47"),
    "passt_stage2": _published(SALSA, "29.94", "18.48", "45.58", "60.40"),
    "all_stage1": _published(SALSA, "40.11", "27.69", "57.05", "70.50"),
}
