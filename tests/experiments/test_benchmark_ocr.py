"""The `ocr` benchmark measures what it says, on a few signs."""

import pytest

from xomni_rl.experiments.benchmarks import ocr


def test_figures_are_made_of_what_they_say(capsys: pytest.CaptureFixture[str]) -> None:
    figures = ocr.run(count=8, repeats=1)
    assert figures["images"] == 8
    assert figures["agreement"] == 1.0
    # One counted pass: the median ratio is that of the two rates.
    assert figures["ratio"] == pytest.approx(figures["images_per_second"] / figures["peer_images_per_second"])
    assert set(figures["unclear"]) == set(figures) - {"unclear"}
    assert "RapidOCR, blurred, noisy" in capsys.readouterr().out
