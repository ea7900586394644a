"""Find, download, check and describe the weight files of the encoders."""

from dataclasses import dataclass
from pathlib import Path

from data_prep.corpora.resumable_download import fetch_file
from retrieval.base.checkpoints import weight_files
from retrieval.base.errors import UserError
from retrieval.base.files import sha256_of
from retrieval.config import Config

ATST_PAGE = "https://drive.google.com/file/d/1_xb0_n3UNbUG_pH1vLHTviLfsaSfCzxz/view"
PASST_URL = (
    "https://github.com/kkoutini/PaSST/releases/download/v0.0.2-audioset/"
    "passt-s-f128-p16-s16-ap.468.pt"
)


@dataclass(frozen=True)
class AudioWeights:
    """An official file; its authors publish no checksum (docs/clotho.md).

    Args:
        names: File names, the one of the configurations first.
        url: Address of the file, or of the page in the browser.
        by_hand: True if a person must download it in the browser.
        gigabytes: Size, as docs/clotho.md has it.
    """

    names: tuple[str, ...]
    url: str
    by_hand: bool
    gigabytes: float

    def place(self, folder: Path) -> Path:
        """Return the file in `folder` under one of its names, else the path to download to."""
        places = [folder / name for name in self.names]
        return next((place for place in places if place.is_file()), places[0])

    def check(self, folder: Path) -> None:
        """Raise UserError if a person must download the file first."""
        if self.by_hand and not self.place(folder).is_file():
            name = self.names[-1]
            raise UserError(
                f"{' or '.join(self.names)} is missing in {folder}: download {name} in the browser"
                f" from {self.url}, then mkdir -p {folder} && mv ~/Downloads/{name} {folder}/"
            )

    def provide(self, folder: Path) -> None:
        """Download the file unless it is there. Raises UserError."""
        self.check(folder)
        path = self.place(folder)
        if not path.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            fetch_file(self.url, path, md5=None)


# By audio_encoder.name. The thesis loads the first name of ATST-Frame's file; the authors' page
# gives it the second one.
AUDIO_WEIGHTS = {
    "atst_frame": AudioWeights(
        ("atstframe_base_as2M.ckpt", "atst_as2M.ckpt"), ATST_PAGE, by_hand=True, gigabytes=0.35
    ),
    "passt": AudioWeights(
        ("passt-s-f128-p16-s16-ap.468.pt",), PASST_URL, by_hand=False, gigabytes=0.345
    ),
}


def text_encoder_place(config: Config, given: Path | None, folder: Path) -> Path:
    """Return the folder of the text encoder, or its hub name.

    Args:
        config: Configuration of the experiment.
        given: Folder of --text-encoder, which comes first.
        folder: Folder of --weights; a folder in it with the encoder's name comes next.
    """
    local = folder / config.text_encoder.name
    return given or (local if local.is_dir() else Path(config.text_encoder.name))


def downloaded_revision(name: str) -> str | None:
    """Return the commit of a hub model in this machine's hub cache; None if it is not there."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "config.json")
    return Path(found).parent.name if isinstance(found, str) else None


def check_weights(config: Config) -> None:
    """Build the model with all its weights, which downloads a text encoder from the hub.

    Raises:
        UserError: A file is absent, damaged, or of another model.
    """
    from retrieval.base.progress import silence_transformers
    from retrieval.models.build import build_model

    silence_transformers()
    build_model(config)


def describe_weights(config: Config) -> list[dict[str, str]]:
    """Return name and digest of the audio file, and of the text encoder; without folders."""
    audio, text = Path(config.audio_encoder.checkpoint), config.text_encoder.name
    found = [{"name": audio.name, "sha256": sha256_of(audio)}]
    if not Path(text).is_dir():
        return [*found, {"name": text, "revision": downloaded_revision(text) or "unknown"}]
    files = weight_files(Path(text))
    return [
        *found,
        *({"name": f"{file.parent.name}/{file.name}", "sha256": sha256_of(file)} for file in files),
    ]
