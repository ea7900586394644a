"""The README's picture, drawn from a tiny model."""

import pytest

from benchmarks import draw_attention
from retrieval.config import load_config
from retrieval.errors import UserError
from retrieval.models import build_model


def test_a_picture_is_written_and_impossible_clips_are_refused(tiny, tmp_path):
    build_model(load_config(tiny / "tiny.yaml")).save_pretrained(tmp_path / "model")
    arguments = ["--checkpoint", str(tmp_path / "model"), "--cache", str(tiny / "cache"), "--output", str(tmp_path / "docs" / "a.png")]
    assert draw_attention.main(arguments) == 0
    assert (tmp_path / "docs" / "a.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match="clips 0 to 7"):
        draw_attention.main([*arguments, "--clip", "8"])
    with pytest.raises(UserError, match="captions 0 to 1"):
        draw_attention.main([*arguments, "--captions", "2"])
