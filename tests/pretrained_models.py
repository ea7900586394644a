"""Small CLAP and PE-Audio models, made and saved by transformers in the layout of the hub."""

from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    ClapProcessor,
    PeAudioConfig,
    PeAudioFeatureExtractor,
    PeAudioFrameLevelModel,
    PeAudioModel,
    PeAudioProcessor,
)

from benchmarks.search_profile import QUICK_AUDIO

RATE = 16_000  # Hz
WORDS = "a dog barks loudly Rain rain falls and then the wind blows . , cat A thunder".split()
SMALL = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
CLAP_AUDIO = QUICK_AUDIO | {"aff_block_r": 1}  # of the path of CLAP with fusion
PE_TEXT = {
    "model_type": "modernbert",
    "vocab_size": 60,
    "hidden_size": 16,
    "cls_token_id": 1,
    "sep_token_id": 2,
    **SMALL,
    **IDS,
}
PE_AUDIO = {
    "dac_config": {
        "model_type": "dac",
        "downsampling_ratios": [2, 8, 10, 4],  # 640 samples, 40 ms at RATE
        "encoder_hidden_size": 4,
        "codebook_dim": 6,
        "hidden_size": 64,
        "hop_length": 640,
    },
    "hidden_size": 24,
    "head_dim": 12,
    **SMALL,
}


def tokenizer(begin: str, end: str, pad: str) -> transformers.PreTrainedTokenizerFast:
    """Tokenizer of WORDS that knows capitals, as those of CLAP and PE-Audio."""
    words = [pad, begin, end, "<unk>", *WORDS]
    vocabulary = {word: number for number, word in enumerate(words)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single=[begin, "$A", end], special_tokens=[(begin, 1), (end, 2)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=pad,
        bos_token=begin,
        eos_token=end,
        cls_token=begin,
        sep_token=end,
        unk_token="<unk>",
    )


def clap(fusion: bool = False, padding: str = "repeatpad") -> tuple[ClapModel, ClapProcessor]:
    """CLAP that hears 1 s in place of 10 s."""
    audio = CLAP_AUDIO | ({"enable_fusion": True, "fusion_type": "aff_2d"} if fusion else {})
    text = {"vocab_size": 60, "hidden_size": 16, **SMALL, **IDS}
    model = ClapModel(ClapConfig(text_config=text, audio_config=audio, projection_dim=8))
    extractor = ClapFeatureExtractor(
        feature_size=16,
        sampling_rate=RATE,
        hop_length=128,
        max_length_s=1,
        truncation="fusion" if fusion else "rand_trunc",
        padding=padding,
    )
    return model, ClapProcessor(extractor, tokenizer("<s>", "</s>", "<pad>"))


def pe_audio(frame_level: bool = False) -> tuple[PeAudioModel, PeAudioProcessor]:
    """PE-Audio at RATE, 25 frames a second."""
    kind = PeAudioFrameLevelModel if frame_level else PeAudioModel
    model = kind(PeAudioConfig(text_config=dict(PE_TEXT), audio_config=dict(PE_AUDIO)))
    extractor = PeAudioFeatureExtractor(sampling_rate=RATE, hop_length=640)
    return model, PeAudioProcessor(extractor, tokenizer("[CLS]", "[SEP]", "[PAD]"))


FAMILIES = {
    "clap": clap,
    "clap_fused": lambda: clap(fusion=True),
    "clap_padded": lambda: clap(padding="pad"),
    "pe_audio": pe_audio,
    "pe_a_frame": lambda: pe_audio(frame_level=True),
}


def make(family: str, folder: Path | None = None) -> tuple:
    """Return model and processor of FAMILIES, with random weights and biases, saved in `folder`."""
    with torch.random.fork_rng():
        torch.manual_seed(sorted(FAMILIES).index(family))
        model, processor = FAMILIES[family]()
        for parameter in model.parameters():  # biases and scales are 0 or 1 in a new model
            parameter.data += 0.1 * torch.randn_like(parameter)
        if family.startswith("pe_"):
            model.text_audio_logit_scale.data.fill_(7.5)
    if folder is not None:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    return model.eval(), processor
