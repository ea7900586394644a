"""Pictures of one pixel: drawing them takes a third of a tiny run."""

import numpy as np
import pytest

from retrieval.training.tracking import Tracker

REAL = ("test_tracking", "test_services")  # these modules look at pictures


@pytest.fixture(scope="module", autouse=True)
def small_pictures(request):
    """Write every picture under its name, but do not draw it."""

    def write(self, name: str, _figure, step: int) -> None:
        pixel = np.zeros((1, 1, 3), np.uint8)
        if self.writer is not None:
            self.writer.add_image(name, pixel, step, dataformats="HWC")

    with pytest.MonkeyPatch.context() as patch:
        if request.module.__name__.rpartition(".")[2] not in REAL:
            patch.setattr(Tracker, "_figure", write)
        yield
